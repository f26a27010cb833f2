"""The bandit's probabilities are right, and its choices can be repeated and weighted."""

import math
from bisect import bisect_right

import numpy as np
import pytest
from scipy import integrate, special, stats

from mlpkg.assignment import (
    MILLION,
    BetaArm,
    NormalArm,
    Posterior,
    Rollout,
    Setup,
    Variant,
    bucket,
    decode_setup,
    encode_setup,
    outlook,
    posterior_of,
    reweigh,
    should_stop,
)

BETAS = {
    "flat": [(1, 1), (1, 1), (1, 1)],
    "few rewards": [(3, 7), (5, 5), (1, 1), (2, 2), (1, 4)],
    "sharp beside flat": [(50_000, 50_000), (1, 1), (400, 600)],
    "rare rewards": [(3, 4_000), (6, 4_100), (1, 2_000)],
    "below one": [(0.5, 200.5), (1, 300), (0.7, 90)],
    "half a million rewards": [(250_000, 250_000), (250_500, 249_500), (249_900, 250_100)],
}


def posterior_of_arms(arms: list[tuple[float, float]]) -> Posterior:
    return Posterior({f"arm {n}": BetaArm(a, b) for n, (a, b) in enumerate(arms)})


def integrated(arms: list[tuple[float, float]], number: int) -> float:
    """The probability that an arm is best by scipy's adaptive quadrature, on the scale of the arm's own quantiles."""
    others = [arm for n, arm in enumerate(arms) if n != number]

    def of_quantile(q: float) -> float:
        rate = stats.beta.ppf(q, *arms[number])
        return math.prod(float(special.betainc(a, b, rate)) for a, b in others)

    return integrate.quad(of_quantile, 0, 1, epsabs=1e-9, epsrel=1e-9, limit=500)[0]


@pytest.mark.parametrize("arms", BETAS.values(), ids=BETAS.keys())
def test_probabilities_agree_with_adaptive_quadrature(arms: list[tuple[float, float]]) -> None:
    best = list(outlook(posterior_of_arms(arms)).best.values())
    assert best == pytest.approx([integrated(arms, number) for number in range(len(arms))], abs=1e-7)
    assert sum(best) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_probability_and_loss_agree_with_a_long_monte_carlo(seed: int) -> None:
    """A million draws of random arms; the bound is five standard errors, and the seeds are fixed."""
    rng, draws = np.random.default_rng(seed), 1_000_000
    shapes = np.exp(rng.uniform(0, 6, (rng.integers(2, 7), 2)))
    if seed % 2:
        arms = {f"arm {n}": BetaArm(a, b) for n, (a, b) in enumerate(shapes.tolist())}
        drawn = np.stack([rng.beta(arm.alpha, arm.beta, draws) for arm in arms.values()])
    else:
        arms = {f"arm {n}": NormalArm(rng.normal(), a, 2 + b, 3 + b) for n, (a, b) in enumerate(shapes.tolist())}
        variances = [arm.scale / rng.gamma(arm.shape, 1, draws) for arm in arms.values()]
        of_arms = zip(arms.values(), variances, strict=True)
        drawn = np.stack([rng.normal(arm.mean, np.sqrt(variance / arm.weight)) for arm, variance in of_arms])
    known, best = outlook(Posterior(dict(arms))), drawn.argmax(axis=0)
    for number, name in enumerate(arms):
        hits, lost = best == number, drawn.max(axis=0) - drawn[number]
        assert abs(known.best[name] - hits.mean()) < 5 * max(hits.std(), 1e-3) / draws**0.5
        assert abs(known.loss[name] - lost.mean()) < 5 * max(lost.std(), 1e-3) / draws**0.5


def choose(rollout: Rollout, decision: int) -> Variant:
    return rollout.variants[bisect_right(rollout.edges(), bucket(rollout.salt, str(decision)))]


def simulated(rates: dict[str, float], decisions: int, delay: int, floor: float = 0.05):
    """A log of a bandit: the version of its rollout, arm, millionths, reward; and the rollout's versions, as JSON."""
    rng, log = np.random.default_rng(11), []
    variants = [Variant(name=name, share=MILLION // len(rates)) for name in rates]
    rollout = Rollout(name="offers", kind="bandit", salt="offers-1", variants=variants)
    rollout = reweigh(rollout, Posterior({name: BetaArm() for name in rates}), floor)
    versions = {}
    for decision in range(decisions):
        if decision % 100 == 0 and decision > delay:
            due = [(arm, reward) for _, arm, _, reward in log[max(0, decision - 100 - delay) : decision - delay]]
            posterior = posterior_of(rollout)
            assert posterior is not None
            rollout = reweigh(rollout, posterior.counted(due), floor)
        versions[rollout.version] = encode_setup(Setup(rollouts=[rollout]))
        variant = choose(rollout, decision)
        log.append((rollout.version, variant.name, variant.share, bool(rng.random() < rates[variant.name])))
    return log, versions


@pytest.mark.parametrize("delay", [0, 700])
def test_a_replay_makes_the_recorded_choices(delay: int) -> None:
    log, versions = simulated({"a": 0.3, "b": 0.4, "c": 0.35}, 3000, delay)
    rollouts = {version: decode_setup(text).rollout("offers") for version, text in versions.items()}
    again = [choose(rollouts[version], decision) for decision, (version, *_) in enumerate(log)]
    assert [(variant.name, variant.share) for variant in again] == [(arm, share) for _, arm, share, _ in log]
    assert min(variant.share for rollout in rollouts.values() for variant in rollout.variants) >= 50_000
    assert len(rollouts) > 20


def test_a_bandit_with_late_rewards_finds_the_best_arm_and_its_log_is_weighted_right() -> None:
    rates = {"a": 0.2, "b": 0.4, "c": 0.3}
    log, versions = simulated(rates, 8000, delay=700)
    rollout = decode_setup(versions[max(versions)]).rollout("offers")
    posterior = posterior_of(rollout)
    assert posterior is not None
    arms = [arm for arm in posterior.arms.values() if isinstance(arm, BetaArm)]
    assert sum(arm.alpha + arm.beta - 2 for arm in arms) == 7200
    assert rollout.variants[1].share > 890_000
    stop = should_stop(posterior)
    assert stop is not None and stop.arm == "b" and stop.probability > 0.99
    for name, rate in rates.items():
        weighted = np.array([reward * MILLION / share if arm == name else 0.0 for _, arm, share, reward in log])
        assert abs(weighted.mean() - rate) < 4 * weighted.std() / len(log) ** 0.5
        assert weighted.std() / len(log) ** 0.5 < 0.03


def test_rewards_that_were_corrected_leave_no_trace() -> None:
    start = posterior_of_arms([(1, 1), (1, 1)])
    wrong = start.counted([("arm 0", True), ("arm 1", True)])
    right = start.counted([("arm 0", True), ("arm 1", False)])
    assert wrong.counted([("arm 1", False)], withdrawn=[("arm 1", True)]).arms == right.arms
