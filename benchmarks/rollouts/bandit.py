"""Simulate bandits: what they lose until they know the best arm, how often they stop at a wrong one, and what their logs tell.

    python benchmarks/rollouts/bandit.py [--full] [-o FILE]

Of ten arms, nine pay 1 with probability 0.4 and one with 0.5. The last settings have two arms that are close. A decision loses
the difference between the best arm's probability and that of the arm it took; the sum of these losses is the regret. A run takes
its decisions as a service does: by the shares of a rollout and a hash of the decision's id. Each setting states after how many
decisions a reward is known, how often the posterior has a new version, and the floor. Runs differ in their salt and in their
rewards, and every seed is fixed. In full there are 400 runs of 10,000 decisions, 100 of the first setting.
"""

import argparse
import sys
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from bench import BenchmarkRow, arguments, report, row  # noqa: E402

from mlpkg import lab  # noqa: E402
from mlpkg.assignment import (  # noqa: E402
    MILLION,
    BetaArm,
    Posterior,
    Rollout,
    Stop,
    Variant,
    bucket,
    reweigh,
    should_stop,
)

SHOWN = (1_000, 10_000)  # decisions after which the regret is shown


@dataclass(frozen=True)
class Setting:
    """How a bandit learns: `delay` is the decisions until a reward is known, `every` those between two versions."""

    name: str
    delay: int = 0
    every: int = 1
    floor: float = 0.0
    is_random: bool = False  # delays are exponential, with `delay` as their mean
    runs: int = 400
    rates: tuple[float, ...] = (0.5, *[0.4] * 9)  # the first arm is the best
    sure: float = 0.99
    loss: float = 0.001

    @property
    def arms(self) -> list[str]:
        return [f"arm {number}" for number in range(len(self.rates))]


SETTINGS = (
    Setting("immediate", runs=100),
    Setting("immediate, a version every 100", every=100),
    Setting("100 later, a version every 100", delay=100, every=100),
    Setting("500 later, a version every 100", delay=500, every=100),
    Setting("500 later on average, exponential, a version every 100", delay=500, every=100, is_random=True),
    Setting("1,000 later, a version every 1,000", delay=1000, every=1000),
    Setting("500 later, a version every 100, floor 1 %", delay=500, every=100, floor=0.01),
    *(
        Setting(f"0.10 and 0.11, stop at {sure}", 500, 100, 0.05, rates=(0.11, 0.1), sure=sure, loss=0.0)
        for sure in (0.9, 0.95, 0.99)
    ),
)


@dataclass(frozen=True)
class Run:
    """What happened in one run: for each decision the arm and its probability, the reward, and where the bandit would stop."""

    rates: np.ndarray
    arm: np.ndarray
    probability: np.ndarray
    reward: np.ndarray
    stop: Stop | None
    stopped_after: int

    def regret(self, decisions: int) -> float:
        return float((self.rates.max() - self.rates[self.arm[:decisions]]).sum())


def simulate(setting: Setting, seed: int, decisions: int) -> Run:
    """One run. The bandit goes on after its stop, which is only noted."""
    rng, names, rates = np.random.default_rng(seed), setting.arms, np.array(setting.rates)
    delays = rng.exponential(setting.delay, decisions) if setting.is_random else np.full(decisions, setting.delay)
    known_at = np.arange(decisions) + 1 + np.ceil(delays).astype(np.int64)
    order = np.argsort(known_at, kind="stable")
    arrivals = known_at[order]
    variants = [Variant(name=name, share=MILLION // len(names)) for name in names]
    rollout = Rollout(name="arms", kind="bandit", salt=f"arms-{seed}", variants=variants)
    posterior = Posterior({name: BetaArm() for name in names})
    arm, share, reward = (np.zeros(decisions, np.int64) for _ in range(3))
    edges, counted, stop, stopped_after = rollout.edges(), 0, None, decisions
    for number in range(decisions):
        if number % setting.every == 0 and number:
            until = int(np.searchsorted(arrivals, number, "right"))
            due, counted = order[counted:until], until
            posterior = posterior.counted((names[arm[i]], int(reward[i])) for i in due.tolist())
            rollout = reweigh(rollout, posterior, setting.floor)
            edges = rollout.edges()
            if stop is None and number % 100 == 0 and (stop := should_stop(posterior, setting.sure, setting.loss)):
                stopped_after = number
        arm[number] = bisect_right(edges, bucket(rollout.salt, str(number)))
        share[number] = rollout.variants[arm[number]].share
        reward[number] = rng.random() < rates[arm[number]]
    return Run(rates, arm, share / MILLION, reward, stop, stopped_after)


def drawn_regret(decisions: int, runs: int = 1000) -> float:
    """The mean regret in the first setting if each decision draws from the posteriors and takes the largest, as is usual."""
    rng, rates, each = np.random.default_rng(0), np.array(SETTINGS[0].rates), np.arange(runs)
    yes, no, regret = np.ones((runs, len(rates))), np.ones((runs, len(rates))), 0.0
    for _ in range(decisions):
        arm = rng.beta(yes, no).argmax(axis=1)
        reward = rng.random(runs) < rates[arm]
        yes[each, arm] += reward
        no[each, arm] += ~reward
        regret += float((rates.max() - rates[arm]).mean())
    return regret


def coverage(setting: Setting, runs: list[Run]) -> dict[str, float]:
    """How often the 95 % intervals of the arms' means hold, for each estimate; for the best arm and for the others."""
    names, hits = np.array(setting.arms), dict[str, list[bool]]()
    for run in runs:
        log = pd.DataFrame({"variant": names[run.arm], "probability": run.probability})
        log["reward"] = run.reward
        for number, (name, rate) in enumerate(zip(setting.arms, setting.rates, strict=True)):
            of = "best" if number == 0 else "others"
            table = lab.off_policy(log, {name: 1.0}, "reward").estimates
            for estimate in ("ips", "snips", "dr"):
                low, high = table.loc[estimate, ["low", "high"]]
                hits.setdefault(f"95 % intervals that hold, {estimate} of the {of}", []).append(
                    bool(low <= rate <= high)
                )
                hits.setdefault(f"standard error, {estimate} of the {of}", []).append(table.loc[estimate, "error"])
    return {name: float(np.mean(values)) for name, values in hits.items()}


def rows_of(setting: Setting, runs: list[Run]) -> Iterator[BenchmarkRow]:
    """The rows of a setting."""
    decisions, even = len(runs[0].arm), max(setting.rates) - float(np.mean(setting.rates))
    for shown in (n for n in SHOWN if n <= decisions):
        regrets = np.array([run.regret(shown) for run in runs])
        error = regrets.std(ddof=1) / len(runs) ** 0.5
        is_first = setting is SETTINGS[0]
        peer, theirs = ("by draws", drawn_regret(shown)) if is_first else ("even shares", even * shown)
        work = f"regret after {shown:,} decisions: {setting.name}"
        yield row(work, float(regrets.mean()), peer, theirs, "stated", "", f"standard error {error:.2g}")
    stops = [run.stop for run in runs if run.stop]
    wrong = sum(stop.arm != setting.arms[0] for stop in stops)
    after = np.median([run.stopped_after for run in runs])
    note = f"{wrong} of {len(stops)}, {len(runs)} runs; in the median after {after:,.0f} decisions"
    yield row(f"stops at a wrong arm: {setting.name}", wrong / max(len(stops), 1), "", None, "ours >= 0", "", note)
    if setting.floor:
        for name, value in coverage(setting, runs).items():
            must = "ours >= 0" if name.startswith("standard") or decisions < SHOWN[-1] else "ours >= 0.9"
            yield row(f"{name}: {setting.name}", value, "", None, must, "")


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    decisions = SHOWN[-1] if options.full else SHOWN[0]
    for setting in SETTINGS:
        runs = [simulate(setting, seed, decisions) for seed in range(setting.runs if options.full else 5)]
        yield from rows_of(setting, runs)


if __name__ == "__main__":
    options = arguments(__doc__ or "").parse_args()
    report(list(measure(options)), options.output)
