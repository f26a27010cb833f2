"""A training set of card payments in order: count and mean of the amount over six windows, per customer.

    python benchmarks/features/windows.py [--full] [--rows N] [--threads N] [-o FILE]

Beside it Polars (two exact forms, the faster one counts) and DuckDB's range windows, on the same rows, with as many
threads, all confined to as many cores; every count and mean has to be the same. Sums are of whole cents everywhere, so
that nobody rounds. Memory is the peak of each process while it worked, its rows included.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import tables
from harness import Contender, ValidatedEvent, agree, beside, fastest, main, row, save_payments

WINDOWS = ["1h", "6h", "1d", "7d", "14d", "30d"]

ROLES = {
    "ours": lambda given: tables.ours(
        given, lambda ml: {"n": ml.count(over=WINDOWS), "mean": ml.mean("amount", over=WINDOWS)}
    ),
    "polars_rolling": lambda given: tables.polars_rolling(
        given, lambda pl: {"n": pl.len(), "mean": pl.col("cents").sum() / (pl.len() * 100)}, WINDOWS
    ),
    "polars_over": lambda given: tables.polars_over(given, polars_sums, WINDOWS),
    "duckdb_sum": lambda given: tables.duckdb(
        given, {"n": "count(*) over w", "mean": "sum(cents) over w / (100 * count(*) over w)"}, WINDOWS
    ),
    "duckdb_avg": lambda given: tables.duckdb(
        given, {"n": "count(*) over w", "mean": "avg(cents) over w / 100"}, WINDOWS
    ),
}


def polars_sums(pl: Any, width: str) -> dict[str, Any]:
    """Polars has no rolling count: the sum of ones."""
    n = pl.col("one").rolling_sum_by("time", width)
    return {"n": n, "mean": pl.col("cents").rolling_sum_by("time", width) / (n * 100)}


def measure(given: argparse.Namespace) -> Iterator[ValidatedEvent]:
    payments = save_payments(given.folder, given.rows)
    with ExitStack() as stack:
        own = stack.enter_context(Contender("ours", given))
        others, note = beside(stack, [role for role in ROLES if role != "ours"], given, "tables")
        tables.settle([own, *others], given.best)
        found = own.result()
        for other in others:
            agree(found, other.result(), other.role)
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
