"""A hot key: the cost of a long window, an append and a late outcome for a key with a million events instead of a thousand.

    python benchmarks/features/hot_key.py [--full] [--rows N] [-o FILE]

Two customers have events spread evenly over 30 days: the hot customer has all the rows, the other a thousand. A read computes
count, sum, mean, std, min and max over a window of the hot customer: one window holds all events, the other a thousand.
Appends and reports of outcomes are measured for both customers. A report is about a payment seven days back and has reports
before and after it. All of them take turns on one store; the figures are medians in microseconds.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from harness import DAY, BenchmarkRow, main, row
from stores import batches, evaluated, new_store, reports, taken
from tables import source as payments

import mlpkg as ml
from mlpkg.times import SECOND, iso

FEW, ROUNDS = 1000, 60
START = 20_000 * DAY
AGGREGATES = ["count", "sum", "mean", "std", "min", "max"]


def set_over(source: Any, name: str, window: str) -> ml.FeatureSet:
    columns = {verb: () if verb == "count" else ("amount",) for verb in AGGREGATES}
    aggregates = {verb: getattr(ml, verb)(*column, over=window) for verb, column in columns.items()}
    return ml.FeatureSet(name, on=source, c=source.by("customer_id").agg(**aggregates))


def spread(customer: int, events: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "time": START + (np.arange(1, events + 1) * (30 * DAY)) // events,
        "customer_id": np.full(events, customer),
        "terminal_id": rng.integers(0, 1000, events),
        "cents": rng.integers(1, 50_000, events),
    }


def fill(store: Any, source: Any, frauds: Any, rows: dict[str, np.ndarray], prefix: str) -> list[str]:
    """Load the payments and their reports. Leave out reports of seven days ago; return the ids of those payments."""
    for batch in batches(source, rows, 50_000, prefix):
        store.load(batch)
    age = START + 30 * DAY - rows["time"]
    open_ones = np.flatnonzero(np.abs(age - 7 * DAY) < DAY)
    step = max(1, len(open_ones) // (ROUNDS + 6))
    left = open_ones[::step][: ROUNDS + 6]
    reported = np.setdiff1d(np.arange(len(age)), left)
    for begin in range(0, len(reported), 50_000):
        chosen = reported[begin : begin + 50_000]
        arrived = np.full(len(chosen), START + 30 * DAY)
        store.load(reports(frauds, [f"{prefix}{i}" for i in chosen.tolist()], chosen % 100 == 0, arrived))
    return [f"{prefix}{i}" for i in left.tolist()]


def check(features: dict[str, Any], cents: np.ndarray, extra: int) -> None:
    """Compare the window with plain NumPy. Each added payment has the amount 12.34."""
    values = np.r_[cents, np.full(extra, 1234)]
    expected = {
        "count": len(values),
        "sum": values.sum() / 100,
        "mean": values.sum() / (len(values) * 100),
        "min": values.min() / 100,
        "max": values.max() / 100,
    }
    for verb, value in expected.items():
        if features[verb] != value:
            raise SystemExit(f"{verb} is {features[verb]}, should be {value}")
    if "std" in features and abs(features["std"] / (np.std(values, ddof=1) / 100) - 1) > 1e-9:
        raise SystemExit(f"std is {features['std']}, should be {np.std(values, ddof=1) / 100}")


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    source = payments()
    frauds = source.outcome("fraud", bool, default=False, matures_after="7d")
    store: Any = new_store(options.folder)
    short = 30 * DAY * FEW // options.rows // SECOND  # seconds in which the hot customer has a thousand events
    wide, narrow = set_over(source, "wide", "30d"), set_over(source, "narrow", f"{short}s")
    reported = frauds.by("customer_id").agg(n=ml.count(over="30d"))
    for features in (wide, narrow, ml.FeatureSet("reported", on=source, c=reported)):
        store.register(features.name, features)
    hot, cold = spread(1, options.rows, 1), spread(2, FEW, 2)
    waiting = {1: fill(store, source, frauds, hot, "h"), 2: fill(store, source, frauds, cold, "c")}
    rounds = min(ROUNDS, *(len(ids) for ids in waiting.values()))
    took: dict[str, list[float]] = {}
    now = START + 30 * DAY
    added = 0

    def payment(customer: int, time: int) -> dict[str, Any]:
        return {
            "id": f"n{customer}-{time}",
            "time": iso(time),
            "customer_id": customer,
            "terminal_id": 0,
            "amount": 12.34,
        }

    for k in range(rounds):
        for name, features in (("wide", wide), ("narrow", narrow)):
            event = source.parse(payment(1, now + 1 + added))  # all within a gap, so that no payment leaves the window
            with store.decision(name, source, event, event.time) as unit:
                out: list[Any] = []
                took.setdefault(name, []).append(
                    taken(lambda f=features, e=event, u=unit, v=out: v.extend(evaluated(f, u, e)))
                )
                unit.record("{}")
            added += 1
            values = {n.split("_")[1]: v for n, v in zip(features.names, out, strict=True)}
            if k == 0:
                start = event.time - (30 * DAY if name == "wide" else short * SECOND)
                check(values, hot["cents"][hot["time"] > start], added)
        for customer in (1, 2):
            body = payment(customer, now + 1 + added)
            took.setdefault(f"append {customer}", []).append(
                taken(lambda b=body, time=now + added: store.accept(source, b, arrived=time))
            )
            added += customer == 1
            body = {"id": waiting[customer][k], "fraud": True}
            took.setdefault(f"report {customer}", []).append(taken(lambda b=body: store.report(frauds, b, arrived=now)))
    p50 = {name: float(np.median(times[3:])) for name, times in took.items()}
    what = f"on a key with {options.rows:,} events"
    less = f"{FEW:,} events"
    must = "ours / theirs <= 2"
    yield row(
        f"read a window of {options.rows:,} events {what}",
        p50["wide"],
        f"a window of {less}",
        p50["narrow"],
        must,
        "µs",
    )
    yield row(f"append {what}", p50["append 1"], f"ours, {less}", p50["append 2"], must, "µs")
    yield row(f"an outcome 7 days back {what}", p50["report 1"], f"ours, {less}", p50["report 2"], must, "µs")
    store.close()


if __name__ == "__main__":
    main(__doc__, measure, rows=(200_000, 1_000_000), best=1)
