"""The method against golden values, exact fractions, the reference implementation, and its properties."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ssr_nb.core import InputError
from ssr_nb.rating import Rater, Ratings, peakedness, pmfs, similarities, text_status

REFERENCE = json.loads((Path(__file__).parent / "data/reference_pmfs.dev.json").read_text())
NAMES = list(REFERENCE["reference_sets"])


@pytest.mark.parametrize("case", REFERENCE["expected"], ids=lambda c: f"{c['reference_set']}-T{c['temperature']}-eps{c['epsilon']}")
def test_reference_implementation(case):
    answers = np.array(REFERENCE["text_embeddings"], dtype=np.float32)
    names = NAMES if case["reference_set"] not in NAMES else [case["reference_set"]]
    anchors = np.array([REFERENCE["reference_embeddings"][name] for name in names], dtype=np.float32)
    found = pmfs(similarities(answers, anchors), case["temperature"], case["epsilon"])
    assert np.abs(found - np.array(case["pmfs"])).max() < 1e-5
    assert np.abs(found.sum(axis=1) - 1).max() < 1e-12


def exact(cosines: list[Fraction], epsilon: Fraction) -> list[Fraction]:
    gamma = [(1 + c) / 2 for c in cosines]
    least = gamma.index(min(gamma))
    mass = [g - gamma[least] + (epsilon if r == least else 0) for r, g in enumerate(gamma)]
    return [m / sum(mass) for m in mass]


@given(st.lists(st.fractions(-1, 1, max_denominator=500), min_size=2, max_size=9), st.fractions(0, 1, max_denominator=100))
def test_exact_fractions(cosines, epsilon):
    if max(cosines) - min(cosines) < Fraction(1, 1000): return
    found = pmfs(np.array([[[float(c) for c in cosines]]]), ssr_epsilon=float(epsilon))[0]
    assert np.abs(found - np.array([float(p) for p in exact(cosines, epsilon)])).max() < 1e-12


shapes = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(2, 8))
cosine_stacks = shapes.flatmap(lambda shape: arrays(np.float64, shape, elements=st.floats(-1, 1, width=32)))
temperatures = st.one_of(st.just(0.0), st.floats(1e-4, 50))


@given(cosine_stacks, temperatures, st.floats(0, 2))
def test_rows_are_distributions(cosines, temperature, epsilon):
    found = pmfs(cosines, temperature, epsilon)
    assert (found >= 0).all() and np.abs(found.sum(axis=1) - 1).max() < 1e-12


@given(cosine_stacks, st.floats(.1, 5), st.floats(-2, 2))
def test_affine_maps_change_nothing_at_epsilon_0(cosines, stretch, shift):
    ranges = np.ptp(cosines, axis=2)
    if ((ranges > 0) & (ranges < 1e-3)).any(): return  # near the threshold of flatness a stretch may cross it
    assert np.abs(pmfs(stretch * cosines + shift) - pmfs(cosines)).max() < 1e-9


@given(cosine_stacks, temperatures, st.randoms())
def test_order_of_respondents_and_sets(cosines, temperature, random):
    rows, sets = list(range(cosines.shape[0])), list(range(cosines.shape[1]))
    random.shuffle(rows), random.shuffle(sets)
    found = pmfs(cosines)
    assert np.array_equal(pmfs(cosines[rows]), found[rows])
    assert np.abs(pmfs(cosines[:, sets]) - found).max() < 1e-12


@pytest.mark.parametrize("epsilon", [0, .1])
def test_flat_sets_are_uniform(epsilon):
    flat, lively = np.full((1, 1, 5), .4), np.array([[[.2, .3, .5, .7, .8]]])
    assert np.allclose(pmfs(flat + np.linspace(0, 9e-7, 5), ssr_epsilon=epsilon), .2, atol=1e-15)
    both = np.concatenate([flat, lively], axis=1)
    assert np.allclose(pmfs(both, ssr_epsilon=epsilon), (.2 + pmfs(lively, ssr_epsilon=epsilon)) / 2)


@pytest.mark.parametrize("temperature", [1e-3, 1e-8, 1e-300, 1e300])
def test_extreme_temperatures(temperature):
    found = pmfs(np.array([[[.2, .3, .5, .7, .8]]]), temperature)[0]
    assert np.isfinite(found).all() and abs(found.sum() - 1) < 1e-12 and found.argmax() >= 1
    if temperature < 1: assert np.allclose(found, [0, 0, 0, 0, 1], atol=1e-15)


def test_temperature_0_takes_the_first_of_ties_and_keeps_uniform_rows():
    assert np.array_equal(pmfs(np.array([[[0, .5, .5]]]), 0)[0], [0, 1, 0])
    assert np.array_equal(pmfs(np.full((1, 2, 4), .3), 0)[0], [.25] * 4)


@pytest.mark.parametrize("name", ["ssr_temperature", "ssr_epsilon"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1", None, True])
def test_bad_parameters_are_named(name, value):
    with pytest.raises(ValueError, match=name): pmfs(np.zeros((1, 1, 5)), **{name: value})


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_vectors_without_direction_are_refused_with_their_row(bad):
    answers = np.ones((4, 3))
    answers[2] = bad
    with pytest.raises(ValueError, match="answers row 2"): similarities(answers, np.ones((1, 2, 3)))
    with pytest.raises(ValueError, match="anchors row 1"): similarities(np.ones((1, 3)), np.array([[[1., 1, 1], [bad] * 3]]))


@pytest.mark.parametrize("answers, anchors", [((2, 3), (2, 3)), ((2, 3), (1, 2, 4)), ((2,), (1, 2, 3)), ((2, 3), (1, 1, 3))])
def test_shapes_are_checked(answers, anchors):
    with pytest.raises(InputError): similarities(np.ones(answers), np.ones(anchors))


def test_similarities_keep_the_input_dtype_in_the_product():
    generator = np.random.default_rng(0)
    answers, anchors = generator.normal(size=(50, 20)), generator.normal(size=(3, 5, 20))
    wide, narrow = similarities(answers, anchors), similarities(answers.astype(np.float32), anchors.astype(np.float32))
    assert wide.dtype == narrow.dtype == np.float64 and wide.shape == (50, 3, 5)
    normal = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
    assert np.abs(wide - np.einsum("nd,mkd->nmk", normal(answers), normal(anchors))).max() < 1e-14
    assert 0 < np.abs(wide - narrow).max() < 1e-6


def test_unscored_rows_are_nan_and_no_mean_sees_them():
    cosines = np.array([[[.2, .3, .5, .7, .8]], [[np.nan] * 5], [[.4] * 5]])
    ratings = Ratings(cosines, np.array(["ok", "refusal", "ok"]), ())
    assert list(ratings.status) == ["ok", "refusal", "uninformative"]
    assert np.isnan(ratings.pmf[1:]).all() and np.isnan(ratings.mean[1:]).all() and np.isnan(ratings.peakedness[1:]).all()
    with pytest.raises(InputError, match="row 0"): pmfs(np.array([[[.1, np.nan, .3]]]))


@settings(max_examples=50)
@given(cosine_stacks)
def test_peakedness_is_between_0_and_1(cosines):
    found = peakedness(pmfs(cosines))
    assert ((0 <= found) & (found <= 1)).all()
    assert np.isclose(peakedness(np.array([[.2] * 5])), 0) and np.isclose(peakedness(np.eye(5)[:1]), 1)


@pytest.mark.parametrize("text, status", [
    ("4", "numeric"), ("four", "numeric"), ("4 / 5", "numeric"), ("3-4", "numeric"), ("Rating: 4.5/5", "numeric"), ("My answer is 3.", "numeric"), ("90 percent", "numeric"),
    ("**4**", "numeric"), ("I would give it a 7 out of 10.", "numeric"), ("5 stars", "numeric"),
    ("5 stars, I love it", "ok"), ("100 % cotton", "ok"), ("One for me!", "ok"), ("I'd buy 2", "ok"), ("Nope", "ok"), ("N/A", "ok"), ("4 people in my family would use it", "ok"),
    ("  ", "empty"), (None, "empty"), ("—", "empty"),
    ("As an AI language model, I cannot have preferences.", "refusal"), ("I'm sorry, but I cannot help with that.", "refusal"), ("I am a language model and do not buy things.", "refusal"),
    ("I can't pretend to be a consumer.", "refusal"), ("I can't afford it.", "ok"), ("I cannot help but love it", "ok"), ("It's made by an AI company", "ok"),
])
def test_text_status(text, status): assert text_status(text) == status


def test_rater_rates_without_a_language_model():
    ratings = Rater("satisfaction", scale_points=7).rate(["I hated it.", "It was fine.", "I loved every minute of it!"])
    assert ratings.pmf.shape == (3, 7) and (np.diff(ratings.mean) > 0).all()
    with pytest.raises(InputError, match="single text"): Rater("trust").rate("one text")
    assert len(Rater("trust").rate([])) == 0
