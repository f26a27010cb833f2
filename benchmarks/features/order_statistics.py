"""min, max, std of the amount, distinct terminals and the median amount over 30 days, together, per customer.

    python benchmarks/features/order_statistics.py [--full] [--rows N] [--threads N] [-o FILE]

Beside it Polars' five and DuckDB's five, on the same rows with as many threads. Distinct counts have to be the same, the
others agree within 1e-9. std is compared by its square, because a rolling sum of squares is less exact if all amounts are equal.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import tables
from harness import BenchmarkRow, Columns, Contender, agree, beside, main, row, save_payments

DAYS = ["30d"]


def ours(ml: Any) -> dict[str, Any]:
    return {
        "min": ml.min("amount", over=DAYS),
        "max": ml.max("amount", over=DAYS),
        "std": ml.std("amount", over=DAYS),
        "nunique": ml.nunique("terminal_id", over=DAYS),
        "median": ml.median("amount", over=DAYS),
    }


def polars(pl: Any) -> dict[str, Any]:
    cents = pl.col("cents")
    return {
        "min": cents.min() / 100,
        "max": cents.max() / 100,
        "std": cents.std() / 100,
        "nunique": pl.col("terminal_id").n_unique(),
        "median": cents.median() / 100,
    }


def polars_by(pl: Any, width: str) -> dict[str, Any]:
    """The other form, which has everything but distinct counts."""
    cents = pl.col("cents").cast(pl.Float64)
    return {
        "min": cents.rolling_min_by("time", width) / 100,
        "max": cents.rolling_max_by("time", width) / 100,
        "std": cents.rolling_std_by("time", width) / 100,
        "median": cents.rolling_median_by("time", width) / 100,
    }


DUCKDB = {
    "min": "min(cents) over w / 100",
    "max": "max(cents) over w / 100",
    "std": "stddev_samp(cents) over w / 100",
    "nunique": "count(distinct terminal_id) over w",
    "median": "quantile_cont(cents, 0.5) over w / 100",
}

ROLES = {
    "ours": lambda options: tables.ours(options, ours),
    "polars_rolling": lambda options: tables.polars_rolling(options, polars, DAYS),
    "polars_over": lambda options: tables.polars_over(options, polars_by, DAYS),
    "polars_nunique": lambda options: tables.polars_rolling(
        options, lambda pl: {"nunique": polars(pl)["nunique"]}, DAYS
    ),
    "duckdb": lambda options: tables.duckdb(options, DUCKDB, DAYS),
}


def squared(columns: Columns) -> Columns:
    return {name: v**2 if name.startswith("std") else v for name, v in columns.items()}


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    payments = save_payments(options.folder, options.rows)
    with ExitStack() as stack:
        own = stack.enter_context(Contender("ours", options))
        others, note = beside(stack, [role for role in ROLES if role != "ours"], options, "tables")
        tables.take_turns([own, *others], options.best)
        expected = squared(own.result())
        for other in others:
            theirs = squared(other.result())
            agree({name: v for name, v in expected.items() if name in theirs}, theirs, other.role)
        took = {c.role: c.best for c in others}
        work = f"min, max, std, nunique, median over 30 days per customer, {payments:,} payments in order"
        polars_best = min(took["polars_rolling"], took["polars_over"] + took["polars_nunique"]) if took else None
        yield row(work, own.best, "polars, its faster form", polars_best, "theirs / ours >= 1.3", note=note)
        yield row(work, own.best, "duckdb", took.get("duckdb"), "theirs / ours >= 4", note=note)


if __name__ == "__main__":
    main(__doc__, measure, ROLES, rows=(300_000, 1_754_155), best=2)
