"""Rating speed as ratios measured in one run: the stacked product against a loop over answers, and against the bare product."""

import timeit

import numpy as np

from ssr_nb.rating import pmfs, similarities


def seconds(function, repeats: int = 5) -> float:
    "The best of a few runs."
    return min(timeit.repeat(function, number=1, repeat=repeats))


def one_by_one(answers: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    "What a first try writes: every answer with every set in turn."
    rows = []
    for answer in answers:
        parts = []
        for one in anchors:
            cosines = one @ answer / np.linalg.norm(one, axis=1) / np.linalg.norm(answer)
            gamma = (1 + cosines) / 2
            parts.append((gamma - gamma.min()) / (gamma.sum() - len(gamma) * gamma.min()))
        rows.append(np.mean(parts, axis=0))
    return np.array(rows)


def main() -> None:
    generator = np.random.default_rng(0)
    answers = generator.normal(size=(20_000, 384)).astype(np.float32)
    anchors = generator.normal(size=(6, 5, 384)).astype(np.float32)
    stacked = seconds(lambda: pmfs(similarities(answers, anchors)))
    loop = seconds(lambda: one_by_one(answers, anchors), repeats=1)
    product = seconds(lambda: answers @ anchors.reshape(-1, 384).T)
    assert np.allclose(pmfs(similarities(answers, anchors)), one_by_one(answers, anchors), atol=1e-4)
    print("20,000 answers of 384 dimensions, six sets of five points")
    print(f"a loop over answers takes   {loop / stacked:6.1f} times as long")
    print(f"the bare matrix product is  {product / stacked:6.2f} of the time")


if __name__ == "__main__": main()
