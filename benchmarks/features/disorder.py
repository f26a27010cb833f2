"""The same training set as windows.py where events arrive late: what it costs against our own time for ordered ones.

    python benchmarks/features/disorder.py [--full] [--rows N] [-o FILE]

A share of the events arrives up to a day late, uniformly. The log holds them in the order of arrival, and no payment sees
an event that had not arrived. Polars and DuckDB cannot express that. A second part has all payments of one customer. For
payments drawn at random, every form is compared with a count in plain NumPy.
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
    load_payments,
    main,
    microseconds,
    row,
    save_payments,
    take_turns,
)

WINDOWS = ["1h", "6h", "1d", "7d", "14d", "30d"]
HOT = (200_000, 1_000_000)  # payments of the hot customer, reduced and full


def rows_of(options: argparse.Namespace) -> Columns:
    """The payments in the order in which they arrived."""
    rows, rng = load_payments(options.folder), np.random.default_rng(1)
    if options.hot:
        rows = {name: values[: options.hot] for name, values in rows.items()}
        rows["customer_id"] = np.zeros_like(rows["customer_id"])
    late = rng.random(len(rows["time"])) < options.late
    rows["arrived"] = rows["time"] + np.where(late, rng.integers(0, DAY, len(late)), 0)
    order = np.argsort(rows["arrived"], kind="stable")
    return {name: values[order] for name, values in rows.items()}


def ours(options: argparse.Namespace) -> tuple[Work, Callable[[Any], Columns]]:
    import mlpkg as ml
    from mlpkg.features import compute

    payments, rows = tables.source(), rows_of(options)
    aggregates = {"n": ml.count(over=WINDOWS), "mean": ml.mean("amount", over=WINDOWS)}
    features = ml.FeatureSet("bench", on=payments, c=payments.by("customer_id").agg(**aggregates))
    every = np.arange(len(rows["time"]))
    return lambda: compute(features, tables.history_of(rows), every), lambda values: values


def check(values: Columns, rows: Columns) -> None:
    """The count and mean of 200 payments, from what had arrived before them."""
    for k in np.random.default_rng(2).choice(len(rows["time"]), min(200, len(rows["time"])), replace=False).tolist():
        before = slice(0, k + 1)
        age = rows["time"][k] - rows["time"][before]
        of_customer = (rows["customer_id"][before] == rows["customer_id"][k]) & (age >= 0)
        for w in WINDOWS:
            inside = of_customer & (age < microseconds(w))
            n, cents = int(inside.sum()), int(rows["cents"][before][inside].sum())
            if (values[f"c_n_{w}"][k], values[f"c_mean_{w}"][k]) != (n, cents / (n * 100)):
                raise SystemExit(f"payment {k}, {w}: {values[f'c_n_{w}'][k]} events, where there are {n}")


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    payments = save_payments(options.folder, options.rows)
    hot = min(HOT[options.full], payments)
    work = f"count and mean over six windows per customer, {payments:,} payments"
    burning = f"count and mean over six windows, {hot:,} payments of one customer"
    with ExitStack() as stack:
        forms = {
            (late, size): stack.enter_context(Contender("ours", options, late=late, hot=size))
            for late, size in ((0.0, 0), (0.01, 0), (0.2, 0), (0.0, hot), (0.2, hot))
        }
        take_turns(list(forms.values()), options.best)
        for (late, size), form in forms.items():
            check(form.result(), rows_of(argparse.Namespace(folder=options.folder, late=late, hot=size)))
        for what, late, size, most in (
            (work, 0.01, 0, 1.5),
            (work, 0.2, 0, 3),
            (burning, 0.2, hot, 10),
        ):
            ordered = forms[0.0, size].best
            must = f"ours / theirs <= {most}"
            yield row(f"{what}, {late:.0%} late", forms[late, size].best, "ours in order", ordered, must)


if __name__ == "__main__":
    main(__doc__, measure, {"ours": ours}, rows=(300_000, 1_754_155))
