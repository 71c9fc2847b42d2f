"""Agreement with people: golden values, ceilings in simulation, edges, and texts beside ratings."""

import os

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ssr_nb import fidelity as module
from ssr_nb.agreement import agreement, by_point, calibration, choices, confusion, majority, one_person
from ssr_nb.core import InputError
from ssr_nb.fidelity import HALF, POOLED, UNIFORM, by_segment, contrasts, correlation_attainment, fidelity, halves_of_counts, halves_of_ratings, ks_similarity, wasserstein

SHARE = float(os.environ.get("SOAK", "1"))


def world(surveys=57, n=200, spread=.168, seed=0, k=5):
    "True distributions and the counts of people's answers to each."
    generator = np.random.default_rng(seed)
    truth = np.exp(np.outer(generator.normal(0, spread, surveys), np.arange(k) - (k - 1) / 2)) * np.linspace(1, 1.6, k)
    truth /= truth.sum(axis=1, keepdims=True)
    return truth, np.array([generator.multinomial(n, row) for row in truth])


def mean(pmf): return pmf @ np.arange(1, pmf.shape[1] + 1)
def values(table): return table.set_index("measure")["value"]


def marginals(rows, letter, group="all", level="all"):
    return pd.DataFrame(rows, columns=[f"{letter}{r}" for r in range(1, rows.shape[1] + 1)]).assign(item_id=[f"i{i}" for i in range(len(rows))], group_var=group, group_level=level)


# distributions

@pytest.mark.parametrize("k", [2, 3, 5, 7, 11])
def test_distances_are_those_of_scipy(k):
    p, q = np.random.default_rng(k).dirichlet(np.ones(k), (2, 20))
    points = np.arange(1, k + 1)
    assert np.allclose(wasserstein(p, q), [stats.wasserstein_distance(points, points, a, b) for a, b in zip(p, q)])
    assert np.allclose(ks_similarity(p, q), 1 - np.abs(p.cumsum(axis=1) - q.cumsum(axis=1)).max(axis=1)) and np.allclose(ks_similarity(p, p), 1) and np.allclose(ks_similarity(p, q), ks_similarity(q, p))


@pytest.mark.parametrize("p, said", [([[.5, .6]], "sum to 1"), ([[np.nan, 1]], "row 0"), ([[-.1, 1.1]], "row 0"), ([[1.0]], "k of at least 2"), ([[.2, .3, .5]], "same points")])
def test_what_is_no_distribution_is_refused(p, said):
    with pytest.raises(InputError, match=said): ks_similarity(p, [[.5, .5]])


# the ranking

def test_a_perfect_panel_passes_one_by_the_root_of_the_ceiling():
    found = pd.DataFrame([values(correlation_attainment(mean(truth), counts=counts, splits=100, resamples=1)) for truth, counts in (world(seed=seed) for seed in range(60))]).mean()
    assert abs(found["ceiling"] - found["attainment"]**-2) < .01 and abs(found["disattenuated"] - 1) < .01


def test_at_the_ceiling_of_the_paper_perfection_is_112_percent():
    truth, counts = world(surveys=20_000, n=60, spread=.272, seed=1)
    found = values(correlation_attainment(mean(truth), counts=counts, splits=4, resamples=1))
    assert found["ceiling"] == pytest.approx(.80, abs=.01) and found["attainment"] == pytest.approx(1.118, abs=.01) and found["disattenuated"] == pytest.approx(1, abs=.005)


def test_the_figures_follow_from_the_splits():
    truth, counts = world(30, 100, seed=3)
    guess = mean(truth) + np.random.default_rng(0).normal(0, .1, 30)
    halves = halves_of_counts(counts, 300, seed=7)
    r = lambda a, b: np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(np.broadcast_to(a, b.shape), b)])
    xy, xx, raw = r(guess, halves.first), r(halves.first, halves.second), np.corrcoef(guess, halves.whole)[0, 1]
    wanted = {"r": raw, "r_half": xy, "ceiling": xx, "ceiling_spearman_brown": 2 * xx / (1 + xx), "attainment": xy / xx, "attainment_spearman_brown": raw / (2 * xx / (1 + xx)), "disattenuated": xy / xx**.5}
    found = values(correlation_attainment(guess, counts=counts, splits=300, seed=7))
    assert all(np.isclose(found[name], value) for name, value in wanted.items())
    assert np.allclose(halves.first * 50 + halves.second * 50, halves.whole * 100)


def test_respondents_and_their_counts_have_the_same_ceiling():
    truth, _ = world(25, spread=.4, seed=5)
    generator = np.random.default_rng(5)
    ratings = np.array([generator.choice(5, 400, p=row) + 1 for row in truth]).T.astype(float)
    counts = np.array([np.bincount(column.astype(int), minlength=6)[1:] for column in ratings.T])
    by_people, by_counts = (values(correlation_attainment(mean(truth), splits=300, **given)) for given in ({"ratings": ratings}, {"counts": counts}))
    assert abs(by_people["ceiling"] - by_counts["ceiling"]) < .01 and np.isclose(by_people["r"], by_counts["r"])
    ratings[generator.random(ratings.shape) < .3] = np.nan
    weighted = halves_of_ratings(ratings, 20, weights=np.full(400, 3.0))
    assert np.allclose(weighted.whole, np.nanmean(ratings, axis=0)) and np.allclose(weighted.first, halves_of_ratings(ratings, 20).first)


def test_respondents_who_like_everything_do_not_lower_the_ceiling_as_independent_answers_would():
    truth, _ = world(25, spread=.25, seed=6)
    generator = np.random.default_rng(6)
    taste = generator.normal(0, 1.5, (150, 1))
    ratings = np.clip(np.round(mean(truth) + taste + generator.normal(0, .4, (150, 25))), 1, 5)
    counts = np.array([np.bincount(column.astype(int), minlength=6)[1:] for column in ratings.T])
    assert values(correlation_attainment(mean(truth), ratings=ratings, splits=200))["ceiling"] > values(correlation_attainment(mean(truth), counts=counts, splits=200))["ceiling"] + .05


def test_intervals_over_items_cover_the_truth():
    rounds, hits = max(20, int(120 * min(1, SHARE))), 0
    target = values(correlation_attainment(mean(world(4000, seed=99)[0]), counts=world(4000, seed=99)[1], splits=20, resamples=1))["r"]
    for seed in range(rounds):
        truth, counts = world(40, seed=seed + 500)
        low, high = correlation_attainment(mean(truth), counts=counts, splits=20, resamples=300).set_index("measure").loc["r", ["low", "high"]]
        hits += low <= target <= high
    assert hits / rounds > .84


@pytest.mark.parametrize("means, counts, measure, said", [
    ([3.0] * 6, world(6)[1], "r", "rank nothing"), (range(6), np.tile([20, 20, 20], (6, 1)), "attainment", "no ranking to find"), ([3.0], world(1)[1], "attainment", "at least 3"), ([3.0, 4.0], world(2)[1], "r", "at least 3")])
def test_what_cannot_be_measured_is_nan_with_a_sentence(means, counts, measure, said):
    row = correlation_attainment(list(means), counts=counts, splits=20).set_index("measure").loc[measure]
    assert np.isnan(row["value"]) and np.isnan(row["low"]) and said in row["note"]


def test_people_who_do_not_agree_leave_nothing_to_attain():
    found = [correlation_attainment(np.arange(8.0), counts=np.random.default_rng(seed).multinomial(3, [.2] * 5, size=8), splits=200).set_index("measure") for seed in range(30)]
    table = next(one for one in found if one["value"]["ceiling"] <= 0)
    assert np.isnan(table["value"]["attainment"]) and "do not agree" in table["note"]["attainment"] and np.isfinite(table["value"]["r"])


@pytest.mark.parametrize("given, said", [({}, "both missing"), ({"counts": [[1, 2]], "ratings": [[1.0]]}, "both given"), ({"counts": [[1, 0], [5, 5], [5, 5]]}, "fewer than 2"), ({"counts": [[1.5, 2]]}, "whole numbers"), ({"counts": [[-1, 4]]}, "counts no people"),
                                         ({"counts": world(4)[1]}, "one mean an item"), ({"ratings": np.full((2, 3), np.nan)}, "few answered"), ({"counts": world(3)[1], "splits": 0}, "splits is 0"), ({"counts": world(3)[1], "weights": [1]}, "weights")])
def test_inputs_that_cannot_be_honoured_are_one_sentence(given, said):
    with pytest.raises(InputError, match=said): correlation_attainment([1.0, 2.0, 3.0], **given)


# a panel and its baselines

def test_the_table_has_every_source_and_explains_every_gap():
    truth, counts = world(20, spread=.4)
    table = fidelity(marginals(counts, "c"), {"panel": marginals(truth, "p"), "no persona": marginals(np.full_like(truth, .2), "p")}, splits=100, resamples=200)
    found = table.set_index(["source", "measure"])["value"]
    assert set(table["source"]) == {"panel", "no persona", POOLED, UNIFORM, HALF} and table["note"][table["value"].isna()].ne("").all()
    assert found["panel", "ks_similarity"] > found[HALF, "ks_similarity"] > found[POOLED, "ks_similarity"] and np.isclose(found["no persona", "ks_similarity"], found[UNIFORM, "ks_similarity"])
    assert np.isnan(found[POOLED, "r"]) and np.isclose(found[POOLED, "bias"], 0, atol=1e-12)
    shares = counts / counts.sum(axis=1, keepdims=True)
    assert np.isclose(found["panel", "mean_absolute_error"], np.abs(mean(truth) - mean(shares)).mean()) and np.isclose(found["panel", "wasserstein"], wasserstein(truth, shares).mean())
    again = fidelity(marginals(counts, "c"), {"panel": marginals(truth, "p"), "no persona": marginals(np.full_like(truth, .2), "p")}, splits=100, resamples=200)
    pd.testing.assert_frame_equal(table, again)


def test_the_pool_of_the_other_items_runs_against_people_and_is_therefore_not_ranked():
    shares = world(12)[1] / 200
    assert np.corrcoef(mean(module.pooled_others(shares)), mean(shares))[0, 1] == pytest.approx(-1)


@pytest.mark.parametrize("items, k", [(1, 5), (2, 2), (12, 2), (12, 7)])
def test_few_items_and_few_points(items, k):
    truth, counts = world(items, k=k)
    table = fidelity(marginals(counts, "c"), {"panel": marginals(truth, "p")}, splits=20, resamples=50)
    assert np.isfinite(values(table[table["source"] == "panel"])["ks_similarity"]) and table["note"][table["value"].isna()].ne("").all()
    if items < 5: assert table["low"].isna().all()


@pytest.mark.parametrize("change, said", [(lambda c, p: (c, p.assign(item_id="else")), "twice"), (lambda c, p: (c, p.assign(item_id=[f"x{i}" for i in range(6)])), "no item of all"), (lambda c, p: (c.drop(columns="item_id"), p), "no column 'item_id'"),
                                          (lambda c, p: (c, p.drop(columns="p5")), "on one scale"), (lambda c, p: (c, p.rename(columns={"p1": "q1"})), "no columns 'p1'"), (lambda c, p: (pd.concat([c, c]), p), "twice")])
def test_frames_that_do_not_fit_are_one_sentence(change, said):
    truth, counts = world(6)
    human, panel = change(marginals(counts, "c"), marginals(truth, "p"))
    with pytest.raises(InputError, match=said): fidelity(human, {"panel": panel}, splits=5)


def test_segments_are_compared_where_both_have_them():
    truth, counts = world(10, spread=.4)
    human = pd.concat([marginals(counts, "c"), *(marginals(counts, "c", "age", level) for level in ("old", "young"))])
    panel = pd.concat([marginals(truth, "p"), marginals(truth, "p", "age", "young")])
    table = by_segment(human, {"panel": panel}, splits=20, resamples=20)
    assert set(table["group_level"]) == {"young"} and by_segment(human, {"panel": marginals(truth, "p")}).empty


def test_contrasts_are_blind_to_levels_and_see_directions():
    truth, _ = world(15, spread=.4)
    tilt = lambda pmf, by: (lambda moved: moved / moved.sum(axis=1, keepdims=True))(pmf * np.exp(by[:, None] * np.arange(5)))
    liking = np.random.default_rng(0).normal(0, .3, 15)
    human = pd.concat([marginals(np.round(1e6 * tilt(truth, sign * liking)), "c", "age", level) for sign, level in ((1, "young"), (-1, "old"))])
    same, other = (pd.concat([marginals(tilt(np.tile(truth[:1], (15, 1)), way * sign * liking), "p", "age", level) for sign, level in ((1, "young"), (-1, "old"))]) for way in (.3, -.3))
    assert contrasts(human, same)["value"].iloc[0] > .95 and contrasts(human, other)["value"].iloc[0] < -.95
    flat = pd.concat([marginals(truth, "p", "age", level) for level in ("young", "old")])
    assert np.isnan(contrasts(human, flat)["value"].iloc[0]) and "no difference" in contrasts(human, flat)["note"].iloc[0] and contrasts(human, marginals(truth, "p")).empty


# asked again

def test_retest_figures_are_the_textbook_s():
    first, second = np.array([9, 6, 8, 7, 10, 6.0]), np.array([2, 1, 4, 1, 5, 2.0])  # two judges of Shrout and Fleiss (1979)
    found = values(module.test_retest(first, second))
    pair = np.column_stack([first, second])
    between, rounds = 2 * pair.mean(axis=1).var(ddof=1), 6 * pair.mean(axis=0).var(ddof=1)
    rest = ((pair - pair.mean(axis=1, keepdims=True) - pair.mean(axis=0) + pair.mean())**2).sum() / 5
    assert found["icc"] == pytest.approx((between - rest) / (between + rest + 2 * (rounds - rest) / 6)) and found["pearson"] == pytest.approx(np.corrcoef(first, second)[0, 1]) and found["mean_difference"] == pytest.approx(-31 / 6)
    constant = module.test_retest([3, 3, 3], [1, 2, 3]).set_index("measure")
    assert np.isnan(constant["value"]["pearson"]) and constant["note"]["pearson"]
    for wrong in (([1], [2]), ([1, 2], [1, 2, 3]), ([np.nan, 1], [1, np.nan])):
        with pytest.raises(InputError): module.test_retest(*wrong)


# texts beside ratings

@pytest.fixture(scope="module")
def read():
    generator = np.random.default_rng(1)
    human = generator.choice(5, 600, p=[.08, .1, .15, .25, .42]) + 1
    pmf = np.exp(-.5 * (np.arange(1, 6) - np.clip(3 + .6 * (human - 3) + generator.normal(0, .8, 600), 1, 5)[:, None])**2)
    return human, pmf / pmf.sum(axis=1, keepdims=True)


def test_text_figures_by_hand(read):
    human, pmf = read
    mode = pmf.argmax(axis=1) + 1
    found = values(agreement(human, pmf))
    assert found["spearman"] == pytest.approx(stats.spearmanr(mean(pmf), human).statistic) and found["exact"] == pytest.approx((mode == human).mean()) and found["within_one"] == pytest.approx((abs(mode - human) <= 1).mean())
    assert found["balanced_accuracy"] == pytest.approx(np.mean([(mode[human == r] == r).mean() for r in range(1, 6)])) and found["bias"] == pytest.approx((mean(pmf) - human).mean())
    matrix = confusion(human, pmf)
    assert matrix.sum() == 600 and np.trace(matrix) / 600 == pytest.approx(found["exact"])


def test_bootstrapped_spearman_is_that_of_the_drawn_texts(read):
    human, pmf = read
    rows = np.random.default_rng(3).integers(0, 600, (300, 600))
    drawn = [stats.spearmanr(mean(pmf)[row], human[row]).statistic for row in rows]
    low, high = agreement(human, pmf, resamples=300).set_index("measure").loc["spearman", ["low", "high"]]
    assert abs(low - np.percentile(drawn, 2.5)) < .015 and abs(high - np.percentile(drawn, 97.5)) < .015


def test_a_guess_is_a_guess(read):
    human, pmf = read
    uniform, common = values(agreement(human, np.full_like(pmf, .2))), values(agreement(human, majority(human, 5)))
    assert uniform["exact"] == pytest.approx(.2) and uniform["balanced_accuracy"] == pytest.approx(.2) and np.isnan(uniform["spearman"])
    assert common["exact"] == pytest.approx(np.bincount(human).max() / 600) and common["balanced_accuracy"] == pytest.approx(.2)


def test_texts_without_a_rating_are_left_out_and_told(read):
    human, pmf = read[0].astype(float), read[1].copy()
    pmf[:100] = np.nan
    human[:100] = 99  # nobody looks
    table = agreement(human, pmf)
    assert (table["n"] == 500).all() and "100 text(s)" in table["note"].iloc[0] and values(table)["exact"] == values(agreement(human[100:], pmf[100:]))["exact"]
    with pytest.raises(InputError, match="none of 600"): agreement(human, np.full_like(pmf, np.nan))
    for wrong in (0, 6, 2.5, np.nan):
        with pytest.raises(InputError, match="whole numbers from 1 to 5"): agreement([wrong, 2], np.full((2, 5), .2))


@pytest.mark.parametrize("rule", ["mode", "median", "mean"])
@pytest.mark.parametrize("k", [2, 5, 7])
def test_points_are_chosen_whole(rule, k):
    pmf = np.random.default_rng(k).dirichlet(np.ones(k), 50)
    picked = choices(pmf, rule)
    assert np.allclose(picked.sum(axis=1), 1) and set(np.unique(picked)) == {0.0, 1.0}
    with pytest.raises(InputError, match="point_rule 'best'"): choices(pmf, "best")


def test_one_person_is_taken_out_of_the_raters():
    counts = np.random.default_rng(0).multinomial(5, [.1, .2, .3, .2, .2], size=400)
    counts[:2] = [[0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    one, median, others = one_person(counts, seed=1)
    assert np.isnan(one[:2]).all() and ((counts - others)[2:].sum(axis=1) == 1).all() and (others >= 0).all()
    assert np.allclose(one[2:].mean(axis=0), counts[2:].sum(axis=0) / counts[2:].sum(), atol=.08)
    assert median[5] == np.sort(np.repeat(np.arange(1, 6), others[5].astype(int)))[1]


def test_calibration_of_a_calibrated_rater_is_the_diagonal():
    generator = np.random.default_rng(0)
    pmf = generator.dirichlet(np.ones(5), 6000)
    human = (pmf.cumsum(axis=1) > generator.random((6000, 1))).argmax(axis=1) + 1
    table = calibration(human, pmf, bins=8)
    assert np.abs(table["read"] - table["people"]).max() < .15 and ((table["low"] <= table["read"]) & (table["read"] <= table["high"])).mean() >= .75 and table["n"].sum() == 6000
    constant = calibration(human, np.full((6000, 5), .2))
    assert len(constant) == 1 and constant["people"].iloc[0] == pytest.approx(human.mean())
    assert by_point(np.array([1, 1, 3]), np.full((3, 3), 1 / 3))["n"].tolist() == [2, 0, 1]
