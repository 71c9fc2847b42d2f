"""What each idea of the rater `contrast` does for reading people's texts: one row an idea, on rows that no choice was made on.

    python benchmarks/better_rating.py FOLDER [--rows N] [--out TABLE.csv]

FOLDER holds three public data sets as CSV: restaurant_cebab (CEBaB v1.1, CC BY 4.0: text, rating, n1 … n5, original_id), clothing_reviews (Women's
E-Commerce Clothing Reviews, CC0: text, rating, id) and coffee_notes (Great American Coffee Taste Test, MIT: text, rating, respondent, n_words).
Rows are split into halves by a hash of the person or of the review that was edited; choices were made on half 0, and half 1 is reported.
"""

import argparse
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from ssr_nb.fidelity import ks_similarity
from ssr_nb.raters import COMPANY, CalibratedRater, ContrastRater, _Parts, fit_axis, learn_company, load_contrast, phrases, scale_pmf, sentences
from ssr_nb.rating import Rater, load_embedder, pmfs, similarities

GROUPS = {"restaurant_cebab": "original_id", "clothing_reviews": "id", "coffee_notes": "respondent"}
PLAIN = [["It was terrible.", "It was bad.", "It was okay.", "It was good.", "It was excellent."],
         ["I am very dissatisfied.", "I am dissatisfied.", "I am neither satisfied nor dissatisfied.", "I am satisfied.", "I am very satisfied."],
         ["I hated it.", "I disliked it.", "I neither liked nor disliked it.", "I liked it.", "I loved it."]]


def number(key: str) -> int: return int(sha256(f"half {key}".encode()).hexdigest(), 16)


def load(folder: Path, name: str, rows: int | None) -> pd.DataFrame:
    "A data set with `half`, in the order of a hash, at most `rows` of it."
    frame = pd.read_csv(next(folder.glob(f"{name}*.csv")), keep_default_na=False, dtype={"original_id": str})
    if name == "coffee_notes": frame = frame[frame["n_words"].astype(int) >= 8]
    keys = frame[GROUPS[name]].astype(str)
    order = np.array([sha256(key.encode()).hexdigest() for key in keys])
    return frame.assign(half=[number(key) % 2 for key in keys]).iloc[np.argsort(order, kind="stable")][:rows].reset_index(drop=True)


def ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray: return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


class Bench:
    "One data set's parts, embedded, and the scores by each idea."
    def __init__(self, frame: pd.DataFrame):
        self.texts, self.embedder, self.contrast = frame["text"].tolist(), load_embedder("minilm"), load_contrast("general")
        self.plain, self.framed = self.statements("{text}"), self.statements(self.contrast.frame)
        self.axis, self.axis_framed = fit_axis(self.plain), fit_axis(self.framed)

    def statements(self, frame: str) -> np.ndarray:
        lines = self.contrast.statements
        return self.embedder.embed([frame.replace("{text}", one) for line in lines for one in line]).astype(float).reshape(len(lines), len(lines[0]), -1)

    def parts(self, split, frame: str = "{text}") -> _Parts:
        parts = [split(text) for text in self.texts]
        vectors = self.embedder.embed([frame.replace("{text}", part) for one in parts for part in one]).astype(float)
        return _Parts(vectors, np.repeat(np.arange(len(parts)), [len(one) for one in parts]), len(parts))

    def ideas(self, frame: pd.DataFrame):
        "Yield (idea, scores, pmf)."
        whole = self.embedder.embed(self.texts).astype(float)
        for label, anchors in (("published, four shipped sets", [one.anchors for one in Rater("satisfaction").reference_sets]), ("published, three plain sets", PLAIN)):
            pmf = pmfs(similarities(whole, self.embedder.embed([a for one in anchors for a in one]).reshape(len(anchors), 5, -1)))
            yield label, pmf @ np.arange(1, 6), pmf
        axis = self.axis
        told = lambda score, axis=axis: scale_pmf(axis.intercept + axis.slope * score, axis.width, 5)
        score = axis.place(whole)
        yield "1 contrast axis, whole text", score, told(score)
        parts = self.parts(sentences)
        places, count = axis.place(parts.vectors), np.bincount(parts.text)
        mean = parts.pool(places) / np.sqrt(count)
        yield "2 … of sentences, their mean", mean, told(mean)
        base = parts.pool(places)
        yield "3 … their sum over the root of their number", base, told(base)
        framed = self.parts(sentences, self.contrast.frame)
        places_framed = self.axis_framed.place(framed.vectors)
        pooled = framed.pool(places_framed)
        yield "4 … in the frame 'I feel that …'", pooled, told(pooled, self.axis_framed)
        small = self.parts(phrases, self.contrast.frame)
        pooled_small = small.pool(self.axis_framed.place(small.vectors))
        yield "  phrases alone, in the frame", pooled_small, told(pooled_small, self.axis_framed)
        both = (pooled + pooled_small) / 2
        yield "5 … and phrases: contrast", both, told(both, self.axis_framed)
        company = learn_company(framed, places_framed)
        learned = framed.pool(framed.vectors @ company.direction - company.neutral)
        joined = company.scale * (both + COMPANY * learned)
        yield "6 … and company: contrast_corpus", joined, told(joined, self.axis_framed)
        yield "  company in equal parts", both / both.std() + learned / learned.std(), None
        x, grade = (self.plain - self.plain.mean(axis=1, keepdims=True)).reshape(-1, whole.shape[1]), np.tile(np.linspace(-1, 1, 5), len(self.plain))
        def again(idea, places): return idea, parts.pool(places), None
        yield again("3 with ridge regression on the statements", (parts.vectors - self.plain.mean(axis=(0, 1))) @ ridge(x, grade, 10))
        flat = self.plain.reshape(-1, whole.shape[1])
        kernel = lambda a: np.exp(4 * (a @ flat.T - 1))
        yield again("3 with kernel ridge on the statements", kernel(parts.vectors) @ np.linalg.solve(kernel(flat) + np.eye(len(flat)), grade))
        covariance = np.cov(parts.vectors.T)
        yield again("3 with the axis whitened by the corpus", (parts.vectors - parts.vectors.mean(axis=0)) @ np.linalg.solve(covariance + np.trace(covariance) / len(covariance) * np.eye(len(covariance)), axis.direction))
        top = np.linalg.svd(self.plain.mean(axis=1) - self.plain.mean(axis=(0, 1)), full_matrices=False)[2][:10]
        yield again("3 without the 10 main components of the subjects", axis.place(parts.vectors - parts.vectors @ top.T @ top))
        yield again("3 centred on the corpus", places - places.mean())
        yield again("3 with saturation (tanh)", np.tanh(8 * places))
        yield again("3 with the low parts twice", np.where(places < 0, 2 * places, places))
        last = np.r_[np.flatnonzero(np.diff(parts.text)), len(parts.text) - 1]
        yield again("3 with the last sentence twice", places + np.isin(np.arange(len(places)), last) * places)
        yield "3 with the whole text as one part more", (parts.pool(places) * np.sqrt(count) + score) / np.sqrt(count + 1), None
        for size in (10, 40):
            few = fit_axis(self.plain[np.random.default_rng(0).permutation(len(self.plain))[:size]])
            yield again(f"3 with {size} of the {len(self.plain)} subjects", few.place(parts.vectors))
        train = frame["half"].to_numpy() == 0
        summed = np.stack([parts.pool(column) for column in parts.vectors.T], axis=1)
        target = frame["rating"].astype(float).to_numpy()
        yield "trained: ridge on sentences, half 0", summed @ ridge(summed[train], target[train] - target[train].mean(), 10), None
        rows = np.flatnonzero(train)[:200]
        rated = CalibratedRater.fit([self.texts[row] for row in rows], target[rows], ContrastRater("satisfaction")).rate(self.texts)
        yield "contrast, calibrated on 200 texts of half 0", rated.mean, rated.pmf


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--rows", type=int, help="at most so many rows of a data set")
    arguments.add_argument("--half", type=int, default=1, help="the half to report; 2 is both")
    arguments.add_argument("--out", type=Path, help="a CSV file for the table")
    asked = arguments.parse_args()
    columns = {}
    for name in GROUPS:
        frame = load(asked.folder, name, asked.rows)
        shown = (frame["half"] == asked.half).to_numpy() | (asked.half == 2)
        human = frame[[f"n{r}" for r in range(1, 6)]].to_numpy(float) if name == "restaurant_cebab" else None
        for idea, scores, pmf in Bench(frame).ideas(frame):
            columns.setdefault(name, {})[idea] = spearmanr(scores[shown], frame["rating"].astype(float)[shown]).statistic
            if human is not None and pmf is not None: columns.setdefault("KS similarity", {})[idea] = ks_similarity(pmf[shown], human[shown] / human[shown].sum(axis=1, keepdims=True)).mean()
        print(f"{name}: {shown.sum()} of {len(frame)} rows reported", flush=True)
    table = pd.DataFrame(columns).round(3)
    print(table.to_string(na_rep=""))
    if asked.out: table.to_csv(asked.out, index_label="idea")


if __name__ == "__main__": main()
