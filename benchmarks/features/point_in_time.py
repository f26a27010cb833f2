"""Point-in-time features for label rows: count and mean over six windows of payments, beside Feast's offline retrieval.

    python benchmarks/features/point_in_time.py [--full] [--rows N] [-o FILE]

There are a tenth as many label rows as events. Half of the labels have the time of a payment, half any other time. One event
in a hundred arrives up to a day late. mlpkg reads the payments from disk and computes the windows as of each label. Feast
computes no windows: it gets the windows of mlpkg, ready-made at every payment, and reads and joins them. Both of its local
stores are tried, and the faster one counts. A row of Feast is lost if its answer lacks the row. A row is wrong if one of its
twelve numbers differs from the number as of the label, which counts only events that had arrived by then.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import tables
from harness import (
    DAY,
    BenchmarkRow,
    Columns,
    Contender,
    Work,
    beside,
    fastest,
    load_payments,
    main,
    row,
    save_payments,
    take_turns,
)

WINDOWS = ["1h", "6h", "1d", "7d", "14d", "30d"]
NAMES = [f"{what}_{w}" for what in ("n", "mean") for w in WINDOWS]


def features_on(ml: Any, on: Any, payments: Any) -> Any:
    aggregates = {"n": ml.count(over=WINDOWS), "mean": ml.mean("amount", over=WINDOWS)}
    return ml.FeatureSet("bench", on=on, c=payments.by("customer_id").agg(**aggregates))


def prepare(options: argparse.Namespace) -> int:
    """Save the log of payments and labels, and for Feast the features at every payment. Return the number of labels."""
    import pandas as pd

    import mlpkg as ml
    from mlpkg.features import compute

    rows, rng = load_payments(options.folder), np.random.default_rng(3)
    events, labels = len(rows["time"]), len(rows["time"]) // 10
    late = rng.random(events) < 0.01
    arrived = rows["time"] + np.where(late, rng.integers(0, DAY, events), 0)
    on = rng.choice(events, labels // 2, replace=False)
    off = labels - len(on)
    time = np.r_[rows["time"][on], rng.integers(rows["time"][0], rows["time"][-1], off)]
    customer = np.r_[rows["customer_id"][on], rng.choice(rows["customer_id"], off)]
    requested = np.r_[
        arrived[on], time[len(on) :]
    ]  # a label on a payment is asked for right after it, whenever it arrived
    whole = np.lexsort((np.r_[np.zeros(events), np.ones(labels)], np.r_[arrived, requested]))
    position = np.empty(events + labels, np.int64)
    position[whole] = np.arange(1, events + labels + 1)
    log, about = np.argsort(position[:events]), np.argsort(position[events:])
    payments = {name: v[log] for name, v in rows.items()} | {
        "position": position[:events][log],
        "arrived": arrived[log],
    }
    saved = {
        "time": time[about],
        "customer_id": customer[about],
        "position": position[events:][about],
        "on": (about < len(on)).astype(np.int64),
    }
    np.savez(options.folder / "log.npz", **payments)
    np.savez(options.folder / "labels.npz", **saved)

    source = tables.source()
    computed = compute(
        features_on(ml, source, source), tables.history_of(payments, payments["position"]), np.arange(events)
    )
    stamps = {"event_timestamp": payments["time"], "created": payments["arrived"]}
    frame = pd.DataFrame({name: pd.to_datetime(v, unit="us", utc=True) for name, v in stamps.items()})
    ready = {name.removeprefix("c_"): values for name, values in computed.items()}
    frame.assign(customer_id=payments["customer_id"], **ready).to_parquet(options.folder / "ready.parquet")
    return labels


def ours(options: argparse.Namespace) -> tuple[Work, Callable[[Any], Columns]]:
    import mlpkg as ml
    from mlpkg.engine.history import Events
    from mlpkg.features import compute

    class Label(ml.Event):
        customer_id: int

    features = features_on(ml, ml.Source("labels", Label), tables.source())

    def work() -> Any:
        with np.load(options.folder / "log.npz") as log, np.load(options.folder / "labels.npz") as saved:
            history = tables.history_of(dict(log), log["position"])
            time = saved["time"]
            labels = Events(saved["position"], time, time, {"customer_id": saved["customer_id"]})
        history.events["labels"] = labels
        return compute(features, history, np.arange(len(time)))

    return work, lambda computed: {name.removeprefix("c_"): values for name, values in computed.items()}


def feast(options: argparse.Namespace, kind: str) -> tuple[Work, Callable[[Any], Columns]]:
    from datetime import timedelta

    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, Int64

    path = str(options.folder / "ready.parquet")
    config = RepoConfig(
        project="bench",
        registry=str(options.folder / f"{kind}.db"),
        provider="local",
        offline_store={"type": kind},
        online_store=None,
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    fields = [Field(name=name, dtype=Int64 if name.startswith("n_") else Float64) for name in NAMES]
    view = FeatureView(
        name="windows",
        entities=[customer],
        ttl=timedelta(days=30),  # as long as the widest window
        schema=[Field(name="customer_id", dtype=Int64), *fields],
        source=FileSource(path=path, timestamp_field="event_timestamp", created_timestamp_column="created"),
        online=False,
    )
    store.apply([customer, view])
    with np.load(options.folder / "labels.npz") as saved:
        when = pd.to_datetime(saved["time"], unit="us", utc=True)
        labels = pd.DataFrame(
            {"customer_id": saved["customer_id"], "event_timestamp": when, "label": np.arange(len(when))}
        )

    def work() -> Any:
        return store.get_historical_features(entity_df=labels, features=[f"windows:{n}" for n in NAMES]).to_df()

    return work, lambda frame: {name: frame[name].to_numpy(np.float64) for name in ["label", *NAMES]}


ROLES = {
    "ours": ours,
    "feast_dask": lambda options: feast(options, "dask"),
    "feast_duckdb": lambda options: feast(options, "duckdb"),
}


def verdict(ours: Columns, theirs: Columns, on: np.ndarray) -> str:
    """Return in words how many rows of Feast are lost or wrong."""
    label = theirs["label"].astype(np.int64)
    wrong = np.zeros(len(label), bool)
    for name in NAMES:
        own, other = ours[name][label].astype(float), theirs[name]
        if name.startswith("n_"):
            other = np.nan_to_num(other)  # no payment in 30 days is none in any window
        wrong |= ~((np.abs(own - other) <= 1e-9 * np.maximum(1, np.abs(own))) | (np.isnan(own) & np.isnan(other)))
    occurrences = np.bincount(label, minlength=len(on))
    on_payment = on[label] == 1
    return (
        f"{int((occurrences == 0).sum()):,} of {len(on):,} rows lost, {int((occurrences > 1).sum()):,} doubled; wrong "
        f"{int(wrong[on_payment].sum()):,} of {int(on.sum()):,} on a payment, "
        f"{int(wrong[~on_payment].sum()):,} of {int((on == 0).sum()):,} at other times"
    )


def check(computed: Columns, folder: Any) -> None:
    """Compare the counts of 200 labels with the events that had arrived before them."""
    from harness import microseconds

    with np.load(folder / "log.npz") as log, np.load(folder / "labels.npz") as saved:
        rows, labels = dict(log), dict(saved)
    for k in np.random.default_rng(4).choice(len(labels["time"]), min(200, len(labels["time"])), False).tolist():
        age = labels["time"][k] - rows["time"]
        seen = (rows["customer_id"] == labels["customer_id"][k]) & (rows["position"] < labels["position"][k])
        for w in WINDOWS:
            n = int((seen & (age >= 0) & (age < microseconds(w))).sum())
            if computed[f"n_{w}"][k] != n:
                raise SystemExit(f"label {k}, {w}: {computed[f'n_{w}'][k]} events, where there are {n}")


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    events = save_payments(options.folder, options.rows)
    labels = prepare(options)
    with ExitStack() as stack:
        own = stack.enter_context(Contender("ours", options))
        others, note = beside(stack, ["feast_dask", "feast_duckdb"], options, "feast")
        take_turns([own, *others], 1)
        take_turns([own], options.best - 1)
        expected = own.result()
        check(expected, options.folder)
        with np.load(options.folder / "labels.npz") as saved:
            verdicts = [f"{c.role} {c.best:.1f} s: {verdict(expected, c.result(), saved['on'])}" for c in others]
        chosen = fastest(others) if others else None
        work = f"twelve features for {labels:,} label rows from {events:,} events"
        peer, note = chosen.role if chosen else "feast", note or "; ".join(verdicts)
        yield row(work, own.best, peer, chosen and chosen.best, "theirs / ours >= 50", note=note)
        theirs = chosen.megabytes if chosen else None
        yield row(f"{work}: peak memory", own.megabytes, peer, theirs, "ours <= 1000", "MB")


if __name__ == "__main__":
    main(__doc__, measure, ROLES, rows=(100_000, 1_000_000))
