"""Demand curves: golden values, properties, known truths, faults."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssr_nb.core import InputError
from ssr_nb.demand import arc_elasticity, best_price, buying_weights, demand_curve, never_rising

PRICES = np.array([3., 6, 9, 12, 15])


def buyers(n, seed, prices=PRICES, most=20): return (np.random.default_rng(seed).uniform(0, most, size=(n, 1)) >= prices).astype(float)


def test_golden_values():
    shares = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]], float)
    found = demand_curve([1, 2, 3], shares, unit_cost=.5)
    assert found.frame["demand"].tolist() == found.frame["curve"].tolist() == [1, .5, .25]
    assert np.allclose(found.frame["revenue"], [1, 1, .75]) and np.allclose(found.frame["profit"], [.5, .75, .625])
    assert np.allclose(found.steps["elasticity"], [-1, -5 / 3])
    assert np.allclose(found.optimum[["price", "value"]], [[1.5, 1.125], [1.75, .78125]])  # 1.5 − p/2, times p and p − .5
    assert np.isclose(found.trend["fall"], .75) and found.verdict == "too few" and found.best() is None and found.frame["low"].isna().all()


def test_a_rise_is_evened_out_and_kept_beside():
    shares = np.repeat([[.6, .5, .55, .2]], 8, axis=0)
    found = demand_curve([1, 2, 3, 4], shares)
    assert np.allclose(found.frame["demand"], [.6, .5, .55, .2]) and np.allclose(found.frame["curve"], [.6, .525, .525, .2]) and found.steps["elasticity"][1] > 0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=7), st.floats(0, 5))
def test_the_best_price_beats_every_other(shares, cost):
    prices, demand = np.arange(1, len(shares) + 1) * 3.0, never_rising(np.array(shares))
    price, value = best_price(prices, demand, cost)
    fine = np.linspace(prices[0], prices[-1], 2001)
    assert (np.diff(demand) <= 1e-12).all() and prices[0] <= price <= prices[-1] and value >= ((fine - cost) * np.interp(fine, prices, demand)).max() - 1e-9
    assert np.isclose(value, (price - cost) * np.interp(price, prices, demand))


def test_many_curves_at_once_are_each_alone():
    curves = np.sort(np.random.default_rng(1).uniform(size=(50, 5)))[:, ::-1]
    at_once, alone = best_price(PRICES, curves, 2.0), [best_price(PRICES, one, 2.0) for one in curves]
    assert np.allclose(at_once[0], [price for price, _ in alone]) and np.allclose(at_once[1], [value for _, value in alone])


def test_the_unit_of_money_changes_nothing():
    shares = buyers(80, 2)
    one, cents = demand_curve(PRICES, shares, unit_cost=2), demand_curve(100 * PRICES, shares, unit_cost=200)
    assert np.allclose(100 * one.optimum[["price", "low", "high", "value"]], cents.optimum[["price", "low", "high", "value"]]) and np.allclose(one.steps["elasticity"], cents.steps["elasticity"]) and one.trend == pytest.approx(cents.trend)


def test_a_weight_counts_like_so_many_people():
    shares, weights = buyers(20, 3), np.r_[np.full(10, 2.0), np.ones(10)]
    weighted, doubled = demand_curve(PRICES, shares, weights), demand_curve(PRICES, np.vstack([shares[:10], shares]))
    assert np.allclose(weighted.frame["demand"], doubled.frame["demand"]) and np.allclose(weighted.optimum["price"], doubled.optimum["price"])
    assert demand_curve(PRICES, np.vstack([shares, np.zeros((5, 5))]), np.r_[np.ones(20), np.zeros(5)]).frame["demand"].tolist() == demand_curve(PRICES, shares).frame["demand"].tolist()


def test_a_price_without_an_answer_is_left_out_of_its_mean_alone():
    shares = buyers(30, 4)
    shares[:4, 2] = np.nan
    found = demand_curve(PRICES, shares)
    assert found.frame["respondents"].tolist() == [30, 30, 26, 30, 30] and np.isclose(found.frame["demand"][2], shares[4:, 2].mean()) and found.frame["low"].notna().all()


def test_the_same_seed_gives_the_same_intervals():
    assert demand_curve(PRICES, buyers(40, 5), seed=1).optimum.equals(demand_curve(PRICES, buyers(40, 5), seed=1).optimum)
    assert not demand_curve(PRICES, buyers(40, 5), seed=1).optimum.equals(demand_curve(PRICES, buyers(40, 5), seed=2).optimum)


def test_intervals_contain_known_truths():
    runs = [demand_curve(PRICES, buyers(100, seed), resamples=200, seed=seed) for seed in range(150)]
    optimum = [run.optimum.iloc[0] for run in runs]
    assert np.mean([one["low"] <= 10 <= one["high"] for one in optimum]) > .89 and np.mean([one["value_low"] <= 5 <= one["value_high"] for one in optimum]) > .87
    assert .92 < np.mean([run.frame["low"].le(1 - PRICES / 20) & run.frame["high"].ge(1 - PRICES / 20) for run in runs]) < .98
    assert np.mean([run.trend["low"] <= .6 <= run.trend["high"] for run in runs]) > .9 and all(run.verdict == "falls" for run in runs)


def test_where_the_price_does_not_matter_no_price_is_best():
    generator = np.random.default_rng(6)
    runs = [demand_curve(PRICES, generator.beta(2, 3, size=(60, 5)), resamples=20) for _ in range(300)]
    assert np.mean([run.verdict == "falls" for run in runs]) <= .05 and np.mean([run.verdict == "rising" for run in runs]) <= .05
    assert all(run.best() is None and run.where() == "none" for run in runs if run.verdict != "falls")


def test_a_peak_outside_the_prices_is_said_to_be_there():
    assert demand_curve(PRICES, buyers(200, 7, most=200)).where() == "highest" and demand_curve(PRICES, buyers(200, 7, most=4)).where() == "lowest" and demand_curve(PRICES, buyers(200, 7)).where() == "inside"


def test_fewer_drawn_means_wider():
    shares, span = buyers(600, 8), lambda run: float(run.optimum["high"][0] - run.optimum["low"][0])
    assert span(demand_curve(PRICES, shares, effective_n=60)) > 1.8 * span(demand_curve(PRICES, shares)) and span(demand_curve(PRICES, shares, effective_n=9999)) == span(demand_curve(PRICES, shares))


def test_nobody_buys():
    found = demand_curve(PRICES, np.zeros((20, 5)))
    assert found.verdict == "flat" and found.steps["elasticity"].isna().all() and np.isnan(arc_elasticity(PRICES, np.zeros(5))).all()


@pytest.mark.parametrize("would_buy, k, weights", [("top-2-box", 5, [0, 0, 0, 1, 1]), ("top-box", 3, [0, 0, 1]), ("0,0,0,.3,.8", 5, [0, 0, 0, .3, .8]), ("[0 0 .5 1]", 4, [0, 0, .5, 1])])
def test_rules_of_buying(would_buy, k, weights): assert buying_weights(would_buy, k).tolist() == weights


@pytest.mark.parametrize("would_buy, said", [("always", "give top-2-box"), ("0 0 1", "3 weights for a scale of 5"), ("0 0 0 1 .5", "never fall"), ("0 0 0 0 0", "end above 0"), ("0 0 0 1 2", "from 0 to 1"), ("", "give top-2-box")])
def test_wrong_rules_are_refused(would_buy, said):
    with pytest.raises(InputError, match=said): buying_weights(would_buy)


@pytest.mark.parametrize("change, said", [({"prices": [3]}, "at least two"), ({"prices": [3, 3, 9, 12, 15]}, "rising"), ({"prices": [0, 6, 9, 12, 15]}, "above 0"), ({"prices": [3, 6, 9]}, "3 prices"), ({"shares": np.full((8, 5), 1.2)}, "from 0 to 1"),
                                          ({"shares": np.full((8, 5), np.nan)}, "no scored answer at the price 3"), ({"weights": np.zeros(8)}, "above 0"), ({"weights": np.ones(3)}, "8 respondents"), ({"unit_cost": 15}, "above the cost"), ({"unit_cost": -1}, "at least 0"),
                                          ({"level": 1}, "between 0 and 1"), ({"effective_n": 0}, "at least 1"), ({"resamples": 0}, "whole number")])
def test_what_cannot_be_honoured_is_refused(change, said):
    with pytest.raises(InputError, match=said): demand_curve(**{"prices": PRICES, "shares": buyers(8, 1), **change})
