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
from ssr_nb.raters import Axis, CalibratedRater, ContrastRater, _Parts, fit_axis, learn_company, load_contrast, phrases, scale_pmf, sentences
from ssr_nb.rating import Rater, load_embedder, pmfs, similarities

GROUPS = {"restaurant_cebab": "original_id", "clothing_reviews": "id", "coffee_notes": "respondent"}
PLAIN = [["It was terrible.", "It was bad.", "It was okay.", "It was good.", "It was excellent."],
         ["I am very dissatisfied.", "I am dissatisfied.", "I am neither satisfied nor dissatisfied.", "I am satisfied.", "I am very satisfied."],
         ["I hated it.", "I disliked it.", "I neither liked nor disliked it.", "I liked it.", "I loved it."]]
MORE = [  # tried beside the shipped statements and left out: negations, hedges, both sides
    ["It disappointed me in every way.", "It disappointed me a little.", "It neither disappointed nor delighted me.", "It did not disappoint.", "It did not disappoint for one second, I was delighted!"],
    ["I can't recommend it to anyone.", "I can't really recommend it.", "I can recommend it with reservations.", "I can recommend it.", "I can't recommend it enough!"],
    ["I have nothing but complaints.", "I have a few complaints.", "I have one small complaint, otherwise it was fine.", "I can't complain.", "I have absolutely no complaints, it was superb."],
    ["I would never buy it again, not even for free.", "I would not buy it again.", "I'm not sure that I would buy it again.", "I would buy it again.", "I would buy it again in a heartbeat!"],
    ["Not worth a penny.", "Not worth the money.", "Worth the money if it's on sale.", "Worth the money.", "Worth so much more than it cost!"],
    ["It's pretty, but so badly made that I hate it.", "It's nice, but not for me, so I sent it back.", "It's nice, but nothing special.", "It's not perfect, but I like it.", "It's not perfect, but I love it all the same!"],
    ["I expected a lot and got rubbish.", "I expected more.", "I got what I expected.", "I got more than I expected.", "I never expected it to be this wonderful!"],
    ["Don't bother.", "I'd think twice about it.", "Give it a try if you are curious.", "Give it a try, you won't regret it.", "You have to try this, it's incredible!"],
    ["I was disgusted.", "I wasn't impressed.", "It was neither impressive nor poor.", "I was impressed.", "I was blown away!"],
    ["Never again.", "Once was enough.", "Once in a while is fine.", "I look forward to the next time.", "I can't get enough of it!"],
    ["It was nothing but trouble.", "It was more trouble than it's worth.", "It was a little trouble, but worth it.", "It was no trouble at all.", "It was effortless and a delight."],
    ["Less than one star if I could.", "I wanted to give more stars, but it let me down.", "It would have been more stars if not for a few flaws.", "One small thing keeps it from being perfect.", "Ten stars if I could!"],
    ["Everything about it was wrong.", "The good doesn't make up for the bad.", "The good and the bad even out.", "The good makes up for the bad.", "There is only good and no bad."],
    ["I sent it straight back, it was awful.", "Sadly, it has to go back.", "I'm on the fence about keeping it.", "It's a keeper.", "It's definitely a keeper, I adore it!"],
    ["I'm appalled.", "I'm a little let down.", "I'm okay with it.", "I'm glad I got it.", "I'm obsessed with it!"],
    ["It was nowhere near good enough.", "It could have been better.", "It was good enough.", "It was better than good enough.", "It couldn't have been any better!"],
    ["I was sick of it at once.", "I soon got tired of it.", "I don't mind it.", "I like it more every time.", "I love it more every day!"],
    ["All of it was bad, from the first thing to the last.", "One thing was good, the rest was not.", "Half of it was good and half of it was not.", "One thing was not so good, the rest was great.", "All of it was great, from the first thing to the last!"],
    ["It made me miserable.", "It made me uncomfortable.", "It left me cold.", "It made me smile.", "It made me so happy that I could sing!"],
    ["It's hideous in person.", "It looked better in the picture than in person.", "It looks the same in person as in the picture.", "It looks even better in person.", "It's even more gorgeous in person!"],
]


def number(key: str) -> int: return int(sha256(f"half {key}".encode()).hexdigest(), 16)


def load(folder: Path, name: str, rows: int | None) -> pd.DataFrame:
    "A data set with `half`, in the order of a hash, at most `rows` of it."
    frame = pd.read_csv(next(folder.glob(f"{name}*.csv")), keep_default_na=False, dtype={"original_id": str})
    if name == "coffee_notes": frame = frame[frame["n_words"].astype(int) >= 8]
    keys = frame[GROUPS[name]].astype(str)
    order = np.array([sha256(key.encode()).hexdigest() for key in keys])
    return frame.assign(half=[number(key) % 2 for key in keys]).iloc[np.argsort(order, kind="stable")][:rows].reset_index(drop=True)


def ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray: return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


def power(parts: _Parts, scores: np.ndarray, exponent: float) -> np.ndarray:
    "The parts' sum over a power of their number."
    return np.bincount(parts.text, scores, parts.n) / np.bincount(parts.text, minlength=parts.n) ** exponent


def predicted(parts: _Parts, scores: np.ndarray, exponent: float = .5) -> np.ndarray:
    "The direction (d,) that predicts the other parts' scores, not yet weighted."
    count = np.bincount(parts.text, minlength=parts.n)[parts.text]
    used = count > 1
    others = (np.bincount(parts.text, scores, parts.n)[parts.text] - scores)[used] / (count[used] - 1) ** exponent
    return ridge(parts.vectors[used] - parts.vectors.mean(axis=0), others - others.mean(), 10)


class Bench:
    "One data set's parts, embedded, and the scores by each idea."
    def __init__(self, frame: pd.DataFrame):
        self.texts, self.embedder, self.contrast = frame["text"].tolist(), load_embedder("minilm"), load_contrast("general")
        self.plain, self.framed = self.statements("{text}"), self.statements(self.contrast.frame)
        self.axis, self.axis_framed = fit_axis(self.plain), fit_axis(self.framed)

    def statements(self, frame: str, more: list[list[str]] = []) -> np.ndarray:
        lines = [*self.contrast.statements, *more]
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
        mean = power(parts, places, 1)
        yield "2 … of sentences, their mean", mean, told(mean)
        base = parts.pool(places)
        yield "3 … their sum over n to the .7", base, told(base)
        for exponent in (0, .5): yield f"3 with n to the {exponent}", power(parts, places, exponent), told(power(parts, places, exponent))
        framed, small = self.parts(sentences, self.contrast.frame), self.parts(phrases, self.contrast.frame)
        read = (framed, small)
        def both(axis: Axis, directions=(0, 0)):
            return sum(one.pool(axis.place(one.vectors) + (one.vectors - framed.vectors.mean(axis=0)) @ (np.zeros(whole.shape[1]) + extra)) for one, extra in zip(read, directions)) / 2
        axis = self.axis_framed
        for label, one in (("4 … in the frame 'I feel that …'", framed), ("  phrases alone, in the frame", small)):
            pooled = one.pool(axis.place(one.vectors))
            yield label, pooled, told(pooled, axis)
        score_5 = both(axis)
        yield "5 … and phrases: contrast", score_5, told(score_5, axis)
        places_framed = axis.place(framed.vectors)
        company = learn_company(framed, places_framed)
        score_6 = company.scale * both(axis, [company.direction] * 2)
        yield "6 … and company: contrast_corpus", score_6, told(score_6, axis)
        alone = predicted(framed, places_framed)
        weight = np.linalg.norm(company.direction) / np.linalg.norm(alone)
        print(f"  the weight of company is {weight:.2f}", flush=True)
        for fixed in (.5, 1, 2): yield f"6 with the weight {fixed} for every corpus", both(axis, [fixed * alone] * 2), None
        yield "6 for sentences only", both(axis, (company.direction, 0)), None
        yield "6 with phrases that learn from phrases", both(axis, (company.direction, weight * predicted(small, axis.place(small.vectors)))), None
        yield "6 predicting the others' mean", both(axis, [weight * predicted(framed, places_framed, 1)] * 2), None
        again_direction = predicted(framed, places_framed + (framed.vectors - framed.vectors.mean(axis=0)) @ company.direction)
        yield "6 learned a second time from its own scores", both(axis, [weight * again_direction] * 2), None
        yield "6 and the unframed sentences, half as much", score_6 / score_6.std() + base / base.std() / 2, None
        yield "6 and the whole text, a quarter as much", score_6 / score_6.std() + score / score.std() / 4, None
        grown = fit_axis(self.statements(self.contrast.frame, MORE))
        yield "5 with 20 more lines (negations, both sides)", both(grown), None
        yield "6 with 20 more lines (negations, both sides)", both(grown, [learn_company(framed, grown.place(framed.vectors)).direction] * 2), None
        def turned(direction: np.ndarray) -> np.ndarray:
            direction = direction / np.linalg.norm(direction) * np.sign(direction @ axis.direction)
            return both(Axis(direction, float(self.framed.mean(axis=(0, 1)) @ direction), axis.slope, axis.intercept, axis.width))
        yield "5 with graded weights of the statements", turned((self.framed * np.arange(-2, 3)[:, None]).mean(axis=(0, 1))), None
        yield "5 with the first component of the lines' differences", turned(np.linalg.svd((self.framed * np.array([-1, -1, 0, 1, 1])[:, None]).mean(axis=1), full_matrices=False)[2][0]), None
        x, grade = (self.plain - self.plain.mean(axis=1, keepdims=True)).reshape(-1, whole.shape[1]), np.tile(np.linspace(-1, 1, 5), len(self.plain))
        def again(idea, places): return idea, parts.pool(places), None
        yield again("3 with ridge regression on the statements", (parts.vectors - self.plain.mean(axis=(0, 1))) @ ridge(x, grade, 10))
        flat = self.plain.reshape(-1, whole.shape[1])
        kernel = lambda a: np.exp(4 * (a @ flat.T - 1))
        yield again("3 with kernel ridge on the statements", kernel(parts.vectors) @ np.linalg.solve(kernel(flat) + np.eye(len(flat)), grade))
        covariance = np.cov(parts.vectors.T)
        yield again("3 with the axis whitened by the corpus", (parts.vectors - parts.vectors.mean(axis=0)) @ np.linalg.solve(covariance + np.trace(covariance) / len(covariance) * np.eye(len(covariance)), self.axis.direction))
        top = np.linalg.svd(self.plain.mean(axis=1) - self.plain.mean(axis=(0, 1)), full_matrices=False)[2][:10]
        yield again("3 without the 10 main components of the subjects", self.axis.place(parts.vectors - parts.vectors @ top.T @ top))
        yield again("3 centred on the corpus", places - places.mean())
        yield again("3 with saturation (tanh)", np.tanh(8 * places))
        yield again("3 with the low parts twice", np.where(places < 0, 2 * places, places))
        last = np.r_[np.flatnonzero(np.diff(parts.text)), len(parts.text) - 1]
        yield again("3 with the last sentence twice", places + np.isin(np.arange(len(places)), last) * places)
        yield "3 with the whole text as one part more", (mean * count + score) / (count + 1) ** .7, None
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
