"""One decision in this process, durable to the death of the process, and the score of one row.

    python benchmarks/service/in_process.py [--full] [-o FILE]

Every decision is about a new payment of a random customer at a random terminal. The score of one row and
LightGBM's fast call on a row that is an array of C already take turns. The score has to equal that of `Booster.predict` to the
bit.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from served import SERVERS, BenchmarkRow, main, make_store, payments, row, sys

from mlpkg.decisions import Decider
from mlpkg.settings import Settings
from mlpkg.store import open_store

sys.path.insert(0, str(SERVERS))

from fast import Fast  # noqa: E402
from handbook import handbook  # noqa: E402

TURNS, CALLS = 40, 500


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    model = make_store(options.folder)
    store = open_store(Settings(state=options.folder))
    decider = Decider(handbook(), store)
    number = 20_000 if options.full else 3_000
    taken, rows = [], []
    for body in payments(number + 500):
        began = time.perf_counter_ns()
        decision = decider.decide(body)
        taken.append((time.perf_counter_ns() - began) / 1000)
        rows.append([float(v) for v in decision.features.values() if v is not None])
    store.close()
    p50, p99 = np.percentile(taken[500:], [50, 99])
    note = f"p99 {p99:.0f} µs, least {min(taken):.0f} µs; {number:,} decisions"
    yield row("one decision in this process, durable, p50", float(p50), "", None, "ours <= 100", "µs", note)

    fast, score, rows = Fast(str(model.folder / "model.txt")), model.predictor.score, rows[:CALLS]
    laid = [fast.row(*values) for values in rows]
    expected = fast.booster.predict(np.array(rows), num_threads=1).tolist()
    if [score(values) for values in rows] != expected or [fast.call(values) for values in laid] != expected:
        raise SystemExit("a score is not what Booster.predict gives")
    ours, theirs = [], []
    for _ in range(TURNS):
        ours.append(each(score, rows))
        theirs.append(each(fast.call, laid))
    must = "ours / theirs <= 1.3"
    note = "bit-identical to Booster.predict"
    yield row("the score of one row", min(ours), "LightGBM's fast call", min(theirs), must, "µs", note)


def each(call: Callable[..., float], rows: Sequence[object]) -> float:
    """Return the microseconds of one call."""
    began = time.perf_counter_ns()
    for values in rows:
        call(values)
    return (time.perf_counter_ns() - began) / 1000 / len(rows)


if __name__ == "__main__":
    main(__doc__ or "", measure)
