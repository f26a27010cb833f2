"""What it costs to follow a rollout: a million decisions of the log into counts, and all guardrails at each look.

    python benchmarks/rollouts/guardrails.py [--full] [-o FILE]

Decisions come in batches of 2,000, which stay in the processor's caches. After each batch its counts are added, and after fifty
batches all usual guardrails are judged and the counts are encoded as JSON. Processor time counts, as this runs beside the service.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
from bench import BenchmarkRow, arguments, report, row  # noqa: E402

from mlpkg.rollout.guardrails import default_guardrails, judge_canary  # noqa: E402
from mlpkg.rollout.metrics import RolloutMetrics, decision_columns, encode_metrics  # noqa: E402

BATCH, LOOK = 2_000, 50  # decisions, batches


def bodies(count: int) -> list[str]:
    """Decisions as the log has them: fifteen features, a canary of 10 % and two experiments."""
    draw = random.Random(1)

    def assigned(rollout: str, names: tuple[str, str], share: float) -> dict[str, object]:
        is_second = draw.random() < share
        probability = share if is_second else 1 - share
        return {"rollout": rollout, "version": 1, "variant": names[is_second], "probability": probability}

    def body(i: int) -> str:
        score = draw.betavariate(1, 50)
        arms = [assigned("trees", ("control", "candidate"), 0.1), *(assigned(n, ("a", "b"), 0.5) for n in ("x", "y"))]
        decision = {"id": f"fraud-{i}", "use_case": "fraud", "event": f"payment-{i}", "time": "2018-06-09T12:00:00Z"}
        decision |= {
            "as_of": [1528545600000000, 400_000 + i],
            "model": {"name": "fraud", "version": "0123456789abcdef"},
        }
        decision |= {"assignments": arms, "keys": {"customer_id": i % 5000, "terminal_id": i % 9000}}
        decision |= {"features": {f"customer_avg_amount_{j}d": round(draw.random() * 99, 4) for j in range(15)}}
        decision |= {"score": score, "action": "decline" if score > 0.1 else "approve", "policy": "fedcba9876543210"}
        decision |= {"latency_us": round(draw.lognormvariate(6, 0.5)), "caller": "shop"}
        return json.dumps(decision | {"fallback": {"why": "deadline", "detail": ""} if draw.random() < 0.001 else None})

    return [body(i) for i in range(count)]


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    count = 1_000_000 if options.full else 100_000
    made, metrics, guardrails = (
        bodies(min(count, 200_000)),
        RolloutMetrics(),
        default_guardrails(["decline"], outcomes=True),
    )
    arms = metrics.arm(("trees", 1, "control")), metrics.arm(("trees", 1, "candidate"))
    spent = dict.fromkeys(("read", "add", "judge", "encode"), 0.0)

    def timed(name: str, began: float) -> None:
        spent[name] += time.process_time() - began

    for number in range(count // BATCH):
        batch = made[number * BATCH % len(made) :][:BATCH]
        began = time.process_time()
        columns, rows = decision_columns(batch)
        timed("read", began)
        began = time.process_time()
        metrics.add_many(columns, rows)
        arms[1].add_outcomes(columns.scores[:100], np.arange(100) % 50 == 0)
        timed("add", began)
        if number % LOOK == LOOK - 1:
            began = time.process_time()
            judge_canary(guardrails, [arms])
            timed("judge", began)
            began = time.process_time()
            encode_metrics(metrics)
            timed("encode", began)
    assert arms[0].decisions + arms[1].decisions == count
    note = ", ".join(f"{name} {seconds / count * 1e6:.2f}" for name, seconds in spent.items())
    note = f"µs a decision: {note}; a look {spent['judge'] / (count // BATCH // LOOK) * 1e3:.1f} ms; a body {len(made[0])} bytes"
    counted = spent["add"] + spent["judge"] + spent["encode"]
    each = 1e6 / count
    yield row(
        "guardrails over 10^6 decisions, from columns, CPU time", counted * each, "", None, "ours <= 2", "s", note
    )
    yield row("the same from the log, decoded", sum(spent.values()) * each, "", None, "ours >= 0", "s")


if __name__ == "__main__":
    options = arguments(__doc__ or "").parse_args()
    report(list(measure(options)), options.output)
