"""Canaries on decisions that are drawn at random: how a variant decides, and what its guardrails then say at each look."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mlpkg.rollout.guardrails import ENOUGH, Guardrail, judge_canary
from mlpkg.rollout.metrics import DecisionColumns, VariantSummary

STEPS = (0.01, 0.05, 0.1, 0.25, 0.5)  # the share of the candidate; at 100 % there is no control left
Array = np.ndarray


@dataclass(frozen=True)
class Decides:
    """How a variant decides: decisions are drawn from `scores` and `truths`, and those above `threshold` are declined."""

    scores: Array
    truths: Array
    threshold: float = 0.5
    errors: float = 0.001
    deadlines: float = 0.001
    slower: float = 1.0
    edges: Sequence[float] = ()

    def summary(self, rng: np.random.Generator, n: int) -> VariantSummary:
        """Draw `n` decisions; their outcomes are known at once."""
        rows = rng.integers(0, len(self.scores), n)
        failed = rng.random(n)
        errors, fallbacks = failed < self.errors, failed < self.errors + self.deadlines
        scores = np.where(fallbacks, np.nan, self.scores[rows])
        actions = np.array(["approve", "decline"], object)[(scores > self.threshold).astype(int)]
        actions[fallbacks] = "review"
        latencies = rng.lognormal(np.log(900), 0.4, n) * self.slower
        made = self.empty()
        made.add_many(DecisionColumns(actions, scores, latencies, fallbacks, errors))
        made.add_outcomes(scores, self.truths[rows])
        return made

    def empty(self) -> VariantSummary:
        """Return a summary with the edges of this traffic."""
        made = VariantSummary()
        if len(self.edges):
            made.scores = type(made.scores).empty(self.edges)
        return made


def drawn(rng: np.random.Generator, n: int = 50_000, **changes: float) -> Decides:
    """A model that knows the risk of each decision, one in twenty on average."""
    scores = rng.beta(1, 19, n)
    return replace(Decides(scores, rng.random(n) < scores, threshold=0.15), **changes)


class CanaryRun(NamedTuple):
    """How a canary ended: `breach` with the metrics, `fine` at its last step, or `waiting` when time was up.

    `step` is the last step from 1, `decisions` are all of the candidate, and `everywhere` those of both arms.
    """

    state: str
    step: int
    metrics: tuple[str, ...]
    decisions: int
    everywhere: int


def run_canary(
    rng: np.random.Generator,
    control: Decides,
    candidate: Decides,
    guardrails: Sequence[Guardrail],
    *,
    steps: Sequence[float] = STEPS,
    alpha: float = 0.05,
    look: int = 100,
    enough: int = ENOUGH,
    most: int = 6000,
    by_hand: bool = False,
) -> CanaryRun:
    """Run a canary, with a look after every `look` decisions of the candidate.

    It ends when a step waits for `most` of them; with `by_hand` an operator passes the step then.
    """
    decisions, everywhere, seen = 0, 0, []
    for step, share in enumerate(steps, 1):
        arms = control.empty(), candidate.empty()
        seen.append(arms)
        state = "waiting"
        while state == "waiting":
            if arms[1].decisions >= most:
                if by_hand:
                    break
                return CanaryRun("waiting", step, (), decisions, everywhere)
            n = round(look * (1 - share) / share), look
            for arm, decides, count in zip(arms, (control, candidate), n, strict=True):
                arm.merge(decides.summary(rng, count))
            decisions, everywhere = decisions + look, everywhere + sum(n)
            judgement = judge_canary(guardrails, seen, alpha=alpha, enough=enough)
            state = judgement.state
        if state == "breach":
            metrics = tuple(v.guardrail.metric for v in judgement.verdicts if v.state == "breach")
            return CanaryRun("breach", step, metrics, decisions, everywhere)
    return CanaryRun("fine", len(steps), (), decisions, everywhere)
