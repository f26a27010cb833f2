"""Apply events to timelines on disk, on one core, in batches of 50,000 and of 1,000; river and bytewax beside it.

    python benchmarks/features/apply.py [--full] [--rows N] [-o FILE]

mlpkg accepts each batch as one durable transaction of the log and of timelines by customer and by terminal. Any window can be
computed exactly from a timeline. The batches of 1,000 go into a store that already holds half of the events. At the end each
row is in its timeline. river and bytewax get the same stream. They keep the count and mean over one exact sliding window of 30
days for each customer and each terminal, in memory. Every count per customer has to equal that of mlpkg, and the means have to
agree within 1e-6. The timelines have to agree with the log. What counts is processor time, so that other programs matter less.
"""

import argparse
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
from harness import (
    DAY,
    BenchmarkRow,
    Columns,
    Contender,
    Work,
    agree,
    beside,
    load_payments,
    main,
    row,
    save_payments,
    take_turns,
)

WIDTH = 30 * DAY
SMALL = 300_000  # events that are applied in batches of 1,000


def apply(store: Any, batch: Any) -> None:
    """Load a batch: the call that is measured."""
    loaded = store.load(batch)
    assert not loaded.refused and not loaded.known


def ours(options: argparse.Namespace) -> tuple[Work, Callable[[Any], Columns]]:
    import stores
    import tables

    import mlpkg as ml
    from mlpkg.features import compute

    rows, source = load_payments(options.folder), tables.source()
    aggregates = {"n": ml.count(over="30d"), "mean": ml.mean("amount", over="30d")}
    customer, terminal = (source.by(key).agg(**aggregates) for key in ("customer_id", "terminal_id"))
    features = ml.FeatureSet("bench", on=source, customer=customer, terminal=terminal)
    stored = len(rows["time"]) // 2 if options.size < 50_000 else 0
    timed = {name: v[stored : stored + options.most] for name, v in rows.items()}
    waiting = list(stores.batches(source, timed, options.size, "t"))

    def begun() -> Any:
        store = stores.new_store(options.folder)
        store.register("bench", features)
        for batch in stores.batches(source, {name: v[:stored] for name, v in rows.items()}, 50_000):
            store.load(batch)
        return store

    ready = [begun() for _ in range(options.best)]

    def work() -> Any:
        store = ready.pop()
        for batch in waiting:
            apply(store, batch)
        store.end_load()  # no row may lie beside its timeline any more
        return store

    def columns(store: Any) -> Columns:
        history = store.history([source], [])
        events = history.events[source.name]
        values = compute(features, history, np.arange(len(events)))
        check_timelines(store, source, features, events)
        return {"n": values["customer_n_30d"], "mean": values["customer_mean_30d"]}

    return work, columns


def check_timelines(store: Any, source: Any, features: Any, events: Any) -> None:
    """Compare the counts of 100 customers just after the last event: from their timelines and from the log."""
    import stores

    from mlpkg.times import iso

    time, customers = int(events.time[-1]) + 1, events.columns["customer_id"]
    for customer in np.unique(customers)[:100].tolist():
        body = {"id": f"check-{customer}", "time": iso(time), "customer_id": customer, "terminal_id": 0, "amount": 0.0}
        event = source.parse(body)
        with store.decision("bench", source, event, time) as unit:
            values = dict(zip(features.names, stores.evaluated(features, unit, event), strict=True))
            unit.record("{}")
        expected = int(((customers == customer) & (events.time > time - WIDTH)).sum()) + 1
        if values["customer_n_30d"] != expected:
            raise SystemExit(f"customer {customer}: {values['customer_n_30d']} in the timeline, {expected} in the log")


def river(options: argparse.Namespace) -> tuple[Work, Callable[[Any], Columns]]:
    from collections import defaultdict
    from datetime import datetime, timedelta

    from river import stats, utils

    rows = load_payments(options.folder)
    when = [datetime.fromtimestamp(t / 1e6) for t in rows["time"].tolist()]
    stream = list(zip(when, *(rows[n].tolist() for n in ("customer_id", "terminal_id", "cents")), strict=True))
    width = timedelta(days=30)

    def work() -> Any:
        customers, terminals = (
            defaultdict(lambda: utils.TimeRolling(stats.Mean, period=width)) for _ in ("customer", "terminal")
        )
        results = []
        for time, c, t, x in stream:
            customer = customers[c]
            customer.update(x, t=time)
            terminals[t].update(x, t=time)
            results.append((customer.n, customer.get()))
        return results

    return work, lambda results: as_columns(results)


def bytewax(options: argparse.Namespace) -> tuple[Work, Callable[[Any], Columns]]:
    import bytewax.operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.testing import TestingSink, TestingSource, run_main

    rows = load_payments(options.folder)
    names = ("time", "customer_id", "terminal_id", "cents")
    stream = [(k, *each) for k, each in enumerate(zip(*(rows[n].tolist() for n in names), strict=True))]

    def keyed(event: tuple[int, ...]) -> list[tuple[str, tuple[int, int, int]]]:
        k, time, customer, terminal, cents = event
        return [(f"c{customer}", (k, time, cents)), (f"t{terminal}", (-1, time, cents))]

    def slide(state: Any, event: tuple[int, int, int]) -> tuple[Any, tuple[int, int, float]]:
        held, total = state or (deque(), 0)
        k, time, cents = event
        held.append((time, cents))
        total += cents
        while held[0][0] <= time - WIDTH:
            total -= held.popleft()[1]
        return (held, total), (k, len(held), total / len(held))

    def work() -> Any:
        results: list[Any] = []
        flow = Dataflow("bench")
        events = op.input("in", flow, TestingSource(stream, batch_size=1000))
        held = op.stateful_map("slide", op.flat_map("keyed", events, keyed), slide)
        op.output("out", held, TestingSink(results))
        run_main(flow)
        return results

    return work, lambda results: as_columns([(n, mean) for _, (k, n, mean) in sorted(results, key=place) if k >= 0])


def place(kept: Any) -> int:
    return kept[1][0]


def as_columns(results: list[Any]) -> Columns:
    n, mean = zip(*results, strict=True)
    return {"n": np.array(n, np.int64), "mean": np.array(mean) / 100}


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    events = save_payments(options.folder, options.rows)
    with ExitStack() as stack:
        large = stack.enter_context(Contender("ours", options, size=50_000, most=events, threads=1))
        small = stack.enter_context(Contender("ours", options, size=1000, most=min(SMALL, events // 2), threads=1))
        others, note = beside(stack, ["river", "bytewax"], options, "streams", threads=1)
        take_turns([large, small], options.best)
        take_turns(others, 1)
        expected = large.result()
        for other in others:
            agree(expected, other.result(), other.role, within=1e-6)
        peers = {c.role: (events / min(c.processor), events / c.best) for c in others}
        work = f"apply {events:,} events to durable timelines by two keys, CPU time, in batches of"
        for form, size, applied, peer, must in (
            (large, 50_000, events, "bytewax", "ours >= 200000 and ours / theirs >= 5"),
            (small, 1000, min(SMALL, events // 2), "river", "ours >= 40000 and ours / theirs >= 3"),
        ):
            theirs, by_clock = peers.get(peer, (None, None))
            remark = note or f"by the clock {applied / form.best:,.0f}, the peer {by_clock or 0:,.0f}"
            yield row(f"{work} {size:,}", applied / min(form.processor), peer, theirs, must, "events/s", remark)


if __name__ == "__main__":
    main(__doc__, measure, {"ours": ours, "river": river, "bytewax": bytewax}, rows=(200_000, 1_000_000), best=2)
