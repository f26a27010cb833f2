"""The three engines that compute windows over a table of payments, each from the same columns in memory.

The result has one column per aggregate and window, in any order of rows. `columns` puts the rows into the order of the log,
which is not timed.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from harness import Columns, Contender, Work, load_payments, microseconds, take_turns


def history_of(rows: Columns, position: np.ndarray | None = None) -> Any:
    """Return payments as a history. By default the position in the log is the number of the row."""
    from mlpkg.engine.history import Events, History

    columns = {"customer_id": rows["customer_id"], "terminal_id": rows["terminal_id"], "amount": rows["cents"]}
    place = np.arange(1, len(rows["time"]) + 1) if position is None else position
    return History({"payments": Events(place, rows["time"], rows.get("arrived", rows["time"]), columns)}, {})


def source() -> Any:
    """Payments as a source: 5,000 customers, 10,000 terminals, an amount in cents."""
    from pydantic import Field

    import mlpkg as ml

    class Payment(ml.Event):
        customer_id: int
        terminal_id: int
        amount: Annotated[ml.Money, Field(le=100_000)]  # so that the fourth powers fit

    return ml.Source("payments", Payment, retention="90d", allowed_lateness="3d")


def ours(
    options: argparse.Namespace, aggregates: Callable[[Any], Mapping[str, Any]]
) -> tuple[Work, Callable[[Any], Columns]]:
    """Compute with mlpkg. `aggregates` returns the aggregates by name; the columns are named name_window."""
    import mlpkg as ml
    from mlpkg.features import compute

    payments, rows = source(), load_payments(options.folder)
    features = ml.FeatureSet("bench", on=payments, c=payments.by("customer_id").agg(**aggregates(ml)))
    every = np.arange(len(rows["time"]))

    def work() -> Any:
        return compute(features, history_of(rows), every)  # a new history: nothing is laid out yet

    return work, lambda computed: {name.removeprefix("c_"): values for name, values in computed.items()}


def polars_rolling(
    options: argparse.Namespace, aggregates: Callable[[Any], Mapping[str, Any]], windows: Sequence[str]
) -> tuple[Work, Callable[[Any], Columns]]:
    """Compute with `DataFrame.rolling` per customer, all windows in one plan. `aggregates` returns expressions by name."""
    import polars as pl

    frame = pl.DataFrame(load_payments(options.folder)).lazy()
    plans = [
        frame.rolling("time", period=f"{microseconds(w)}i", group_by="customer_id").agg(
            **{f"{name}_{w}": e for name, e in aggregates(pl).items()}
        )
        for w in windows
    ]

    def work() -> Any:
        return pl.collect_all(plans)

    def columns(frames: Any) -> Columns:
        return {
            name: frame[name].to_numpy()[np.argsort(frame["time"].to_numpy())]
            for frame in frames
            for name in frame.columns
            if name not in ("time", "customer_id")
        }

    return work, columns


def polars_over(
    options: argparse.Namespace, aggregates: Callable[[Any, str], Mapping[str, Any]], windows: Sequence[str]
) -> tuple[Work, Callable[[Any], Columns]]:
    """Compute with `rolling_*_by(...).over("customer_id")`. `aggregates` returns the expressions of a width by name."""
    import polars as pl

    frame = pl.DataFrame(load_payments(options.folder)).with_columns(one=pl.lit(1, pl.Int64)).lazy()
    wanted = {
        f"{name}_{w}": e.over("customer_id")
        for w in windows
        for name, e in aggregates(pl, f"{microseconds(w)}i").items()
    }
    plan = frame.select(**wanted)
    return plan.collect, lambda result: {name: result[name].to_numpy() for name in result.columns}


def duckdb(
    options: argparse.Namespace, aggregates: Mapping[str, str], windows: Sequence[str]
) -> tuple[Work, Callable[[Any], Columns]]:
    """Compute with range windows in SQL. `aggregates` are expressions by name, in which ``over w`` stands for the window."""
    import duckdb

    rows = load_payments(options.folder)
    database = duckdb.connect()
    database.execute(f"set threads={options.threads}")
    database.register("rows_in_memory", rows)
    database.execute("create table payments as select * from rows_in_memory")
    database.unregister("rows_in_memory")
    named = ", ".join(
        f"w{w} as (partition by customer_id order by time range between {microseconds(w) - 1} preceding and current row)"
        for w in windows
    )
    values = ", ".join(
        f"{sql.replace('over w', f'over w{w}')} as {name}_{w}" for w in windows for name, sql in aggregates.items()
    )
    query = f"create or replace temp table result as select time, {values} from payments window {named}"

    def columns(_: Any) -> Columns:
        result = database.execute("select * exclude time from result order by time").fetchnumpy()
        return {
            n: np.ma.filled(v.astype(float), np.nan) if isinstance(v, np.ma.MaskedArray) else v
            for n, v in result.items()
        }

    return lambda: database.execute(query), columns


def settle(contenders: Sequence[Contender], best: int) -> None:
    """Let each contender run. One that is twice as slow as another form of the same engine runs only once."""
    take_turns(contenders, 1)
    for _ in range(best - 1):
        for contender in contenders:
            same = [c.best for c in contenders if c.role.partition("_")[0] == contender.role.partition("_")[0]]
            if contender.best < 2 * min(same):
                contender.run()
