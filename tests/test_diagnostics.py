"""Diagnostics: each check fires on its fault, keeps quiet without it, and says when it cannot tell."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from conftest import ROOT
from ssr_nb import diagnostics
from ssr_nb.core import InputError
from ssr_nb.diagnostics import Finding, collapse, compression, diagnose, drift, failures, findings_table, near_duplicates, positivity, representativeness, sensitivity
from ssr_nb.personas import Panel, us_targets

POPULATION = {"gender": {"female": .51, "male": .49}, "region": {"Northeast": .17, "Midwest": .21, "South": .39, "West": .23}, "age": {"18-34": .29, "35-54": .32, "55+": .39}, "income": {"low": .16, "middle": .47, "high": .37}}


def draw(generator, n, shares): return {name: dict(zip(levels, generator.multinomial(n, list(levels.values())))) for name, levels in shares.items()}


def test_fair_panels_are_left_alone():
    generator = np.random.default_rng(7)
    flagged = [any(one.flag for one in representativeness(draw(generator, 100, POPULATION), POPULATION)) for _ in range(1500)]
    assert np.mean(flagged) <= .055  # the true rate is 4.6 %; two standard errors of 1,500 panels are 1.1 points
    assert np.mean([any(one.flag for one in representativeness({name: Panel.us_adults(100, seed).frame[name].value_counts().to_dict() for name in us_targets()}, us_targets())) for seed in range(150)]) <= .05


@pytest.mark.parametrize("name", POPULATION)
def test_panels_ten_points_off_are_found(name):
    generator, (first, *rest) = np.random.default_rng(8), POPULATION[name]
    off = {first: POPULATION[name][first] + .1, **{level: POPULATION[name][level] * (1 - .1 / (1 - POPULATION[name][first])) for level in rest}}
    found = [next(one for one in representativeness(draw(generator, 400, {**POPULATION, name: off}), POPULATION) if name in one.name).flag for _ in range(300)]
    assert np.mean(found) >= .9


def test_size_matters_as_well_as_significance():
    exact = {"gender": {"female": 540_000, "male": 460_000}}
    (found,) = representativeness(exact, {"gender": {"female": .51, "male": .49}})
    assert not found.flag and np.isclose(abs(found.value), .03) and found.mend == "nothing to mend"
    (found,) = representativeness({"gender": {"female": 5, "male": 1}}, {"gender": {"female": .51, "male": .49}})
    assert not found.flag and abs(found.value) > .3
    (found,) = representativeness({"gender": {"female": 90, "male": 5, "missing": 5}}, {"gender": {"female": .51, "male": .49}})
    assert found.flag and found.interval[0] < found.value < found.interval[1] and "rake" in found.mend
    (found,) = representativeness({}, {"gender": {"female": .51, "male": .49}})
    assert not found.flag and "no gender" in found.what
    with pytest.raises(InputError, match="sum to 2"): representativeness({}, {"gender": {"female": 1, "male": 1}})


def test_p_values_are_those_of_scipy():
    generator = np.random.default_rng(1)
    for _ in range(20):
        wanted = generator.dirichlet([5, 5, 5])
        seen = generator.multinomial(300, wanted).astype(float)
        if (300 * wanted).min() >= 5: assert np.isclose(diagnostics._p_value(seen, wanted, 0), stats.chisquare(seen, 300 * wanted).pvalue)
        assert np.isclose(diagnostics._p_value(seen[:2], wanted[:2] / wanted[:2].sum(), 0), stats.binomtest(int(seen[0]), int(seen[:2].sum()), wanted[0] / wanted[:2].sum()).pvalue)
    wanted = np.array([.1, .3, .6])  # 12 respondents: too few for chi-square, so the distribution is drawn; the sum over all outcomes is the truth
    seen = np.array([4., 2., 6.])
    outcomes = [(i, j, 12 - i - j) for i in range(13) for j in range(13 - i)]
    statistic = lambda one: ((np.array(one) - 12 * wanted)**2 / (12 * wanted)).sum()
    exact = sum(stats.multinomial.pmf(one, 12, wanted) for one in outcomes if statistic(one) >= statistic(seen) - 1e-9)
    assert np.isclose(diagnostics._p_value(seen, wanted, 0), exact, atol=.015)
    assert diagnostics._holm([.01, .04, .03, .005]) == pytest.approx([.03, .06, .06, .02]) and diagnostics._holm([]) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2000), st.floats(0, 1))
def test_wilson_is_scipys(n, share):
    lost = round(share * n)
    found = failures(["refusal"] * lost + ["ok"] * (n - lost))[0]
    assert np.allclose(found.interval, stats.binomtest(lost, n).proportion_ci(method="wilson"), atol=1e-6) and found.flag == (lost / n > .05)


def test_failures_are_counted_by_kind():
    found = {one.name: one for one in failures(["ok"] * 90 + ["refusal"] * 5 + ["numeric"] * 6 + ["empty", "truncated", "filtered", "error"] * 3)}
    assert [one.flag for one in found.values()] == [False, True, True] and "prompt" in found["numeric answers"].mend
    assert not failures([])[0].flag


def answers(mean, sd=.4, people=100, samples=2, noise=.2, seed=1):
    generator = np.random.default_rng(seed)
    return (np.repeat(generator.normal(mean, sd, people), samples) + generator.normal(0, noise, people * samples)).clip(1, 5), np.repeat(np.arange(people), samples)


def test_positivity():
    assert positivity(*answers(4.2)).flag and not positivity(*answers(3.2)).flag
    kind = positivity(*answers(3.9), reference=3.4)
    assert kind.flag and kind.interval[0] < kind.value < kind.interval[1] and abs(kind.value - .5) < .1
    assert positivity(*answers(2.9), reference=3.4).flag and not positivity(*answers(3.5), reference=3.4).flag
    assert not positivity(*answers(3.4), reference=3.3).flag  # sure, and too small to matter
    ratings, who = answers(3.4)
    weights = np.where(np.arange(100) < 50, 1.9, .1)
    shifted = ratings + np.where(who < 50, 1, 0)
    means = pd.Series(shifted).groupby(who).mean()
    assert np.isclose(positivity(shifted, who, reference=3, weights=weights).value, np.average(means, weights=weights) - 3)
    few = positivity(np.array([4., np.nan, 5, 5]), np.array([0, 1, 2, 2]))
    assert not few.flag and np.isnan(few.value) and "2 respondents" in few.what


def test_intervals_cover():
    generator = np.random.default_rng(2)
    covered = []
    for seed in range(150):
        ratings, who = generator.normal(3, .5, 60), np.arange(60)
        low, high = positivity(ratings, who, reference=2.5).interval
        covered.append(low <= .5 <= high)
    assert .88 <= np.mean(covered) <= .99


def test_repeating_answers_narrows_nothing():
    ratings, who = answers(3.2, samples=1)
    one, many = positivity(ratings, who, reference=3), positivity(np.tile(ratings, 5), np.tile(who, 5), reference=3)
    assert np.allclose(one.interval, many.interval)
    assert np.allclose(compression(ratings, who, reference_sd=1).interval, compression(np.tile(ratings, 5), np.tile(who, 5), reference_sd=1).interval)


def test_compression():
    ratings, who = answers(3.2, sd=.3, noise=0)
    found = compression(ratings, who, reference_sd=.6)
    assert found.flag and np.isclose(found.value, .5, atol=.1) and found.interval[0] < found.value < found.interval[1] < 1
    assert not compression(ratings, who, reference_sd=.32).flag
    verdictless = compression(ratings, who)
    assert not verdictless.flag and "no verdict" in verdictless.what and np.isclose(verdictless.value, pd.Series(ratings).groupby(who).mean().std())
    shifted = np.r_[ratings, ratings + 2]  # two concepts a point apart: the spread within each is what counts
    assert np.isclose(compression(shifted, np.r_[who, who], np.repeat(["a", "b"], len(who))).value, verdictless.value)
    assert np.isnan(compression(np.array([3., np.nan]), np.array([0, 1])).value)
    with pytest.raises(InputError, match="reference_sd is 0"): compression(ratings, who, reference_sd=0)


def texts(likeness, people=40, samples=2, d=48, seed=1):
    generator = np.random.default_rng(seed)
    common, own = generator.normal(size=d), np.repeat(generator.normal(size=(people, d)), samples, axis=0) + .1 * generator.normal(size=(people * samples, d))
    return np.sqrt(likeness) * common + np.sqrt(1 - likeness) * own, np.repeat(np.arange(people), samples)


def test_collapse_is_the_mean_over_pairs_of_different_respondents():
    vectors, who = texts(.6, people=12)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [(unit[who == a] @ unit[who == b].T).mean() for a in range(12) for b in range(12) if a != b]
    found = collapse(vectors, who)
    assert np.isclose(found.value, np.mean(pairs)) and found.interval[0] < found.value < found.interval[1] and not found.flag
    assert collapse(*texts(.97)).flag and not collapse(*texts(.6)).flag
    assert not collapse(vectors[:4], who[:4]).flag and np.isnan(collapse(vectors[:4], who[:4]).value)
    with pytest.raises(InputError, match="row 3 is zero"): collapse(np.where(np.arange(24)[:, None] == 3, 0, vectors), who)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_near_duplicates_block_by_block(block):
    vectors, who = texts(.6, people=60, samples=1)
    who[13] = who[12]
    vectors[10] = vectors[40] * 3  # two respondents, one concept
    vectors[12] = vectors[13]  # one respondent twice: no duplicate
    vectors[14] = vectors[50]  # another concept
    concept = np.where(np.arange(60) == 50, "b", "a")
    found = near_duplicates(vectors, who, concept, block=block)
    assert np.isclose(found.value, 2 / 60) and not found.flag
    assert near_duplicates(np.repeat(vectors[:1], 60, axis=0), who, concept, block=block).flag


def asked_twice(shift, seed, people=80, samples=2, individual=0.0):
    generator = np.random.default_rng(seed)
    base, sides = generator.normal(3.2, .5, people), []
    for move in (0, 1): sides.append(pd.DataFrame({"respondent": np.repeat(np.arange(people), samples), "rating": np.repeat(base + move * (shift + individual * generator.normal(size=people)), samples) + generator.normal(0, .3, people * samples)}))
    return sides


def test_sensitivity_to_one_attribute():
    found = sensitivity(*asked_twice(.3, 1), "income")
    assert found.flag and found.interval[0] < found.value < found.interval[1] and "standard deviation of 0.3" in found.what
    intervals = [sensitivity(*asked_twice(.3, seed, individual=.2), "income").interval for seed in range(200)]
    assert .9 <= np.mean([low <= .3 <= high for low, high in intervals]) <= .99
    assert np.mean([sensitivity(*asked_twice(0, seed, individual=.2), "gender").flag for seed in range(200)]) <= .05
    assert np.mean([sensitivity(*asked_twice(.3, seed, individual=.2), "gender").flag for seed in range(50)]) >= .95
    one = sensitivity(*asked_twice(0, 1, samples=1), "gender")
    assert "unknown" in one.what and "2 samples" in one.mend
    left, right = asked_twice(.3, 1)
    assert np.isclose(sensitivity(left.assign(concept="a"), right.assign(concept="a"), "income").value, found.value)
    for wrong, said in ((right.assign(respondent=right["respondent"] + 500), "no one in common"), (right.drop(columns="rating"), "lack the column 'rating'"), (right.assign(concept="a"), "on one side only")):
        with pytest.raises(InputError, match=said): sensitivity(left, wrong, "income")


def test_drift_is_measured_within_concepts():
    generator = np.random.default_rng(4)
    concept = np.tile(["liked", "disliked"], 200)
    who = np.repeat(np.arange(100), 4)
    ratings = np.where(concept == "liked", 4.0, 2.0) + generator.normal(0, .3, 400)
    late = generator.random(400) < np.where(concept == "liked", .5, .1)  # the liked concept fails more often
    assert abs(drift(ratings, who, late).value) > .5 and abs(drift(ratings, who, late, concept).value) < .1
    assert not drift(ratings, who, late, concept).flag and drift(ratings - .4 * late, who, late, concept).flag
    found = drift(ratings - .4 * late, who, late, concept)
    assert found.interval[0] < -.4 < found.interval[1] and "mend what" in found.mend
    few = drift(ratings, who, np.arange(400) < 3, concept)
    assert not few.flag and np.isnan(few.value) and "too few" in few.what
    assert np.mean([drift(generator.normal(3, .4, 200), np.repeat(np.arange(100), 2), generator.random(200) < .2).flag for _ in range(200)]) <= .03


def example():
    from ssr_nb.store import list_runs
    from ssr_nb.verify import results_of
    return results_of(list_runs(ROOT / "runs/example")[0])


def test_a_whole_run_is_diagnosed():
    results = example()
    found = {one.name: one for one in diagnose(results, us_targets())}
    assert {"representativeness (region)", "positivity", "variance compression", "near-duplicates", "refusals", "drift (retried)", "drift (replaced)"} <= set(found)
    assert all(one.mend and one.what.endswith(".") for one in found.values())
    assert not np.isnan(found["near-duplicates"].value)  # the vectors were found by the key that ssr_nb.embedders gives them
    assert len([name for name in found if name.startswith("persona collapse")]) == results.ratings["concept"].nunique()
    assert diagnose(results, us_targets()) == diagnose(results, us_targets()) or all(np.allclose([a.value, *a.interval], [b.value, *b.interval], equal_nan=True) for a, b in zip(diagnose(results), diagnose(results)))
    untargeted = diagnose(results)[0]
    assert untargeted.name == "representativeness" and not untargeted.flag and "us_targets" in untargeted.mend
    raked = replace(results, survey=replace(results.survey, panel=results.survey.panel.rake({"gender": {"female": .51, "male": .49}})))
    assert abs({one.name: one for one in diagnose(raked, {"gender": {"female": .51, "male": .49}})}["representativeness (gender)"].value) < 1e-6
    sharper = {one.name: one for one in diagnose(results, reference={"purchase_intent": {"mean": 4.5, "sd": 2.0}})}
    assert sharper["positivity"].flag and sharper["variance compression"].flag


def test_retried_and_replaced_answers_are_found_in_a_run():
    results = example()
    again = results.calls["key"].isin(results.answers["call_key"].iloc[::3])
    ratings = results.ratings
    results.__dict__["ratings"] = ratings.assign(mean=ratings["mean"] - .8 * ratings["answer_id"].isin(results.answers["answer_id"].iloc[::3]))  # the property is cached
    object.__setattr__(results, "calls", results.calls.assign(attempts=np.where(again, 2, 1)))
    found = {one.name: one for one in diagnose(results)}
    assert found["drift (retried)"].flag and found["drift (retried)"].value < -.4 and np.isnan(found["drift (replaced)"].value)


def test_the_table_has_flags_first():
    table = findings_table([Finding("a", "b.", .1, (.0, .2), False, "nothing"), Finding("c", "d.", .3, (.2, .4), True, "mend")])
    assert table["name"].tolist() == ["c", "a"] and list(table) == ["name", "flag", "what", "value", "low", "high", "mend"] and findings_table([]).empty
