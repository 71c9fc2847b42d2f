"""Comparisons over wordings: the test keeps its size, the intervals their level, the components the truth."""

import os
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ssr_nb.summaries import bounded_interval
from ssr_nb.core import InputError
from ssr_nb.experiments import (MOST_FLIPS, capped_interval, compare, holm, paired_differences, paired_t_test, power, sample_size, sign_flip_test, simulate_differences, variance_components,
                                within_persona_permutation)

NULL = dict(effect=0, wording_sd=.15, persona_sd=0, residual_sd=.5, n_respondents=100, samples=2)
SHARE = float(os.environ.get("SOAK", "1"))  # of the long form


def error(share, n): return (share * (1 - share) / n)**.5


def frame(differences, seed=0, samples=2):
    "Ratings of two concepts with these differences, (respondents, wordings), beside what is alike for both."
    generator = np.random.default_rng(seed)
    base = 3 + generator.normal(0, .5, (len(differences), 1, 1)) + generator.normal(0, .4, (1, differences.shape[1], 1))
    noise = generator.normal(0, .2, (*differences.shape, samples))
    noise -= noise.mean(axis=2, keepdims=True)
    respondent, wording, sample = (part.ravel() for part in np.indices(noise.shape))
    return pd.concat([pd.DataFrame({"concept": concept, "wording": wording, "respondent": respondent, "sample": sample, "mean": (base + sign * differences[..., None] / 2 + noise * sign).ravel()})
                      for concept, sign in (("a", 1), ("b", -1))], ignore_index=True)


# the test

@pytest.mark.parametrize("wordings", [6, 8, 11])
def test_every_flip_is_counted(wordings):
    rows = np.random.default_rng(wordings).normal(.1, .2, (20, wordings))
    signs = np.array(list(product([-1, 1], repeat=wordings)))
    wanted = [(np.abs(signs @ row) >= abs(row.sum()) - 1e-12).mean() for row in rows]
    assert np.allclose(sign_flip_test(rows), wanted)
    assert np.allclose(sign_flip_test(-rows), wanted) and np.allclose(sign_flip_test(rows[:, ::-1]), wanted) and np.allclose(sign_flip_test(rows * 1e-6), wanted)


def test_ties_and_nothing_count_as_far():
    assert sign_flip_test(np.zeros(8)) == 1 and sign_flip_test([.1] * 8) == 2 / 256
    assert sign_flip_test([.1, .2, .3, -.1, -.2, -.3]) == 1  # a sum of rounding errors is no difference


def test_many_wordings_are_drawn_with_the_observed_one():
    row = np.random.default_rng(3).normal(.1, .3, 14)
    exact = np.mean([abs(np.dot(signs, row)) >= abs(row.sum()) - 1e-12 for signs in product([-1, 1], repeat=14)])
    drawn = float(sign_flip_test(row))
    assert abs(drawn - exact) < 4 * error(exact, MOST_FLIPS) and drawn == sign_flip_test(row)
    assert sign_flip_test(np.ones(30)) == 1 / (MOST_FLIPS + 1)


@pytest.mark.parametrize("wordings", range(1, 6))
def test_fewer_than_six_wordings_have_no_p(wordings):
    found = compare(frame(np.full((20, wordings), 1.0)))
    assert np.isnan(sign_flip_test(np.ones(wordings))) and found.frame[["p", "p_holm", "power", "detectable"]].isna().all(axis=None)
    assert found.frame["conclusion"][0] == "no test" and any("No test is possible with fewer than 6 wordings" in note for note in found.notes)
    assert found.frame["effect"][0] == pytest.approx(1)


def false_positives(simulations, wordings, seed):
    made = simulate_differences(**NULL, n_wordings=wordings, simulations=simulations, seed=seed)
    return (sign_flip_test(made.mean(axis=1)) <= .05).mean(), (paired_t_test(made) <= .05).mean(), (within_persona_permutation(made) <= .05).mean()


@pytest.mark.parametrize("wordings, size", [(6, 2 / 64), (8, 12 / 256)])
def test_false_positives(wordings, size):
    ours, t_test, within = false_positives(400, wordings, seed=wordings)
    assert abs(ours - size) < 3.3 * error(size, 400)  # the number of flips fixes the size exactly
    assert t_test > .53 - 3.3 * error(.53, 400) and within > .53 - 3.3 * error(.53, 400)


@pytest.mark.soak
@pytest.mark.parametrize("wordings", [6, 8, 12])
def test_false_positives_at_length(wordings):
    n = max(400, int(20_000 * SHARE))
    ours, t_test, within = np.mean([false_positives(400, wordings, seed) for seed in range(n // 400)], axis=0)
    assert ours < .05 + 3 * error(.05, n) and .5 < t_test < .57 and .5 < within < .57


# comparing

def test_a_comparison_is_what_its_numbers_say():
    differences = simulate_differences(.3, .1, .3, .4, 40, 8, 2, 1, seed=1)[0]
    row = compare(frame(differences)).frame.iloc[0]
    means = differences.mean(axis=0)
    assert row["effect"] == pytest.approx(means.mean()) and row["p"] == sign_flip_test(means) and row["same_sign"] == (means > 0).mean()
    assert (row["wordings"], row["respondents"]) == (8, 40) and row["wording_sd"] == pytest.approx(means.std(ddof=1))
    ends = stats.t.interval(.95, 7, means.mean(), means.std(ddof=1) / 8**.5)
    assert np.allclose(row[["low_wordings", "high_wordings"]].astype(float), ends)
    of_respondents = differences.mean(axis=1)
    assert np.allclose(row[["low_respondents", "high_respondents"]].astype(float), stats.t.interval(.95, 39, of_respondents.mean(), of_respondents.std(ddof=1) / 40**.5))
    assert row["low"] <= min(row["low_wordings"], row["low_respondents"]) + .02 and row["high"] - row["low"] < (row["high_wordings"] - row["low_wordings"]) + (row["high_respondents"] - row["low_respondents"])


def test_order_of_rows_and_names_do_not_matter():
    ratings = frame(simulate_differences(.2, .1, .2, .4, 30, 7, 2, 1)[0])
    first, shuffled = compare(ratings).frame, compare(ratings.sample(frac=1, random_state=1).assign(wording=lambda f: f["wording"].map(lambda w: f"w{w}"))).frame
    pd.testing.assert_frame_equal(first, shuffled)


def test_a_weight_counts_like_so_many_respondents():
    differences = simulate_differences(.2, .1, .4, .4, 10, 6, 2, 1)[0]
    weights = np.array([1, 2, 3, 1, 1, 2, 1, 1, 4, 0])
    ratings = frame(differences).assign(weight=lambda f: weights[f["respondent"]].astype(float))
    found, repeated = compare(ratings), compare(frame(np.repeat(differences, weights, axis=0)))
    assert np.allclose(found.by_wording["difference"], repeated.by_wording["difference"]) and found.frame["p"][0] == repeated.frame["p"][0]
    assert found.frame["respondents"][0] == 9 and found.frame["low_respondents"][0] < repeated.frame["low_respondents"][0]  # but they are fewer


def test_answers_that_were_not_scored_are_left_out_with_their_pair():
    differences = simulate_differences(.4, .1, .2, .3, 40, 8, 1, 1)[0]
    ratings = frame(differences, samples=1)
    gone = np.random.default_rng(0).random(len(ratings)) < .2
    found = compare(ratings.assign(mean=ratings["mean"].mask(gone)))
    kept = ~(gone[:320] | gone[320:]).reshape(40, 8)
    assert np.allclose(found.by_wording["difference"], np.where(kept, differences, 0).sum(axis=0) / kept.sum(axis=0))
    assert found.frame["low"][0] < .4 < found.frame["high"][0] and f"{1 - kept.mean():.0%} of the pairs" in found.notes[0]


def test_holm():
    assert np.allclose(holm([.01, .04, .03]), [.03, .06, .06]) and np.allclose(holm([.5, np.nan, .02]), [.5, np.nan, .04], equal_nan=True) and holm([.6, .9]).max() == 1


def test_several_pairs_are_corrected_and_told_when_that_cannot_be_survived():
    parts = [frame(np.full((20, 6), effect) + np.random.default_rng(1).normal(0, .1, (20, 6)))["mean"] for effect in (0, 1)]
    ratings = frame(np.zeros((20, 6)))
    ratings = pd.concat([ratings.assign(mean=parts[0]), ratings.query("concept == 'a'").assign(concept="c", mean=parts[1][:240].to_numpy())])
    found = compare(ratings)
    assert len(found.frame) == 3 and (found.frame["p_holm"] >= found.frame["p"]).all() and found.frame["p_holm"].min() == pytest.approx(3 * 2 / 64)
    assert not found.frame["conclusion"].str.contains("higher").any() and any("at least 7 wordings" in note for note in found.notes)


def test_answers_that_do_not_depend_on_the_wording_are_no_repetition():
    found = compare(frame(np.repeat(np.random.default_rng(0).normal(.2, .3, (20, 1)), 8, axis=1)))
    assert any("no repetition" in note for note in found.notes) and found.frame["low"][0] == pytest.approx(found.frame["low_respondents"][0])


@pytest.mark.parametrize("change, said", [
    (lambda f: f.drop(columns="wording"), "no column 'wording'"), (lambda f: f.query("concept == 'a'"), "single concept 'a'"), (lambda f: f.assign(mean=np.nan), "no concept"),
    (lambda f: f.assign(construct=["x", "y"] * (len(f) // 2)), "several values of construct"), (lambda f: pd.concat([f, f[:1]]), "twice"),
    (lambda f: f.assign(respondent=f["respondent"] + 100 * (f["concept"] == "a")), "no respondent and wording in common")])
def test_what_cannot_be_compared_is_refused(change, said):
    with pytest.raises(InputError, match=said): compare(change(frame(np.ones((5, 6)))))
    with pytest.raises(InputError, match="level is 95"): compare(frame(np.ones((5, 6))), level=95)


def test_it_shows_itself():
    found = compare(frame(np.random.default_rng(0).normal(.5, .2, (20, 8))).replace({"concept": {"a": "<b>A</b>"}}))
    assert "&lt;b&gt;A" in found._repr_html_() and "<b>A" not in found._repr_html_() and "8 of 8" in repr(found)


def coverage(simulations, persona_sd, n=40, wordings=8, seed=0):
    "How often the interval over both holds the true effect, and how often a difference is claimed under the null."
    made = simulate_differences(0, .15, persona_sd, .5, n, wordings, 2, simulations, seed)
    found = pd.concat([compare(frame(one, samples=1)).frame for one in made])
    return ((found["low"] <= 0) & (found["high"] >= 0)).mean(), found["conclusion"].str.contains("higher").mean(), (found["p"] <= .05).mean()


def test_the_interval_counts_respondents_too():
    covered, claimed, alone = coverage(150, persona_sd=.8)
    assert covered > .95 - 3.3 * error(.95, 150) and claimed < .05 + 3.3 * error(.05, 150)
    assert alone > .1  # the flips cannot see that other respondents prefer something else


@pytest.mark.soak
@pytest.mark.parametrize("persona_sd", [0, .3, .8])
def test_the_interval_over_both_at_length(persona_sd):
    n = max(200, int(3000 * SHARE))
    covered, claimed, _ = coverage(n, persona_sd, seed=4)
    assert .95 - 3 * error(.95, n) < covered < .985 and claimed < .05 + 3 * error(.05, n)


def test_the_stated_power_is_the_power():
    found = compare(frame(simulate_differences(.2, .15, 0, .3, 60, 8, 1, 1, seed=5)[0], samples=1), stated_effect=.2).frame.iloc[0]
    again = sign_flip_test(np.random.default_rng(1).normal(.2, found["wording_sd"], (4000, 8))) <= .05
    assert abs(again.mean() - found["power"]) < 3.3 * (error(again.mean(), 4000) + error(again.mean(), 1000))
    four_in_five = (sign_flip_test(np.random.default_rng(1).normal(found["detectable"], found["wording_sd"], (4000, 8))) <= .05).mean()
    assert abs(four_in_five - .8) < 3.3 * (error(.8, 4000) + error(.8, 1000))


# variance components

def crossed(sds, levels, seed):
    "Ratings with crossed random effects; keys are tuples of factor names, the last the residual."
    generator, names = np.random.default_rng(seed), list(levels)
    y = np.full(tuple(levels.values()), 3.0)
    for factors, sd in sds.items(): y = y + sd * generator.standard_normal([levels[name] if name in factors else 1 for name in names])
    return pd.DataFrame(dict(zip(names, (part.ravel() for part in np.indices(y.shape)))) | {"mean": y.ravel()})


TRUTH = {("respondent",): .4, ("wording",): .2, ("respondent", "wording"): .3, ("respondent", "wording", "sample"): .5}
SOURCES = {"respondent": .16, "wording": .04, "respondent × wording": .09, "sample": .25}


@pytest.mark.parametrize("missing", [0, .3])
def test_the_truth_is_recovered(missing):
    found = []
    for seed in range(120):
        ratings = crossed(TRUTH, {"respondent": 25, "wording": 6, "sample": 2}, seed)
        ratings.loc[np.random.default_rng(seed).random(len(ratings)) < missing, "mean"] = np.nan
        found.append(variance_components(ratings).frame.set_index("source")["variance"])
    found = pd.DataFrame(found)
    assert set(found) == set(SOURCES)
    for source, variance in SOURCES.items(): assert abs(found[source].mean() - variance) < 3.5 * found[source].sem(), source


def test_balanced_estimates_are_those_of_anova():
    ratings = crossed(TRUTH, {"respondent": 12, "wording": 5, "sample": 3}, 1)
    y = ratings["mean"].to_numpy().reshape(12, 5, 3)
    cell, row, column, whole = y.mean(axis=2), y.mean(axis=(1, 2)), y.mean(axis=(0, 2)), y.mean()
    of_sample = ((y - cell[..., None])**2).sum() / (12 * 5 * 2)
    of_both = 3 * ((cell - row[:, None] - column + whole)**2).sum() / (11 * 4)
    of_row, of_column = 15 * ((row - whole)**2).sum() / 11, 36 * ((column - whole)**2).sum() / 4
    found = variance_components(ratings)
    wanted = {"sample": of_sample, "respondent × wording": (of_both - of_sample) / 3, "respondent": (of_row - of_both) / 15, "wording": (of_column - of_both) / 36}
    for source, variance in wanted.items(): assert found[source] == pytest.approx(variance, abs=1e-10), source


def test_reference_sets_are_crossed_with_samples():
    sds = {("respondent",): .4, ("wording",): .2, ("reference_set",): .3, ("respondent", "wording", "sample"): .4, ("respondent", "wording", "reference_set", "sample"): .2}
    found = pd.DataFrame([variance_components(crossed(sds, {"respondent": 20, "wording": 6, "reference_set": 4, "sample": 2}, seed)).frame.set_index("source")["variance"] for seed in range(60)])
    truth = {"respondent": .16, "wording": .04, "reference_set": .09, "sample": .16, "residual": .04}
    for source in found: assert abs(found[source].mean() - truth.get(source, 0)) < 3.8 * found[source].sem(), source


def test_without_repeats_the_rest_is_one():
    found = variance_components(crossed({("respondent",): 1, ("respondent", "wording"): .5}, {"respondent": 200, "wording": 6}, 0))
    assert found.frame["source"].tolist() == ["respondent", "wording", "residual"] and found["residual"] == pytest.approx(.25, rel=.15) and found.frame["share"].sum() == pytest.approx(1)


def test_components_plan_the_next_survey():
    sds = {("concept", "respondent"): .3, ("concept", "wording"): .2, ("concept", "respondent", "wording", "sample"): .5}
    found = variance_components(crossed(sds, {"concept": 30, "respondent": 40, "wording": 8, "sample": 2}, 0)).planning(samples=2)
    for name, variance in (("wording_sd", 2 * .04), ("persona_sd", 2 * .09), ("residual_sd", .25)): assert found[name]**2 == pytest.approx(variance, rel=.2), name
    cell = variance_components(crossed({**sds, ("concept", "respondent", "wording"): .4}, {"concept": 30, "respondent": 40, "wording": 8, "sample": 2}, 0)).planning(samples=2)
    assert cell["residual_sd"]**2 == pytest.approx(.25 + 2 * .16, rel=.1)  # more samples do not average out what a respondent makes of a wording
    with pytest.raises(InputError, match="several concepts"): variance_components(crossed(TRUTH, {"respondent": 5, "wording": 5, "sample": 2}, 0)).planning()


def test_ratings_that_cannot_be_decomposed_are_refused():
    ratings = crossed(TRUTH, {"respondent": 6, "wording": 6, "sample": 1}, 0)
    with pytest.raises(InputError, match="do not cross"): variance_components(ratings[ratings["respondent"] == ratings["wording"]])
    with pytest.raises(InputError, match="vary in none"): variance_components(ratings[:1])
    with pytest.raises(InputError, match="twice"): variance_components(pd.concat([ratings, ratings]))


# planning

def test_power_grows_with_wordings_and_hardly_with_respondents():
    found = power(.2, .2, .1, .5, (100, 400), (6, 12), simulations=1000).frame.set_index(["n_respondents", "n_wordings"])["power"]
    assert found[100, 12] > found[100, 6] + .2 and found[400, 6] - found[100, 6] < .1
    assert power(.2, .2, .1, .5, 100, 6, simulations=1000).frame["power"][0] == found[100, 6]  # a design's power does not depend on what else is asked


def test_power_is_of_the_flips_too():
    found = power(1.5, 1, 0, .1, 200, 6, simulations=4000).frame["power"][0]
    every_sign_alike = stats.norm.cdf(1.5)**6  # all that six wordings can find
    assert every_sign_alike - .15 < found < every_sign_alike + 3.3 * error(every_sign_alike, 4000)


@pytest.mark.parametrize("persona_sd", [0, .5])
def test_power_under_the_null_is_at_most_the_level(persona_sd):
    assert (power(0, .15, persona_sd, .5, (30, 100), (6, 8, 15), simulations=1000).frame["power"] <= .05 + 3.3 * error(.05, 1000)).all()


@pytest.mark.soak
def test_planned_power_is_that_of_comparisons():
    n = max(200, int(2000 * SHARE))
    made = simulate_differences(.25, .15, .4, .5, 50, 8, 2, n, seed=8)
    claimed = np.mean([compare(frame(one, samples=1)).frame["conclusion"][0] == "a is rated higher" for one in made])
    planned = power(.25, .15, .4, .5, 50, 8, samples=2, simulations=4000).frame["power"][0]
    assert abs(claimed - planned) < 3 * (error(planned, n) + error(planned, 4000))


def test_sample_size_is_the_cheapest_that_suffices():
    found = sample_size(.25, .15, .3, .5, simulations=1000)
    best = found.cheapest
    assert best["power"] >= .8 and not ((found.frame["answers"] < best["answers"]) & (found.frame["power"] >= .8)).any() and f"{int(best['n_wordings'])} wordings" in repr(found)
    hopeless = sample_size(.05, .3, .3, .5, simulations=200)
    assert hopeless.cheapest is None and "take more wordings" in hopeless._repr_html_()
    for wrong in (dict(n_wordings=5), dict(n_respondents=1), dict(samples=0)):
        with pytest.raises(InputError): power(.2, .1, .1, .5, **{"n_respondents": 50, "n_wordings": 8, **wrong})


# intervals

def interval_coverage(alpha, n, weighted, simulations, seed=0):
    generator = np.random.default_rng([seed, n, weighted])
    points = np.arange(1, 6)
    pmf = generator.dirichlet(alpha, size=(simulations, n))
    weights = np.exp(generator.normal(0, .5, n)) if weighted else np.ones(n)
    covered = []
    for values, truth, bounds in ((pmf @ points, np.dot(alpha, points) / sum(alpha), (1, 5)), (pmf[..., 3:].sum(axis=-1), sum(alpha[3:]) / sum(alpha), (0, 1))):
        ends = bounded_interval(values, weights, bounds)
        assert (ends[:, 0] >= bounds[0]).all() and (ends[:, 1] <= bounds[1]).all() and (ends[:, 0] < ends[:, 1]).all()
        covered.append(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean())
    return covered


@pytest.mark.parametrize("alpha", [(1, 2, 3, 3, 2), (2, 1, .4, .2, .2), (10, 20, 40, 20, 10)], ids=["even", "skewed", "narrow"])
@pytest.mark.parametrize("n", [30, 60, 200])
@pytest.mark.parametrize("weighted", [False, True])
def test_intervals_keep_their_level(alpha, n, weighted):
    for covered in interval_coverage(alpha, n, weighted, 2000): assert .93 - 3 * error(.93, 2000) < covered < .97 + 3 * error(.97, 2000)


@pytest.mark.soak
@pytest.mark.parametrize("alpha", [(1, 2, 3, 3, 2), (2, 1, .4, .2, .2), (10, 20, 40, 20, 10)], ids=["even", "skewed", "narrow"])
@pytest.mark.parametrize("n", [30, 60, 120, 200])
@pytest.mark.parametrize("weighted", [False, True])
def test_intervals_keep_their_level_at_length(alpha, n, weighted):
    covered = np.mean([interval_coverage(alpha, n, weighted, 2000, seed) for seed in range(max(1, int(10 * SHARE)))], axis=0)
    assert ((.93 < covered) & (covered < .97)).all(), covered


def test_one_number_for_all_is_a_share_of_its_own():
    assert bounded_interval(np.zeros(30), np.ones(30)) == pytest.approx([0, 1 - .025**(1 / 30)]) and bounded_interval(np.ones(30), np.ones(30)) == pytest.approx([.025**(1 / 30), 1])
    assert bounded_interval(np.full(30, .4), np.ones(30)) == pytest.approx([.4, .4])
    values, weights = np.random.default_rng(0).random(20), np.r_[np.ones(15), np.zeros(5)]
    assert np.allclose(bounded_interval(values, weights), bounded_interval(values[:15], np.full(15, 7.0)))
    assert np.isnan(bounded_interval(values, np.eye(20)[0])).all()  # one respondent says nothing about spread


def test_the_interval_is_a_t_interval_on_the_logit():
    values, weights = np.array([1.5, 2, 2.5, 4, 3, 1.2]), np.array([1, 2, 1, 1, 3, 1.0])
    share = weights / weights.sum()
    mean = share @ values
    place, error_of_mean = (mean - 1) / 4, (6 / 5 * (share**2 * (values - mean)**2).sum())**.5
    half = stats.t.ppf(.95, 1 / (share**2).sum() - 1) * error_of_mean / 4 / (place * (1 - place))
    wanted = [1 + 4 / (1 + np.exp(-(np.log(place / (1 - place)) + sign * half))) for sign in (-1, 1)]
    assert bounded_interval(values, weights, (1, 5), level=.9) == pytest.approx(wanted)


def test_ten_thousand_answers_promise_no_more_than_sixty():
    values = np.random.default_rng(0).dirichlet([1, 2, 3, 3, 2], 10_000) @ np.arange(1, 6)
    narrow = bounded_interval(values, np.ones(10_000), (1, 5))
    wide = capped_interval(values.mean(), narrow, 10_000, bounds=(1, 5))
    assert np.ptp(narrow) < .03 and np.ptp(wide) == pytest.approx(np.ptp(narrow) * (10_000 / 60)**.5)
    assert np.allclose(capped_interval(.5, (.4, .6), 60), (.4, .6)) and np.allclose(capped_interval([.01, .5], [(.005, .02), (.45, .55)], [6000, 30]), [(0, .11), (.45, .55)])
    for wrong in (dict(effective_n=0), dict(n_respondents=0)):
        with pytest.raises(InputError): capped_interval(**{"value": .5, "interval": (.4, .6), "n_respondents": 60, **wrong})


def test_differences_are_paired_by_respondent_and_wording():
    ratings = pd.DataFrame({"concept": list("aabbab"), "wording": [0, 0, 0, 0, 1, 1], "respondent": [1, 1, 1, 2, 2, 2], "mean": [4, 2, 1, 5, 3, 1.5]})
    found = paired_differences(ratings, "a", "b")
    assert found.loc[1, 0] == 2 and found.loc[2, 1] == 1.5 and found.isna().sum().sum() == 2
