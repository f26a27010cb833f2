"""A bandit on a real store: its decisions record what is needed to repeat its choices and to judge other policies."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import pytest

from mlpkg import lab
from mlpkg.assignment import MILLION, BetaArm, Posterior, Rollout, Variant, bucket, posterior_of, reweigh
from mlpkg.decisions import verify
from mlpkg.decisions.setups import change_setup
from mlpkg.errors import MlpkgError
from mlpkg.examples.tiny import TinyShop, tiny
from mlpkg.models import latest_setup

ARMS = {"easy": 0.9, "strict": 0.04}  # thresholds


@pytest.fixture
def shop() -> Iterator[TinyShop]:
    with tiny() as shop:
        yield shop


def put(shop: TinyShop, rollout: Rollout) -> None:
    change_setup(shop.store, "shop", "rollout", "ask", lambda setup: setup.put(rollout), by="ann", why="to learn")


def run_bandit(shop: TinyShop, versions: int, orders: int) -> dict[int, Rollout]:
    """Decide some orders by each version; an order that is kept is a reward, known before the next version."""
    variants = [Variant(name=name, share=MILLION // 2, parameters={"threshold": t}) for name, t in ARMS.items()]
    rollout = Rollout(name="ask", kind="bandit", salt="ask-1", variants=variants)
    posterior, number, used = Posterior({name: BetaArm() for name in ARMS}), 60, {}
    for _ in range(versions):
        rollout = reweigh(rollout, posterior, floor=0.1)
        put(shop, rollout)
        used[rollout.version] = rollout
        rewards = []
        for _ in range(orders):
            (assignment,) = shop.decide(number).assignments or []
            rewards.append((assignment.variant, assignment.variant == "strict" or number % 3 == 0))
            number += 1
        posterior = posterior.counted(rewards)
    return used


def test_the_record_of_a_bandit_repeats_its_choices(shop: TinyShop) -> None:
    used = run_bandit(shop, versions=4, orders=20)
    log: Any = lab.decisions(use_case=shop.use_case, store=shop.store, rollout="ask")
    assert len(log) == 80 and set(log["rollout_version"]) == set(used)
    for row in log.itertuples():
        rollout = used[row.rollout_version]
        variant = rollout.variants[bisect_right(rollout.edges(), bucket(rollout.salt, row.id))]
        assert (row.variant, row.probability) == (variant.name, variant.share / MILLION)
    assert log["probability"].nunique() > 3 and log["variant"].value_counts()["strict"] > 40
    verified = verify(shop.use_case, shop.store)
    assert (verified.decisions, verified.mismatches) == (80, 0)


def test_the_posterior_is_kept_with_the_shares_that_came_from_it(shop: TinyShop) -> None:
    used = run_bandit(shop, versions=3, orders=10)
    kept = latest_setup(shop.store.promotions("shop")).rollout("ask")
    posterior = posterior_of(kept)
    assert kept == used[max(used)] and posterior is not None and posterior.version == 2
    assert reweigh(kept, posterior, floor=0.1).variants == kept.variants


def test_another_policy_is_judged_by_the_log_of_a_bandit(shop: TinyShop) -> None:
    run_bandit(shop, versions=4, orders=20)
    log: Any = lab.decisions(use_case=shop.use_case, store=shop.store, rollout="ask")
    log["asked"] = log["action"] == "prepay"
    strict = lab.off_policy(log, {"strict": 1.0}, "asked", features=["amount"])
    easy = lab.off_policy(log, {"easy": 1.0}, "asked")
    truth = (log["score"] > ARMS["strict"]).mean(), (log["score"] > ARMS["easy"]).mean()
    for judged, share in zip((strict, easy), truth, strict=True):
        row = judged.estimates.loc["ips"]
        assert abs(row["estimate"] - share) < 4 * row["error"]
    assert strict.estimates.loc["dr", "estimate"] > easy.estimates.loc["dr", "estimate"]


def test_decisions_of_no_rollout_cannot_be_judged(shop: TinyShop) -> None:
    run_bandit(shop, versions=1, orders=3)
    with pytest.raises(MlpkgError, match="the log has no column 'probability'"):
        lab.off_policy(lab.decisions(use_case=shop.use_case, store=shop.store), {"easy": 1.0}, "score")
    with pytest.raises(MlpkgError, match="no decision took part in the rollout 'aks'; did you mean 'ask'"):
        lab.decisions(use_case=shop.use_case, store=shop.store, rollout="aks")
