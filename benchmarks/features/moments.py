"""Exact var, std, skew and kurt of the amount over 30 days per customer, beside the inexact ones of Polars.

    python benchmarks/features/moments.py [--full] [--rows N] [--threads N] [-o FILE]

The errors are relative to arithmetic in 60 decimal digits; the largest over 500 windows drawn at random counts.
"""

import argparse
import decimal
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import numpy as np
import tables
from harness import DAY, BenchmarkRow, Columns, Contender, beside, load_payments, main, row, save_payments

DAYS = ["30d"]
VERBS = ["var", "std", "skew", "kurt"]
EXACT = 1e-15  # relative: a few units in the last place


def polars(pl: Any) -> dict[str, Any]:
    amount = pl.col("cents") / 100
    return {
        "var": amount.var(),
        "std": amount.std(),
        "skew": amount.skew(bias=False),
        "kurt": amount.kurtosis(bias=False),
    }


ROLES = {
    "ours": lambda options: tables.ours(options, lambda ml: {v: getattr(ml, v)("amount", over=DAYS) for v in VERBS}),
    "polars": lambda options: tables.polars_rolling(options, polars, DAYS),
}


def moments(cents: list[int]) -> dict[str, Decimal | None]:
    """Compute them as pandas defines them, to 60 digits. None if the window is too small or all values are equal."""
    n, values = Decimal(len(cents)), [Decimal(c) / 100 for c in cents]
    mean = sum(values, Decimal(0)) / n
    m2, m3, m4 = (sum((v - mean) ** k for v in values) for k in (2, 3, 4))
    if n < 4 or not m2:
        return dict.fromkeys(VERBS)
    var = Decimal(m2) / (n - 1)
    skew = n * (n - 1).sqrt() / (n - 2) * m3 / (m2 * Decimal(m2).sqrt())
    kurt = n * (n + 1) * (n - 1) / ((n - 2) * (n - 3)) * m4 / m2**2 - 3 * (n - 1) ** 2 / ((n - 2) * (n - 3))
    return {"var": var, "std": var.sqrt(), "skew": skew, "kurt": kurt}


def errors(values: Columns, rows: Columns, drawn: np.ndarray) -> dict[str, float]:
    """Return the largest relative error of each column over the windows that end at the drawn payments."""
    worst = dict.fromkeys(VERBS, 0.0)
    for k in drawn.tolist():
        since = np.searchsorted(rows["time"], rows["time"][k] - 30 * DAY, "right")
        of_customer = rows["customer_id"][since : k + 1] == rows["customer_id"][k]
        for verb, exact in moments(rows["cents"][since : k + 1][of_customer].tolist()).items():
            if exact is not None:
                off = abs(Decimal(float(values[f"{verb}_30d"][k])) - exact) / abs(exact)
                worst[verb] = max(worst[verb], float(off))
    return worst


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    payments = save_payments(options.folder, options.rows)
    decimal.getcontext().prec = 60
    rows = load_payments(options.folder)
    drawn = np.random.default_rng(0).choice(payments, min(500, payments), replace=False)
    with ExitStack() as stack:
        own = stack.enter_context(Contender("ours", options))
        others, note = beside(stack, ["polars"], options, "tables")
        tables.take_turns([own, *others], options.best)
        remarks = []
        for contender in [own, *others]:
            worst = errors(contender.result(), rows, drawn)
            if contender is own and max(worst.values()) > EXACT:
                raise SystemExit(f"ours is not exact: {worst}")
            remarks.append(f"{contender.role} " + ", ".join(f"{verb} {error:.0e}" for verb, error in worst.items()))
        note = note or f"greatest relative error over {len(drawn)} windows: {'; '.join(remarks)}"
        work = f"var, std, skew, kurt over 30 days per customer, exact, {payments:,} payments in order"
        yield row(work, own.best, "polars, inexact", others[0].best if others else None, "stated", note=note)


if __name__ == "__main__":
    main(__doc__, measure, ROLES, rows=(300_000, 1_754_155))
