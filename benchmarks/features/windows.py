"""A training set of card payments in order: count and mean of the amount over six windows, per customer.

    python benchmarks/features/windows.py [--full] [--rows N] [--threads N] [-o FILE]

Beside it are Polars (two exact forms, the faster one counts) and DuckDB's range windows, on the same rows, with as many threads
and cores. Every count and mean has to be the same. All engines sum whole cents, so that none of them rounds. Memory is the peak
of each process while it worked, its rows included.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import tables
from harness import BenchmarkRow, Contender, agree, beside, fastest, main, row, save_payments

WINDOWS = ["1h", "6h", "1d", "7d", "14d", "30d"]

ROLES = {
    "ours": lambda options: tables.ours(
        options, lambda ml: {"n": ml.count(over=WINDOWS), "mean": ml.mean("amount", over=WINDOWS)}
    ),
    "polars_rolling": lambda options: tables.polars_rolling(
        options, lambda pl: {"n": pl.len(), "mean": pl.col("cents").sum() / (pl.len() * 100)}, WINDOWS
    ),
    "polars_over": lambda options: tables.polars_over(options, polars_sums, WINDOWS),
    "duckdb_sum": lambda options: tables.duckdb(
        options, {"n": "count(*) over w", "mean": "sum(cents) over w / (100 * count(*) over w)"}, WINDOWS
    ),
    "duckdb_avg": lambda options: tables.duckdb(
        options, {"n": "count(*) over w", "mean": "avg(cents) over w / 100"}, WINDOWS
    ),
}


def polars_sums(pl: Any, width: str) -> dict[str, Any]:
    """Return the expressions of Polars. It has no rolling count, so the count is a sum of ones."""
    n = pl.col("one").rolling_sum_by("time", width)
    return {"n": n, "mean": pl.col("cents").rolling_sum_by("time", width) / (n * 100)}


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    payments = save_payments(options.folder, options.rows)
    with ExitStack() as stack:
        own = stack.enter_context(Contender("ours", options))
        others, note = beside(stack, [role for role in ROLES if role != "ours"], options, "tables")
        tables.settle([own, *others], options.best)
        expected = own.result()
        for other in others:
            agree(expected, other.result(), other.role)
        work = f"count and mean over six windows per customer, {payments:,} payments in order"
        least = []
        for peer, must in (("polars", "theirs / ours >= 1"), ("duckdb", "theirs / ours >= 5")):
            forms = [c for c in others if c.role.startswith(peer)]
            chosen = fastest(forms) if forms else None
            least += [chosen.megabytes] if chosen else []
            yield row(work, own.best, chosen.role if chosen else peer, chosen and chosen.best, must, note=note)
        yield row(
            f"{work}: peak memory",
            own.megabytes,
            "the lesser of both",
            min(least, default=None),
            "ours / theirs <= 1",
            "MB",
            note,
        )


if __name__ == "__main__":
    main(__doc__, measure, ROLES, rows=(400_000, 1_754_155))
