"""Guardrails: a good canary passes, a bad one is rolled back, and time alone passes nothing."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from simulated_canaries import STEPS, CanaryRun, Decides, drawn, run_canary

from mlpkg.assignment import Assignment
from mlpkg.decisions.record import encode_decision
from mlpkg.errors import MlpkgError
from mlpkg.examples.tiny import tiny
from mlpkg.rollout.distributions import score_edges
from mlpkg.rollout.guardrails import Guardrail, Judgement, alpha_of, default_guardrails, judge_canary
from mlpkg.rollout.metrics import (
    DecisionColumns,
    RolloutMetrics,
    VariantSummary,
    decision_columns,
    decode_metrics,
    encode_metrics,
)

USUAL = default_guardrails(["decline"], outcomes=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def runs(rng: np.random.Generator, control: Decides, candidate: Decides, count: int, **options: Any) -> list[CanaryRun]:
    return [run_canary(rng, control, candidate, USUAL, look=200, **options) for _ in range(count)]


def test_identical_canaries_pass(rng: np.random.Generator):
    control = drawn(rng)
    assert {run.state for run in runs(rng, control, control, 5)} == {"fine"}


def test_canaries_whose_harm_is_just_tolerated_are_not_rolled_back(rng: np.random.Generator):
    control = drawn(rng)
    threshold = float(np.quantile(control.scores, 1 - (control.scores > control.threshold).mean() - 0.03))
    candidate = replace(control, errors=0.006, deadlines=0.006, slower=1.2, threshold=threshold)
    assert {run.state for run in runs(rng, control, candidate, 4, by_hand=True, most=2000)} == {"fine"}


@pytest.mark.parametrize(
    ("changes", "metric", "decisions"),
    [
        ({"errors": 0.03}, "error rate", 1000),
        ({"deadlines": 0.06}, "fallback rate", 600),
        ({"slower": 2.0}, "p99 latency", 400),
        ({"threshold": 0.08}, "share of decline", 400),
    ],
    ids=["errors", "deadlines", "slower", "declines"],
)
def test_harm_is_found_within_so_many_decisions(
    rng: np.random.Generator, changes: dict[str, float], metric: str, decisions: int
):
    control = drawn(rng)
    for run in runs(rng, control, replace(control, **changes), 3):
        assert (run.state, run.step) == ("breach", 1)
        assert metric in run.metrics and run.decisions <= decisions


def model(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the features of decisions, their truths, and the weights of the model that knows them."""
    features = rng.normal(size=(40_000, 4)) * [1, 3, 0.3, 1] + [0, 1, 3, -1]
    weights = np.array([0.4, 0.5, -1.5, 0.8])
    return features, rng.random(len(features)) < 1 / (1 + np.exp(-features @ weights)), weights


def test_features_in_a_wrong_order_are_found_by_the_distribution_of_scores(rng: np.random.Generator):
    features, truths, weights = model(rng)

    def decides(order: list[int]) -> Decides:
        scores = 1 / (1 + np.exp(-features[:, order] @ weights))
        return Decides(scores, truths, edges=edges or score_edges(scores))

    edges: list[float] = []
    control = decides([0, 1, 2, 3])
    edges = list(control.edges)
    scores = [Guardrail("score distribution", 0.1)]
    assert run_canary(rng, control, control, scores).state == "fine"
    broken = run_canary(rng, control, decides([2, 0, 3, 1]), scores)
    assert (broken.state, broken.step, broken.metrics) == ("breach", 1, ("score distribution",))
    assert broken.decisions <= 300


def test_features_of_another_event_are_found_by_outcomes_alone(rng: np.random.Generator):
    features, truths, weights = model(rng)
    control = Decides(1 / (1 + np.exp(-features @ weights)), truths)
    broken = run_canary(rng, control, replace(control, scores=rng.permutation(control.scores)), USUAL)
    assert (broken.state, broken.metrics) == ("breach", ("log loss",))


def test_time_alone_passes_nothing(rng: np.random.Generator):
    """The same few decisions are judged again and again."""
    control = drawn(rng)
    arms = control.summary(rng, 20_000), control.summary(rng, 200)
    assert {judge_canary(USUAL, [arms]).state for _ in range(50)} == {"waiting"}
    assert judge_canary([], [arms]).state == "waiting"


def test_traffic_that_changes_between_steps_is_no_harm(rng: np.random.Generator):
    """From the third step on everybody declines more. Steps are judged apart; put together, they would seem to differ."""
    before = drawn(rng)
    after = replace(before, threshold=0.1)
    pooled = before.empty(), before.empty()
    steps = []
    for step, share in enumerate(STEPS, 1):
        decides = before if step < 3 else after
        steps.append((decides.summary(rng, round(3000 * (1 - share) / share)), decides.summary(rng, 3000)))
        assert judge_canary(USUAL, steps).state == "fine", judge_canary(USUAL, steps).why
        for whole, part in zip(pooled, steps[-1], strict=True):
            whole.merge(part)
    assert judge_canary(USUAL, [pooled]).state == "breach"


def test_outcomes_that_come_late_roll_back_but_hold_no_step(rng: np.random.Generator):
    control = drawn(rng)
    arms = control.summary(rng, 50_000), control.summary(rng, 3000)
    arms[1].outcomes = type(arms[1].outcomes)()
    assert judge_canary(USUAL, [arms]).state == "fine"
    arms[1].add_outcomes(np.full(3000, 0.6), rng.random(3000) < 0.05)
    judgement = judge_canary(USUAL, [arms])
    assert judgement.state == "breach"
    assert judgement.why.startswith("The log loss is ") and "tolerated: 0.02" in judgement.why


def test_the_errors_of_all_guardrails_and_steps_add_up_to_what_is_stated():
    spent = sum(alpha_of(guardrail, 0.05, 6, step) for guardrail in USUAL[:-1] for step in range(1, 2000))
    assert spent + alpha_of(USUAL[-1], 0.05, 6, 1) == pytest.approx(0.05, rel=1e-3)
    judgement = judge_canary(USUAL, [(VariantSummary(), VariantSummary())] * 3, alpha=0.1)
    assert [v.alpha for v in judgement.verdicts] == pytest.approx([0.1 / 6 / 12] * 5 + [0.1 / 6])


@pytest.mark.parametrize(
    ("metric", "at_most", "message"),
    [
        ("latency p99", 0.2, "a guardrail on 'latency p99', which is no metric; did you mean 'p99 latency'"),
        ("error rate", 0.0, "the guardrail on 'error rate' tolerates 0.0"),
        ("share of ", 0.1, "no metric"),
    ],
)
def test_a_guardrail_that_makes_no_sense_is_refused(metric: str, at_most: float, message: str):
    with pytest.raises(MlpkgError, match=message):
        Guardrail(metric, at_most)
    with pytest.raises(MlpkgError, match=message):
        msgspec.json.decode(msgspec.json.encode({"metric": metric, "at_most": at_most}), type=Guardrail)


def test_a_judgement_is_the_same_after_json(rng: np.random.Generator):
    control = drawn(rng)
    judgement = judge_canary(USUAL, [(control.summary(rng, 9000), replace(control, slower=3.0).summary(rng, 900))])
    assert msgspec.json.decode(msgspec.json.encode(judgement), type=Judgement) == judgement


def columns(rng: np.random.Generator, n: int) -> DecisionColumns:
    failed = rng.random(n) < 0.1
    scores = np.where(failed, np.nan, rng.random(n))
    actions = np.array(["approve", "decline"], object)[rng.integers(0, 2, n)]
    return DecisionColumns(actions, scores, rng.lognormal(6, 1, n), failed, failed & (rng.random(n) < 0.5))


def test_counts_are_the_same_in_pieces_merged_and_after_json(rng: np.random.Generator):
    many, key = columns(rng, 3000), ("new", 1, "candidate")
    truths = rng.random(3000) < 0.3
    whole, pieces, merged = RolloutMetrics(), RolloutMetrics(), RolloutMetrics()
    whole.add_many(many, {key: np.arange(3000)})
    whole.arm(key).add_outcomes(many.scores, truths)
    for rows in np.array_split(np.arange(3000), [1, 7, 500, 501]):
        part = RolloutMetrics()
        for metrics in (pieces, part):
            metrics.add_many(many, {key: rows})
            metrics.arm(key).add_outcomes(many.scores[rows], truths[rows])
        pieces = decode_metrics(encode_metrics(pieces))
        merged.merge(part)
    assert encode_metrics(pieces).split('"outcomes"')[0] == encode_metrics(whole).split('"outcomes"')[0]
    for metrics in (pieces, merged):
        assert vars(metrics.arm(key).outcomes) == pytest.approx(vars(whole.arm(key).outcomes))
    assert encode_metrics(merged).split('"outcomes"')[0] == encode_metrics(whole).split('"outcomes"')[0]


def test_a_corrected_outcome_counts_as_if_it_had_been_right_at_once(rng: np.random.Generator):
    scores, truths = rng.random(100), rng.random(100) < 0.3
    right, corrected = VariantSummary(), VariantSummary()
    right.add_outcomes(scores, truths)
    corrected.add_outcomes(scores, ~truths)
    corrected.add_outcomes(scores, ~truths, sign=-1)
    corrected.add_outcomes(scores, truths)
    assert vars(corrected.outcomes) == pytest.approx(vars(right.outcomes))


def test_decisions_of_the_log_count_for_what_they_were_assigned_to():
    """A decision of the fallback counts, too, although the variant's model was not asked."""
    with tiny() as example:
        decision = example.decide(60)
    arms = [Assignment("r", 1, "b", 0.5, unexposed="refused")]
    failed = msgspec.structs.replace(decision, score=None, assignments=arms, fallback={"why": "score", "detail": "…"})
    metrics = RolloutMetrics()
    metrics.add_many(*decision_columns([encode_decision(decision), encode_decision(failed)]))
    summary = metrics.arms.pop(("r", 1, "b"))
    assert (summary.decisions, summary.errors, summary.scores.n, metrics.arms) == (1, 1, 0, {})
    assert summary.latency.n == 1 and summary.actions == {decision.action: 1}


def test_columns_of_the_log_name_the_rows_of_each_arm():
    def body(action: str, score: float | None, arms: list[tuple[str, str]], why: str | None = None) -> str:
        assignments = [{"rollout": r, "version": 2, "variant": v, "probability": 0.5} for r, v in arms]
        decision = {"id": "x", "action": action, "score": score, "latency_us": 5, "features": {"n": 1}}
        decision |= {"fallback": why and {"why": why, "detail": "…"}} | ({"assignments": assignments} if arms else {})
        return msgspec.json.encode(decision).decode()

    made, arms = decision_columns(
        [
            body("a", 0.5, [("r", "x"), ("s", "y")]),
            body("b", None, [("r", "z")], "deadline"),
            body("b", None, [("s", "y"), ("r", "x")], "features"),
            body("c", 0.1, []),
        ]
    )
    assert {key: rows.tolist() for key, rows in arms.items()} == {
        ("r", 2, "x"): [0, 2],
        ("s", 2, "y"): [0, 2],
        ("r", 2, "z"): [1],
    }
    assert (made.fallbacks.tolist(), made.errors.tolist()) == ([False, True, True, False], [False, False, True, False])
