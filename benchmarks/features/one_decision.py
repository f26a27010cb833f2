"""The features of one decision from stored timelines, reads included: 14 and 100 features.

    python benchmarks/features/one_decision.py [--full] [--rows N] [-o FILE]

The store has card payments with their fraud reports. Every decision is about a new payment of a random customer at a random
terminal, inside a real transaction. The reads and the evaluation of its features are timed. The fourteen are those of
the Fraud Detection Handbook, over three timelines; fourteen others and the hundred (count and mean over ten windows, of
amounts and frauds) need four. Afterwards all are computed from the log and have to be the same to the bit.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import REAL, BenchmarkRow, main, row
from stores import evaluated, new_store, taken

import mlpkg as ml
from mlpkg.decisions import use_case
from mlpkg.examples.fraud.simulator import simulate
from mlpkg.features import compute
from mlpkg.lab.ingest import ingest_file
from mlpkg.times import DAY, iso

TEN = ["1h", "3h", "6h", "12h", "1d", "3d", "7d", "14d", "21d", "30d"]
THREE = ["1d", "7d", "30d"]
DECISIONS = 1000


def payments_file(folder: Path, rows: int) -> Path:
    """A file of about `rows` payments: the handbook's if it lies beside the checkout and is large enough, else simulated ones."""
    if REAL.exists() and rows >= 1_700_000:
        return REAL
    customers = max(20, rows * 5000 // 1_754_155)
    simulate(customers, 2 * customers).to_parquet(folder / "payments.parquet")
    return folder / "payments.parquet"


def feature_sets(source: Any, frauds: Any) -> dict[str, ml.FeatureSet]:
    """Return the three feature sets by their descriptions."""
    from handbook import handbook  # harness knows where that is

    def paid(key: str, windows: list[str]) -> Any:
        return source.by(key).agg(n=ml.count(over=windows), mean=ml.mean("amount", over=windows))

    def reported(key: str, windows: list[str]) -> Any:
        return frauds.by(key, delay="7d").agg(n=ml.count(over=windows), risk=ml.mean("fraud", over=windows))

    def reported_more(key: str) -> Any:
        aggregates = {"n": ml.count(over=TEN), "risk": ml.mean("fraud", over=TEN), "mean": ml.mean("amount", over=TEN)}
        return frauds.by(key, delay="7d").agg(**aggregates)

    fourteen = ml.FeatureSet(
        "fourteen",
        on=source,
        customer=paid("customer_id", THREE),
        terminal=reported("terminal_id", THREE),
        customer_fraud=reported("customer_id", ["30d"]),
    )
    hundred = ml.FeatureSet(
        "hundred",
        on=source,
        customer=paid("customer_id", TEN),
        terminal=paid("terminal_id", TEN),
        customer_fraud=reported_more("customer_id"),
        terminal_fraud=reported_more("terminal_id"),
    )
    fifteen = handbook().features  # with the amount
    members = {name: what for name, what in fifteen.members.items() if name != "amount"}
    book = ml.FeatureSet("handbook", on=source, **members)
    return {"14 of the handbook, 3 timelines": book, "14, 4 timelines": fourteen, "100, 4 timelines": hundred}


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    case = use_case("fraud")
    source, frauds = case.on, case.on.outcomes["fraud"]
    sets = feature_sets(source, frauds)
    store: Any = new_store(options.folder)
    for features in sets.values():
        store.register(features.name, features)
    ingest_file(case, payments_file(options.folder, options.rows), store)
    events = store.history([source], []).events[source.name]
    last, rng = int(events.time[-1]), np.random.default_rng(1)
    known = {key: np.unique(events.columns[key]) for key in ("customer_id", "terminal_id")}
    took: dict[str, list[float]] = {name: [] for name in sets}
    values: dict[str, list[tuple[int, int, list[Any]]]] = {name: [] for name in sets}
    for k in range(DECISIONS + 100):
        for number, (name, features) in enumerate(sets.items()):
            about = {key: int(rng.choice(ids)) for key, ids in known.items()}
            time = last + 1000 * (3 * k + number)
            event = source.parse({"id": f"b{k}-{number}", "time": iso(time), **about, "amount": 12.34})
            with store.decision(features.name, source, event, time + DAY) as unit:
                computed: list[Any] = []
                took[name].append(taken(lambda f=features, e=event, u=unit, v=computed: v.extend(evaluated(f, u, e))))
                values[name].append((unit.event_position, unit.log_position, computed))
                unit.record("{}")
    history = store.history([source], [frauds])
    for name, features in sets.items():
        own, seen, computed = zip(*values[name], strict=True)
        rows = np.searchsorted(history.events[source.name].position, np.array(own))
        past = compute(features, history, rows, np.array(seen))
        for feature, column in zip(features.names, zip(*computed, strict=True), strict=True):
            if not np.array_equal(np.array(column, past[feature].dtype), past[feature], equal_nan=True):
                raise SystemExit(f"{feature} of the {name} is another number in the past")
    for name, most in zip(sets, (45, 45, 80), strict=True):
        p50, p99 = np.percentile(took[name][100:], [50, 99])
        work = f"features of one decision, reads included, {len(events):,} events stored: {name}, p50"
        yield row(work, float(p50), "", None, f"ours <= {most}", "µs", f"p99 {p99:.0f} µs")
    store.close()


if __name__ == "__main__":
    main(__doc__, measure, rows=(100_000, 1_754_155), best=1)
