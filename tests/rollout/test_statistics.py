"""The statistics of rollouts: what they state holds at every look, for rare and for frequent events."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import chisquare, norm

from mlpkg.rollout.distributions import LATENCY_EDGES, BinnedCounts, distribution_distance, quantile_ratio
from mlpkg.rollout.rates import log_wealth, lower_rate, rate_difference, upper_rate
from mlpkg.rollout.sample_ratio import always_valid_sample_ratio, sample_ratio_p_value
from mlpkg.rollout.sequential import (
    LEAST_RARE,
    ArmSums,
    mean_difference,
    sequence_radius,
    sums_of,
    sums_of_rate,
)

LOOKS = np.arange(200, 20_001, 200)


def streams(rng: np.random.Generator, rate: float, runs: int, arms: int = 2) -> np.ndarray:
    """Return the successes of arms of 20,000 at each of a hundred looks."""
    return rng.binomial(200, rate, (arms, runs, len(LOOKS))).cumsum(2)


def test_the_sequence_gives_the_published_figures():
    made = mean_difference(
        ArmSums(1396.87, 52377.9767, 3000), ArmSums(2422.7, 134698.29, 3461), tuned_for=1000, relative=True
    )
    assert [round(value, 5) for value in made] == [0.50336, 0.33341, -0.55844, 1.56516, 1.0]


@pytest.mark.parametrize("one_sided", [False, True])
def test_a_p_value_is_the_error_at_which_the_interval_reaches_zero(one_sided: bool):
    """At that error the interval begins at 0, if rho stays the same."""
    arms = sums_of_rate(100, 1000), sums_of_rate(140, 1000)
    made = mean_difference(*arms, alpha=0.05, one_sided=one_sided)
    n, tuned_for = 2000, 5000
    tuned = -2 * math.log(0.1 if one_sided else 0.05)
    again = -2 * math.log(2 * made.p_value if one_sided else made.p_value)
    same_rho = tuned_for * (again + math.log1p(again)) / (tuned + math.log1p(tuned))
    assert sequence_radius(made.error, n, made.p_value, same_rho, one_sided=one_sided) == pytest.approx(made.estimate)


def test_identical_arms_are_told_apart_no_more_often_than_stated_and_by_a_naive_test_far_more_often():
    """p = 0.1, 20,000 an arm, a hundred looks."""
    rates = streams(np.random.default_rng(1), 0.1, 4000) / LOOKS
    errors = np.sqrt((rates * (1 - rates)).sum(0) / LOOKS)
    z = (rates[1] - rates[0]) / errors
    radius = np.array([sequence_radius(1, 2 * n, 0.05) for n in LOOKS.tolist()])
    above = np.array([sequence_radius(1, 2 * n, 0.05, one_sided=True) for n in LOOKS.tolist()])
    assert 0.33 < (np.abs(z) > norm.isf(0.025)).any(1).mean() < 0.42
    assert 0.005 < (np.abs(z) > radius).any(1).mean() <= 0.05
    assert 0.005 < (z > above).any(1).mean() <= 0.05


def test_an_arm_with_few_of_a_kind_is_not_judged_yet():
    """With a rate of 0.1 % and a tenth of the traffic the sequence is wrong too often before there are twenty of them."""
    rng = np.random.default_rng(1)
    total = np.arange(1, 101) * 4000
    small, large = (rng.binomial(n, 0.001, (2000, 100)).cumsum(1) for n in (400, 3600))
    first, second = small / (total / 10), large / (total * 0.9)
    errors = np.sqrt(first * (1 - first) / (total / 10) + second * (1 - second) / (total * 0.9))
    radius = np.array([sequence_radius(1, n, 0.05) for n in total.tolist()])
    is_wrong = np.abs(first - second) > radius * errors
    assert is_wrong.any(1).mean() > 0.2
    assert (is_wrong & (small >= LEAST_RARE) & (large >= LEAST_RARE)).any(1).mean() <= 0.05
    assert mean_difference(sums_of_rate(LEAST_RARE - 1, 400), sums_of_rate(900, 3600)).high == math.inf
    assert mean_difference(sums_of_rate(LEAST_RARE, 400), sums_of_rate(900, 3600)).high < math.inf


def test_sums_are_those_of_the_values():
    values = np.random.default_rng(1).normal(3, 2, 1000)
    assert (sums_of(values).mean, sums_of(values).variance) == pytest.approx((values.mean(), values.var(ddof=1)))


@pytest.mark.parametrize("rate", [0.0005, 0.001, 0.1, 0.5, 0.99])
def test_bounds_of_a_rate_are_ever_wrong_no_more_often_than_stated(rate: float):
    (counts,) = streams(np.random.default_rng(1), rate, 4000, arms=1)
    assert (log_wealth(counts, LOOKS, rate) >= np.log(20)).any(1).mean() <= 0.05
    assert (log_wealth(LOOKS - counts, LOOKS, 1 - rate) >= np.log(20)).any(1).mean() <= 0.05


def test_bounds_of_a_rate_that_changes_hold_for_its_average():
    rate = np.where(np.arange(len(LOOKS)) % 24 > 18, 0.05, 0.001)
    average = np.cumsum(rate) / np.arange(1, len(LOOKS) + 1)
    counts = np.random.default_rng(1).binomial(200, rate, (4000, len(LOOKS))).cumsum(1)
    assert (log_wealth(counts, LOOKS, average) >= np.log(20)).any(1).mean() <= 0.05


def test_the_bounds_are_where_the_bets_refute():
    for successes, n in ((1, 50), (7, 1000), (990, 1000), (12_000, 20_000)):
        low, high = float(lower_rate(successes, n, 0.01)), float(upper_rate(successes, n, 0.01))
        assert 0 <= low < successes / n < high <= 1
        assert log_wealth(successes, n, low) == pytest.approx(np.log(100), abs=0.02)
        assert log_wealth(n - successes, n, 1 - high) == pytest.approx(np.log(100), abs=0.02)
    assert (float(lower_rate(0, 10, 0.01)), float(upper_rate(10, 10, 0.01))) == (0, 1)


@pytest.mark.parametrize("rate", [0.001, 0.1])
def test_the_difference_of_rates_finds_harm_and_seldom_finds_it_where_none_is(rate: float):
    small, large = (np.random.default_rng(1).binomial(n, rate, (300, 40)).cumsum(1) for n in (50, 4950))
    n = np.arange(1, 41) * 50
    low = lower_rate(small, n, 0.025) - upper_rate(large, 99 * n, 0.025)
    assert (low > 0).any(1).mean() <= 0.05
    assert rate_difference((99, 99_000), (40, 1000), 0.05).low > 0.015
    assert rate_difference((99, 99_000), (1, 1000), 0.05).high < 0.015


def binned(edges: np.ndarray, values: np.ndarray) -> list[BinnedCounts]:
    """Return the bins at each look, from values with one row a look."""
    places = np.searchsorted(edges, values)
    counts = np.array([np.bincount(row, minlength=len(edges) + 1) for row in places]).cumsum(0)
    return [BinnedCounts(edges, row) for row in counts]


@pytest.mark.parametrize(
    ("edges", "draw", "judge"),
    [
        (
            LATENCY_EDGES,
            lambda rng, shape: rng.lognormal(7, 0.5, shape),
            lambda was, now: quantile_ratio(was, now, 0.99, 0.05),
        ),
        (
            np.arange(0.1, 1, 0.1),
            lambda rng, shape: rng.random(shape),
            lambda was, now: distribution_distance(was, now, 0.05),
        ),
    ],
    ids=["p99", "distance"],
)
def test_identical_latencies_and_scores_seldom_seem_to_differ(edges: np.ndarray, draw: Callable, judge: Callable):
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(60):
        arms = binned(edges, draw(rng, (20, 2000))), binned(edges, draw(rng, (20, 100)))
        judged = [judge(*look) for look in zip(*arms, strict=True)]
        wrong += any(interval.low > 0 for interval in judged)
        assert all(interval.low <= interval.value <= interval.high for interval in judged)
    assert wrong <= 3


def test_the_sample_ratio_gives_the_published_figure():
    assert f"{sample_ratio_p_value([821_588, 815_482], [0.5, 0.5]):.1e}" == "1.8e-06"
    assert sample_ratio_p_value([70, 20, 10], [6, 3, 1]) == pytest.approx(chisquare([70, 20, 10], [60, 30, 10]).pvalue)


def test_the_sample_ratio_may_be_looked_at_all_the_time():
    first = np.random.default_rng(1).binomial(200, 0.1, (300, 100)).cumsum(1)
    shares, alarms = [0.1, 0.9], {sample_ratio_p_value: 0, always_valid_sample_ratio: 0}
    for counts in first:
        looks = [(int(a), int(n - a)) for a, n in zip(counts, LOOKS, strict=True)]
        for check in alarms:
            alarms[check] += any(check(look, shares) <= 0.05 for look in looks)
    assert alarms[sample_ratio_p_value] > 60
    assert alarms[always_valid_sample_ratio] <= 15
    assert always_valid_sample_ratio([2400, 17_600], shares) < 0.001
