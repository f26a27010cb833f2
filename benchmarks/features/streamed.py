"""A training set larger than memory: count and mean over twelve windows per customer, streamed by entity bucket.

    python benchmarks/features/streamed.py [--full] [--rows N] [-o FILE]

Three sizes are measured: a fifth, two fifths and all of the rows, each in its own process. There is one customer for each 350
events, and one event in a hundred is up to three days late. The archive is simulated first, which is not timed. Timed are
reading it, computing, and writing the rows as Parquet. The counts of ten customers are compared with plain NumPy.
"""

import argparse
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from harness import BenchmarkRow, Columns, Contender, Work, main, microseconds, row

WINDOWS = ["1h", "3h", "6h", "12h", "1d", "2d", "3d", "7d", "14d", "21d", "30d", "60d"]


def ours(options: argparse.Namespace) -> tuple[Work, Callable[[Any], Columns]]:
    import tables

    import mlpkg as ml
    from mlpkg.lab.streaming import simulate_archive, stream_training_set

    source, customers = tables.source(), max(10, options.events // 350)
    aggregates = {"n": ml.count(over=WINDOWS), "mean": ml.mean("amount", over=WINDOWS)}
    features = ml.FeatureSet("bench", on=source, c=source.by("customer_id").agg(**aggregates))

    def draw(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        return {
            "customer_id": rng.integers(0, customers, n),
            "terminal_id": rng.integers(0, 2 * customers, n),
            "amount": rng.gamma(2, 25, n).round(2),
        }

    archive = simulate_archive(
        options.folder / f"archive-{options.events}",
        source,
        options.events,
        draw,
        start="2026-01-01",
        days=180,
        late=0.01,
    )
    into = options.folder / f"rows-{options.events}"

    def work() -> Any:
        shutil.rmtree(into, ignore_errors=True)
        return stream_training_set(features, "2025-01-01", "2027-01-01", into=into, source=archive, progress=False)

    def columns(dataset: Any) -> Columns:
        import pyarrow.compute as pc

        names = ["time", "customer_id", *features.names]
        table = dataset.to_table(columns=names, filter=pc.field("customer_id") < 10)
        return {name: table[name].to_numpy() for name in names} | {"rows": np.array(dataset.count_rows())}

    return work, columns


def check(values: Columns, events: int) -> None:
    """Compare the counts of the first customers with plain NumPy; their rows are in the order of the log."""
    if values["rows"] != events:
        raise SystemExit(f"there are {values['rows']:,} rows for {events:,} events")
    time = values["time"].astype("datetime64[us]").astype(np.int64)
    for customer in range(10):
        of_customer = np.flatnonzero(values["customer_id"] == customer)
        age = time[of_customer][:, None] - time[of_customer][None, :]
        before = np.tri(len(of_customer), dtype=bool)
        for w in WINDOWS:
            n = ((age >= 0) & (age < microseconds(w)) & before).sum(axis=1)
            if (values[f"c_n_{w}"][of_customer] != n).any():
                raise SystemExit(f"customer {customer}: wrong counts over {w}")


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    took, most = {}, 0.0
    for events in (options.rows // 5, 2 * options.rows // 5, options.rows):
        with Contender("ours", options, events=events) as own:
            took[events], most = own.run(), max(most, own.megabytes)
            check(own.result(), events)
        shutil.rmtree(options.folder / f"archive-{events}")
        shutil.rmtree(options.folder / f"rows-{events}")
    least = min(took)
    remark = ", ".join(f"{events:,} in {seconds:.1f} s" for events, seconds in took.items())
    work = f"count and mean over twelve windows, {options.rows:,} events streamed by bucket"
    yield row(f"{work}: peak memory", most, "", None, "ours <= 4000", "MB", remark)
    per_event = [took[n] / n * 1e6 for n in (options.rows, least)]
    peer = f"ours, {least:,} events"
    yield row(f"{work}: time per event", per_event[0], peer, per_event[1], "ours / theirs <= 1.25", "µs", remark)


if __name__ == "__main__":
    main(__doc__, measure, {"ours": ours}, rows=(2_500_000, 50_000_000), best=1)
