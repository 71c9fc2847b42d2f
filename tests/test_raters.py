"""The raters beside the published one: parts, axis, pmf, statuses, what a corpus teaches, calibration, and people's texts where they are there."""

import os
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import ssr_nb.raters
from ssr_nb.core import InputError
from ssr_nb.raters import (FEWEST_TEXTS, RATERS, CalibratedRater, Contrast, ContrastRater, _Parts, contrasts, describe, fit_axis, learn_company, load_contrast,
                           load_rater, phrases, scale_pmf, sentences)
from ssr_nb.rating import Rated, Rater
from ssr_nb.scales import constructs

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("SSR_HUMAN_DATA", "nowhere"))  # a folder of public texts that people rated
WORDS = ["dreadful", "rather poor", "acceptable", "rather nice", "marvellous"]
THINGS = ["soup", "chair", "film", "hotel", "phone", "jacket", "garden", "game", "bread", "train", "lamp", "song", "cake", "boat"]
TEXTS = [f"The {thing} was {word}." for thing in THINGS for word in WORDS]
LABELS = np.tile([1, 2, 3, 4, 5], len(THINGS))


@pytest.fixture(scope="module")
def rater(): return load_rater("contrast")


@pytest.fixture(scope="module")
def calibrated(rater): return CalibratedRater.fit(TEXTS, LABELS, rater)


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_parts_lose_no_word(text):
    letters = lambda t: sorted(c for c in t.replace("and", "").replace("AND", "") if c.isalpha())
    for split in (sentences, phrases):
        parts = split(text)
        assert parts and all(isinstance(part, str) for part in parts)
        if " and " not in text.lower() and any(c.isalpha() for c in text): assert set(letters(" ".join(parts))) == set(letters(text))


@pytest.mark.parametrize("text, wanted", [
    ("Good. Bad!", ["Good.", "Bad!"]),
    ("The soup was hot,and the staff were kind", ["The soup was hot", "the staff were kind"]),
    ("I liked it, but the price is too high", ["I liked it", "but the price is too high"]),
    ("Nice, cheap, easy to use", ["Nice, cheap", "easy to use"]),
    ("It costs 3.50 a cup", ["It costs 3.50 a cup"]),
    ("great fit.love it", ["great fit", "love it"]),
])
def test_phrases(text, wanted): assert phrases(text) == wanted


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(.01, 3), st.integers(2, 11))
def test_scale_pmf_is_a_distribution_that_rises(shares, width, points):
    pmf = scale_pmf(np.sort(shares), width, points)
    assert pmf.shape == (len(shares), points) and (pmf >= 0).all() and np.abs(pmf.sum(axis=1) - 1).max() < 1e-12
    assert (np.diff(pmf @ np.arange(points)) > -1e-9).all()


def test_scale_pmf_is_symmetric():
    assert np.allclose(scale_pmf(np.array([.2]), .3, 5), scale_pmf(np.array([.8]), .3, 5)[:, ::-1])


def test_an_axis_is_found_and_its_units_too():
    generator = np.random.default_rng(0)
    true = np.eye(20)[3]
    vectors = generator.normal(size=(200, 1, 20)) * (1 - true) + np.linspace(-2, 2, 5)[:, None] * true + generator.normal(size=(200, 5, 20)) * .1
    axis = fit_axis(vectors)
    assert axis.direction @ true > .98 and np.isclose(np.linalg.norm(axis.direction), 1)
    assert abs(axis.intercept + axis.slope * axis.place(true[None] * 2)[0] - 1) < .1 and axis.width < .15
    with pytest.raises(InputError, match="do not rise|do not differ"): fit_axis(np.broadcast_to(generator.normal(size=(30, 1, 20)), (30, 5, 20)))


def test_statuses_and_shapes(rater):
    texts = ["4/5", "", None, "As an AI language model, I cannot.", "I love it", "...", "I hate it"]
    rated = rater.rate(texts)
    assert isinstance(rated, Rated) and list(rated.status) == ["numeric", "empty", "empty", "refusal", "ok", "empty", "ok"] == list(Rater("satisfaction").rate(texts).status)
    scored = rated.status == "ok"
    assert np.isnan(rated.pmf[~scored]).all() and np.isnan(rated.scores[~scored]).all() and np.abs(rated.pmf[scored].sum(axis=1) - 1).max() < 1e-12
    assert rated.similarities.shape == (7, 0, 5) and rated.reference_sets == () and list(rated.frame()) == ["status", "mean", *(f"p{r}" for r in range(1, 6)), "peakedness"]
    assert len(rater.rate([])) == 0 and rater.rate(["4/5"]).pmf.shape == (1, 5)
    with pytest.raises(InputError, match="give a list"): rater.rate("I love it")


def test_a_text_without_information_is_uninformative(rater):
    silent = ContrastRater("satisfaction")
    class Flat:
        name = identity = "flat"
        def embed(self, texts): return np.tile(np.eye(384)[:1], (len(texts), 1))
    axis = silent.axis
    silent.embedder = Flat()
    silent.__dict__["axis"] = type(axis)(np.eye(384)[1], 0.0, axis.slope, axis.intercept, axis.width)
    rated = silent.rate(["Something.", "5/5"])
    assert list(rated.status) == ["uninformative", "numeric"] and np.isnan(rated.pmf).all()


def test_each_text_by_itself(rater):
    together, alone = rater.rate(TEXTS[:10]).pmf, np.vstack([rater.rate([text]).pmf for text in TEXTS[:10]])
    assert np.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("points", [2, 3, 7, 11])
def test_any_scale(points):
    pmf = load_rater("contrast", scale_points=points).rate(["I hate it. Never again.", "I love it. Perfect!"]).pmf
    assert pmf.shape == (2, points) and (pmf @ np.arange(points))[0] < (points - 1) / 2 < (pmf @ np.arange(points))[1]


def test_ladder_of_answers_written_before(rater):
    from scipy.stats import spearmanr
    answers = yaml.safe_load((ROOT / "reference_sets/ladders/satisfaction.yaml").read_text())["answers"]
    texts, grades = [one["text"] for one in answers], [one["grade"] for one in answers]
    assert not set(texts) & {one for line in load_contrast("general").statements for one in line}
    assert spearmanr(rater.rate(texts).mean, grades).statistic > .80


def test_shipped_contrasts_load_and_are_no_constructs():
    assert contrasts() == ["general"] and "general" not in constructs()
    for name in contrasts(): assert set(load_contrast(name).constructs) <= set(constructs())
    assert "ssr_nb.data.reference_sets.contrasts" in (ROOT / "pyproject.toml").read_text()


LINES = [["bad a", "good a"], ["bad b", "good b"], ["bad c", "good c"]]


@pytest.mark.parametrize("change, message", [
    ({"statements": LINES[:2]}, "at least 3"), ({"statements": [*LINES, ["one"]]}, "same number"), ({"statements": [*LINES[:2], ["bad c", " "]]}, "empty statement"),
    ({"statements": [*LINES[:2], ["bad a", "good c"]]}, "twice"), ({"frame": "I feel"}, "where the text goes"),
])
def test_contrasts_are_checked(change, message):
    with pytest.raises(InputError, match=message): Contrast(**{"name": "mine", "constructs": ("trust",), "statements": LINES, **change})


@pytest.mark.parametrize("content, message", [("[1, 2]", "other fields"), ("constructs: [trust]", "no list 'statements'"), ("constructs: [trust]\nstatements: [one]", "no list: write"), ("a: b: c", "not YAML")])
def test_contrast_files_are_checked(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(InputError, match=message): load_contrast(tmp_path / "mine.yaml")
    with pytest.raises(InputError, match="does not exist"): load_contrast(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="choose one of general"): load_contrast("none")


def test_a_contrast_of_ones_own(tmp_path):
    lines = [[f"I don't trust the {thing} at all.", f"I trust the {thing} completely."] for thing in ("maker", "label", "claim", "shop")]
    (tmp_path / "trust.yaml").write_text(yaml.safe_dump({"constructs": ["trust"], "statements": lines}))
    low, high = ContrastRater("trust", contrast=tmp_path / "trust.yaml").rate(["I think they lie to us.", "I believe every word they say."]).mean
    assert low < high


@pytest.mark.parametrize("wrong, message", [({"construct": "trust"}, "statements are about satisfaction"), ({"locale": "de"}, "written in 'en'"), ({"name": "best"}, "choose one of contrast, contrast_corpus, ssr"),
                                            ({"ssr_temperature": .5}, "has no such parameter"), ({"ssr_epsilon": .1}, "has no such parameter"), ({"scale_points": 1}, "at least 2")])
def test_load_rater_refuses(wrong, message):
    with pytest.raises(InputError, match=message): load_rater(**{"name": "contrast", **wrong})


def test_load_rater_gives_each():
    assert set(RATERS) == {"ssr", "contrast", "contrast_corpus"} and isinstance(load_rater(), Rater) and load_rater("contrast", locale="en-GB").company is None
    assert np.array_equal(load_rater("ssr").rate(TEXTS[:5]).pmf, Rater("satisfaction").rate(TEXTS[:5]).pmf)
    assert load_rater("contrast_corpus").corpus and not load_rater("contrast").corpus


class Toy:
    "Embeds by words: the first axis is what statements know, the second what only this corpus says."
    name = identity = "toy"
    def embed(self, texts):
        vectors = np.full((len(texts), 6), .1) + np.array([[hash_of(text, j) for j in range(6)] for text in texts]) * .02
        for row, text in enumerate(texts):
            vectors[row, 0] += ("good" in text) - 1. * ("bad" in text)
            vectors[row, 1] += ("zesty" in text) - 1. * ("muddy" in text)
        return vectors


def hash_of(text, j): return sum(map(ord, text)) * (j + 3) % 17 / 17


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(ssr_nb.raters, "load_embedder", lambda name: Toy())
    def make(**options): return ContrastRater("trust", contrast=Contrast("toy", ("trust",), LINES), **options)
    return make


def corpus(n=300):
    generator = np.random.default_rng(1)
    high = generator.random(n) < .5
    return [f"It is {'zesty' if up else 'muddy'} number {i}. So it is {'good' if up else 'bad'}." for i, up in enumerate(high)]


def test_a_corpus_teaches_its_own_words(toy):
    new = ["It is muddy.", "It is zesty."]
    plain, learned = toy().rate(new).scores, toy().adapted(corpus()).rate(new).scores
    assert learned[1] - learned[0] > abs(plain[1] - plain[0]) + .3
    together = toy(corpus=True).rate(corpus() + new)
    assert together.scores[-1] - together.scores[-2] > abs(plain[1] - plain[0]) + .3
    assert np.allclose(toy().adapted(corpus()).rate(new).pmf[0], toy().adapted(corpus()).rate(new[:1]).pmf[0])


def test_a_small_corpus_is_refused(toy):
    with pytest.raises(InputError, match=f"needs {FEWEST_TEXTS}"): toy(corpus=True).rate(corpus(FEWEST_TEXTS - 1))
    with pytest.raises(InputError, match=f"has 0 text.* needs {FEWEST_TEXTS}"): toy(corpus=True).rate(["One sentence."] * 500)
    toy(corpus=True).rate(corpus(FEWEST_TEXTS))


def test_company_counts_less_where_sentences_agree_already():
    generator = np.random.default_rng(2)
    text = np.repeat(np.arange(400), 3)
    vectors = generator.normal(size=(1200, 8))
    def weight(agreement):
        scores = np.sqrt(agreement) * generator.normal(size=400)[text] + np.sqrt(1 - agreement) * generator.normal(size=1200) + 1e-3 * vectors[:, 0]
        learned = learn_company(_Parts(np.c_[vectors, scores], text, 400), scores)
        return learned.direction[-1] / agreement
    assert weight(.2) > 3 * weight(.6) > 0


def test_texts_that_all_say_the_same_teach_nothing(toy):
    with pytest.raises(InputError, match="say the same"): toy(corpus=True).rate(["It is good. It is good."] * FEWEST_TEXTS)


def test_many_parts_count_for_more_than_one_and_less_than_their_sum():
    one, three = _Parts(np.ones((4, 1)), np.array([0, 1, 1, 1]), 2).pool(np.ones(4))
    assert one == 1 < three < np.sqrt(3)


def test_calibration_learns_the_level_and_keeps_the_order(rater):
    harsh = np.maximum(LABELS - 2, 1)
    calibrated = CalibratedRater.fit(TEXTS, harsh, rater)
    rated, base = calibrated.rate(TEXTS), rater.rate(TEXTS)
    assert abs(rated.mean.mean() - harsh.mean()) < .05 < base.mean.mean() - harsh.mean()
    assert (np.diff(rated.mean[np.argsort(base.scores)]) > -1e-9).all()
    assert np.abs(rated.pmf.sum(axis=1) - 1).max() < 1e-12 and (rated.pmf > 0)[:, :3].all() and np.allclose(rated.pmf[:, 3:], 0)
    assert isinstance(rated, Rated) and list(calibrated.rate(["5/5", "good"]).status) == ["numeric", "ok"] and np.isnan(calibrated.rate(["5/5"]).pmf).all()


@pytest.mark.parametrize("name", ["ssr", "contrast"])
def test_calibration_is_saved_without_texts_and_read_again(name, tmp_path):
    made = CalibratedRater.fit(TEXTS, LABELS, load_rater(name))
    path = made.save(tmp_path / "map.json")
    content = json.loads(path.read_text())
    assert content["n"] == len(TEXTS) and len(content["data"]) == 64 and not any(thing in path.read_text() for thing in THINGS)
    again = CalibratedRater.load(path)
    assert np.array_equal(again.rate(TEXTS[:7]).pmf, made.rate(TEXTS[:7]).pmf) and again.n == made.n and again.data == made.data
    with pytest.raises(InputError, match="another rater"): CalibratedRater.load(path, load_rater({"ssr": "contrast", "contrast": "ssr"}[name]))
    with pytest.raises(InputError, match="another scale_points"): CalibratedRater.load(path, load_rater(name, scale_points=7))
    content["base"]["contrast" if name == "contrast" else "reference_sets"] = "other"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="was made with another"): CalibratedRater.load(path)


def test_calibration_of_an_adapted_rater(toy, tmp_path):
    texts = corpus(60)
    base = toy().adapted(corpus())
    made = CalibratedRater.fit(texts, [5 if "good" in text else 2 for text in texts], base)
    again = CalibratedRater.load(made.save(tmp_path / "map.json"), toy().adapted(corpus()))
    assert np.array_equal(made.rate(texts).pmf, again.rate(texts).pmf)
    with pytest.raises(InputError, match="another company"): CalibratedRater.load(tmp_path / "map.json", toy())
    with pytest.raises(InputError, match="adapted"): describe(toy(corpus=True))


@pytest.mark.parametrize("texts, ratings, message", [
    (TEXTS[:49], LABELS[:49], "at least 50"), (TEXTS[:49] + ["5/5"] * 9, [3] * 58, "at least 50"), (TEXTS, LABELS[:-1], "one rating a text"),
    (TEXTS, LABELS + .5, "whole numbers"), (TEXTS, LABELS - 1, "row 0 is 0"), (TEXTS, LABELS[::-1], "do not rise"), (TEXTS, [3] * len(TEXTS), "do not rise")])
def test_calibration_refuses(rater, texts, ratings, message):
    with pytest.raises(InputError, match=message): CalibratedRater.fit(texts, ratings, rater)


def test_calibration_files_are_checked(tmp_path):
    for content, message in (("{", "not JSON"), ("[]", "schema 1"), ('{"schema": 2}', "schema 1")):
        (tmp_path / "map.json").write_text(content)
        with pytest.raises(InputError, match=message): CalibratedRater.load(tmp_path / "map.json")
    with pytest.raises(InputError, match="does not exist"): CalibratedRater.load(tmp_path / "none.json")


@pytest.mark.soak
@pytest.mark.skipif(not SHARED.is_dir(), reason="people's texts are not here")
@pytest.mark.parametrize("name, least, gain", [("restaurant_cebab", .81, .05), ("clothing_reviews", .52, .15), ("coffee_notes", .47, .03)])
def test_people_are_read_better_than_by_the_published_method(name, least, gain):
    from scipy.stats import spearmanr
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from better_rating import load
    frame = load(SHARED, name, 1500)
    texts, human = frame["text"].tolist(), frame["rating"].astype(float)
    new, old = (load_rater(rater).rate(texts) for rater in ("contrast", "ssr"))
    reached = spearmanr(new.mean, human, nan_policy="omit").statistic
    assert reached >= least and reached >= spearmanr(old.mean, human, nan_policy="omit").statistic + gain
    if name == "restaurant_cebab":
        from ssr_nb.fidelity import ks_similarity
        people = frame[[f"n{r}" for r in range(1, 6)]].to_numpy(float)
        similar = [ks_similarity(one.pmf, people / people.sum(axis=1, keepdims=True)).mean() for one in (new, old)]
        assert similar[0] > similar[1] + .05
