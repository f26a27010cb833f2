"""Simulate bandits: what they lose until they know the best arm, how often they stop at a wrong one, and what their logs tell.

    python benchmarks/rollouts/bandit.py [--full] [-o FILE]

Of ten arms, nine pay 1 with probability 0.4 and one with 0.5. The last settings have two arms that are close. A decision loses
the difference between the best arm's probability and that of the arm it took; the sum of these losses is the regret. A run takes
its decisions as a service does: by the shares of a rollout and a hash of the decision's id. Each setting states after how many
decisions a reward is known, how often the posterior has a new version, and the floor. Runs differ in their salt and in their
rewards, and every seed is fixed.
"""

import argparse
import json
import time
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlpkg import lab
from mlpkg.assignment import MILLION, BetaArm, Posterior, Rollout, Stop, Variant, bucket, reweigh, should_stop

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
                hits.setdefault(f"{estimate} of the {of}", []).append(bool(low <= rate <= high))
                hits.setdefault(f"{estimate} error of the {of}", []).append(table.loc[estimate, "error"])
    return {name: float(np.mean(values)) for name, values in hits.items()}


def summary(setting: Setting, runs: list[Run], decisions: int) -> dict[str, Any]:
    """The figures of a setting."""
    figures: dict[str, Any] = {"setting": setting.name, "runs": len(runs)}
    for shown in (n for n in SHOWN if n <= decisions):
        regrets = np.array([run.regret(shown) for run in runs])
        figures[f"regret after {shown}"] = float(regrets.mean())
        figures[f"error after {shown}"] = float(regrets.std(ddof=1) / len(runs) ** 0.5)
    stopped = [run for run in runs if run.stop]
    figures["stopped"] = len(stopped)
    figures["stopped wrong"] = sum(run.stop is not None and run.stop.arm != "arm 0" for run in stopped)
    figures["stopped after, median"] = float(np.median([run.stopped_after for run in runs]))
    if setting.floor:
        figures["coverage"] = coverage(setting, runs)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--full",
        action="store_true",
        help="400 runs (100 of the first setting) of 10,000 decisions, instead of 5 of 1,000",
    )
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    decisions = 10_000 if arguments.full else 1_000
    figures = []
    for setting in SETTINGS:
        start = time.process_time()
        runs = [simulate(setting, seed, decisions) for seed in range(setting.runs if arguments.full else 5)]
        figures.append(summary(setting, runs, decisions) | {"cpu_seconds": time.process_time() - start})
        print(json.dumps(figures[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
