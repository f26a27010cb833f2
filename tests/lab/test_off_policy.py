"""`lab.off_policy` recovers what another policy earns, and its intervals hold as often as they say."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlpkg import lab
from mlpkg.errors import MlpkgError

ARMS = {"a": 0.3, "b": 0.5, "c": 0.35}


def random_log(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """Three arms whose probabilities and rewards depend on a score, so that plain averages are wrong."""
    score = rng.random(rows)
    shares = np.stack([0.1 + 0.7 * score, 0.1 + 0.7 * (1 - score), np.full(rows, 0.1)], axis=1)
    taken = (rng.random((rows, 1)) > shares.cumsum(axis=1)).sum(axis=1)
    rate = np.array(list(ARMS.values()))[taken] * (0.5 + score)
    columns = {"score": score, "variant": np.array(list(ARMS))[taken], "probability": shares[np.arange(rows), taken]}
    return pd.DataFrame({**columns, "paid": rng.random(rows) < rate})


def by_score(rows: pd.DataFrame) -> np.ndarray:
    return np.where(rows["score"] > 0.5, "b", "c")


def test_intervals_of_all_estimates_cover_the_truth_as_often_as_they_say() -> None:
    """200 logs, fixed seeds: 95 % of the intervals hold, give or take three standard errors (4.6 %)."""
    truths: dict[str, tuple[Any, float]] = {"always b": ({"b": 1.0}, ARMS["b"])}
    truths["by score"] = by_score, 0.5 * 0.5 * 1.25 + 0.5 * 0.35 * 0.75
    covered: dict[tuple[str, str], list[bool]] = {}
    for seed in range(200):
        log = random_log(np.random.default_rng(seed), 1500)
        for name, (policy, truth) in truths.items():
            table = lab.off_policy(log, policy, "paid").estimates
            for estimate in ("ips", "snips", "dr"):
                low, high = table.loc[estimate, ["low", "high"]]
                covered.setdefault((name, estimate), []).append(bool(low <= truth <= high))
    rates = {key: np.mean(hits) for key, hits in covered.items()}
    assert {k: r for k, r in rates.items() if abs(r - 0.95) > 0.046} == {}


def test_plain_averages_would_be_wrong() -> None:
    """Arm `a` is taken where rewards are high: its plain average lies many standard errors above the truth."""
    log = random_log(np.random.default_rng(0), 20_000)
    of_a = log.loc[log["variant"] == "a", "paid"]
    assert of_a.mean() - ARMS["a"] > 5 * of_a.std() / len(of_a) ** 0.5
    table = lab.off_policy(log, {"a": 1.0}, "paid").estimates
    assert table.loc["snips", "low"] < ARMS["a"] < table.loc["snips", "high"]


def test_a_reward_model_makes_the_interval_narrow_and_a_wrong_one_leaves_it_right() -> None:
    rng, rows = np.random.default_rng(3), 4000
    size, taken = rng.normal(50, 20, rows), rng.random(rows) < 0.5
    amount = size + np.where(taken, 5.0, 0.0) + rng.normal(0, 2, rows)
    log = pd.DataFrame({"size": size, "noise": rng.normal(size=rows), "amount": amount, "probability": 0.5})
    log["variant"] = np.where(taken, "b", "a")
    truth = size.mean() + 5
    plain, good, bad = (
        lab.off_policy(log, {"b": 1.0}, "amount", features=features).estimates.loc["dr"]
        for features in ([], ["size"], ["noise"])
    )
    assert good["error"] < 0.8 * plain["error"] and plain["error"] < bad["error"] * 1.2
    for row in (plain, good, bad):
        assert abs(row["estimate"] - truth) < 4 * row["error"]
    assert good["gain_high"] - good["gain_low"] < 0.3 * (plain["gain_high"] - plain["gain_low"])


def test_rows_of_one_customer_do_not_count_as_independent() -> None:
    """Each customer has ten equal rows: 95 % intervals hold only if the customer's rows are summed."""
    hits = {"alone": 0, "together": 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        customer = np.repeat(np.arange(100), 10)
        log = random_log(rng, 100).iloc[customer].assign(customer=customer)
        for name, entity in (("alone", None), ("together", "customer")):
            low, high = lab.off_policy(log, {"b": 1.0}, "paid", entity=entity).estimates.loc["ips", ["low", "high"]]
            hits[name] += low <= ARMS["b"] <= high
    assert hits["alone"] < 120 and hits["together"] > 178, hits


def test_few_rows_and_missing_support_are_doubted() -> None:
    log = random_log(np.random.default_rng(0), 2000)
    assert lab.off_policy(log, by_score, "paid").doubts == []
    (few,) = lab.off_policy(log.head(60), {"c": 1.0}, "paid").doubts
    assert few.startswith("the estimates rest on about")
    log = random_log(np.random.default_rng(0), 8000)
    never = log[(log["variant"] != "a") | (log["score"] < 0.5)]
    (lacking,) = lab.off_policy(never, {"a": 1.0}, "paid").doubts
    assert "instead of 1" in lacking


@pytest.mark.parametrize("kind", ["bool", "boolean", "Int64", "float64", "Float64"])
def test_rewards_of_any_kind_of_number(kind: str) -> None:
    log = random_log(np.random.default_rng(0), 500)
    table = lab.off_policy(log.astype({"paid": kind}), {"a": 1.0}, "paid").estimates
    pd.testing.assert_frame_equal(table, lab.off_policy(log, {"a": 1.0}, "paid").estimates)


def test_an_action_without_support_is_refused() -> None:
    log = random_log(np.random.default_rng(0), 500).query("variant != 'c'")
    with pytest.raises(MlpkgError, match=r"the policy takes 'c' in \d+ of \d+ rows, and no row with a reward did"):
        lab.off_policy(log, by_score, "paid")
