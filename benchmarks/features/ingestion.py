"""Ingest a Parquet file into the log: checked, durable and in timelines; beside a plain table of the same JSON.

    python benchmarks/features/ingestion.py [--full] [--rows N] [--best N] [-o FILE]

There are two files: card payments, and orders of a shop with texts, optional fields, resolutions, an outcome and a second
source. The peer reads the same file with pyarrow and inserts the JSON of its rows into a plain SQLite table with one
`executemany`: no checks, no outcomes, no timelines. Every turn begins with an empty store; times are CPU time of the process.
Refused rows are the same orders with negative prices.
"""

import argparse
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from harness import BenchmarkRow, main, row
from pydantic import Field

import mlpkg as ml
from mlpkg.examples.fraud.policy import fraud
from mlpkg.examples.fraud.simulator import simulate
from mlpkg.lab.ingest import ingest_file
from mlpkg.settings import Settings


class Order(ml.Event):
    customer: str | None = None
    product: str
    description: str | None = None
    country: str
    quantity: Annotated[int, Field(ge=-100_000, le=100_000)]
    price: ml.Money
    weight: Annotated[float, ml.Resolution(0.001)] | None = None


class Profile(ml.Event):
    customer: str
    segment: str | None = None
    limit: ml.Money


orders = ml.Source("orders", Order, retention="730d", allowed_lateness="36500d")
profiles = ml.Table("profiles", Profile, key="customer", allowed_lateness="36500d")
returned = orders.outcome("returned", bool, default=False, matures_after="14d")
shop = ml.UseCase(
    "shop",
    ml.FeatureSet(
        "shop",
        on=orders,
        customer=orders.by("customer").agg(n=ml.count(over="30d"), spent=ml.sum("price", over="30d")),
        product=orders.by("product").agg(sold=ml.sum("quantity", over="7d")),
        profile=profiles.latest("limit"),
    ),
    policy=lambda score, event: "send",
)


def save_shop(folder: Path, rows: int) -> None:
    """Orders of a year and the profiles of their customers, and the same orders with prices that are refused."""
    rng = np.random.default_rng(0)
    seconds = np.sort(rng.integers(0, 365 * 86_400, rows))
    customer, product = rng.integers(0, 6_000, rows), rng.integers(0, 4_000, rows)
    names = np.array([f'SET OF {i % 9} "RED" ITEMS, NO. {i}' for i in range(4_000)], object)
    weight = rng.uniform(0.001, 5, rows).round(3)
    frame = pd.DataFrame(
        {
            "id": [f"{536_365 + i // 20}-{i % 20}" for i in range(rows)],
            "time": pd.Timestamp("2020-12-01", tz="UTC") + pd.to_timedelta(seconds, unit="s"),
            "customer": np.where(rng.random(rows) < 0.25, None, customer.astype(str).astype(object)),
            "product": np.char.add("SKU", product.astype(str)),
            "description": np.where(rng.random(rows) < 0.01, None, names[product]),
            "country": rng.choice(["United Kingdom", "France", "EIRE", "Germany"], rows),
            "quantity": rng.integers(1, 50, rows),
            "price": rng.uniform(0.1, 100, rows).round(2),
            "weight": np.where(rng.random(rows) < 0.1, np.nan, weight),
            "returned": rng.random(rows) < 0.02,
        }
    )
    frame.to_parquet(folder / "orders.parquet", index=False)
    frame = frame.drop(columns="returned").head(rows // 4)
    frame.to_parquet(folder / "good.parquet", index=False)
    frame.assign(price=-frame["price"]).to_parquet(folder / "refused.parquet", index=False)
    people = pd.DataFrame({"id": [f"p{i}" for i in range(6_000)], "time": pd.Timestamp("2020-11-01", tz="UTC")})
    people = people.assign(customer=people.index.astype(str), segment="a", limit=rng.uniform(0, 1_000, 6_000).round(2))
    people.to_parquet(folder / "profiles.parquet", index=False)


def took(use_case: ml.UseCase, files: dict[str, str | None], folder: Path) -> float:
    """Return the CPU seconds of ingesting files into an empty store; `files` maps each file to its source."""
    with tempfile.TemporaryDirectory(dir=folder) as state:
        store: Any = ml.open_store(Settings(state=Path(state), use_cases={}))
        store.register(use_case.name, use_case.features)
        began = time.process_time()
        for file, source in files.items():
            ingest_file(use_case, folder / file, store, source=source)
        seconds = time.process_time() - began
        store.close()
    return seconds


def plain(files: list[str], folder: Path) -> float:
    """Return the CPU seconds of inserting the same rows as JSON into a plain table."""
    with tempfile.TemporaryDirectory(dir=folder) as state:
        db = sqlite3.connect(Path(state) / "plain.db")
        db.execute("pragma journal_mode=wal")
        db.execute("create table log(position integer primary key, source text, id text, time text, body text)")
        db.execute("create unique index log_id on log(source, id)")
        began = time.process_time()
        for file in files:
            rows = pq.read_table(folder / file).to_pylist()
            made = ((file, r["id"], str(r["time"]), msgspec.json.encode(r).decode()) for r in rows)
            db.executemany("insert into log(source, id, time, body) values (?, ?, ?, ?)", made)
        db.commit()
        seconds = time.process_time() - began
        db.close()
    return seconds


def best(times: int, *works: Callable[[], float]) -> list[float]:
    """Let all take turns, and return the shortest time of each."""
    turns = [[work() for work in works] for _ in range(times)]
    return [min(column) for column in zip(*turns, strict=True)]


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    folder, rows = options.folder, options.rows
    save_shop(folder, rows)
    paid = simulate(customers=max(20, rows // 350), terminals=max(40, rows // 175))
    paid.drop(columns="scenario").to_parquet(folder / "payments.parquet", index=False)
    for what, use_case, files, count in (
        ("card payments", fraud, {"payments.parquet": None}, len(paid)),
        (
            "orders of a shop, two sources",
            shop,
            {"profiles.parquet": "profiles", "orders.parquet": "orders"},
            rows + 6_000,
        ),
    ):
        if use_case is fraud:
            files = {"payments.parquet": use_case.on.name}
        ours, theirs = best(
            options.best, lambda u=use_case, f=files: took(u, f, folder), lambda f=files: plain(list(f), folder)
        )
        speed = f"{count:,} rows: {count / ours:,.0f} a second"
        yield row(f"ingest {what}", ours, "plain table", theirs, "ours / theirs <= 3", note=speed)
    good, bad = best(
        options.best,
        lambda: took(shop, {"good.parquet": "orders"}, folder),
        lambda: took(shop, {"refused.parquet": "orders"}, folder),
    )
    note = f"{rows // 4:,} rows: {rows // 4 / bad:,.0f} refused a second"
    yield row("ingest orders that are refused", bad, "ours, good ones", good, "ours / theirs <= 3", note=note)


if __name__ == "__main__":
    main(__doc__, measure, rows=(100_000, 525_000), best=2)
