"""A decision about an entity with very many rows in Redis, beside one with few: tiles stand in for old rows.

    python benchmarks/platform/busy_entity.py [--full] [-o FILE]

Two customers have payments within thirty days: a quiet one 100, a busy one 100,000 (20,000 without `--full`). Decisions about
them take turns in one process, with six features of thirty days: first while the busy customer's timeline has no tiles, then
with them.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from cluster import BenchmarkRow, Cluster, main, row

# isort: split
from batches import batch_of

import mlpkg as ml
from mlpkg.features import evaluate
from mlpkg.store import Store, open_store
from mlpkg.times import DAY, instant, iso

START = instant("2024-01-01")
QUIET, BUSY = 1, 2
BATCH = 10_000


class Payment(ml.Event):
    customer_id: int
    amount: ml.Money


payments = ml.Source("payments", Payment)
days = ["1d", "7d", "30d"]
by_customer = payments.by("customer_id").agg(n=ml.count(over=days), mean=ml.mean("amount", over=days))
features = ml.FeatureSet("busy", on=payments, customer=by_customer)


def payment(id: str, customer: int, moment: int) -> dict[str, Any]:
    return {"id": id, "time": iso(moment), "customer_id": customer, "amount": moment % 9_000 / 100}


def fill(store: Store, customer: int, count: int) -> None:
    """Load payments of a customer, evenly over thirty days."""
    moments = [START + k * 30 * DAY // count // 1_000_000 * 1_000_000 for k in range(count)]
    sent = [(payments, payment(f"{customer}-{k}", customer, moment), moment) for k, moment in enumerate(moments)]
    for first in range(0, count, BATCH):
        assert not store.load(batch_of(sent[first : first + BATCH]), trusted=True).refused


def decide(store: Store, customer: int, id: str, moment: int) -> float:
    """Return the milliseconds of a decision without a model."""
    event = payments.parse(payment(id, customer, moment))
    began = time.perf_counter()
    with store.decision("busy", payments, event, event.time) as unit:
        values = evaluate(features, event.codes, event.time, unit.log_position, unit.event_position, unit.read)
        assert len(values) == 6
        unit.record("{}")
    return (time.perf_counter() - began) * 1000


def turns(store: Store, name: str, count: int) -> tuple[float, float]:
    """Return the median milliseconds of decisions about the quiet and the busy customer."""
    taken: dict[int, list[float]] = {QUIET: [], BUSY: []}
    for k in range(count):
        moment = START + 30 * DAY + k * 1_000_000
        for customer in taken:
            taken[customer].append(decide(store, customer, f"{name}-{customer}-{k}", moment))
    return median(taken[QUIET][3:]), median(taken[BUSY][3:])


def make_tiles(store: Any, patience: Sequence[int] = range(100)) -> None:
    """Make tiles until there is nothing to make."""
    for _ in patience:
        decide(store, BUSY, f"noted-{time.monotonic_ns()}", START + 30 * DAY)
        if not store.session.tiles.make_noted():
            return


def measure(options: argparse.Namespace, cluster: Cluster) -> Iterator[BenchmarkRow]:
    rows = 100_000 if options.full else 20_000
    store = open_store(cluster.settings(options.folder / "state"))
    store.register("busy", features)
    fill(store, QUIET, 100)
    fill(store, BUSY, rows)
    _, without = turns(store, "without", 20)
    make_tiles(store)
    quiet, busy = turns(store, "with", 200 if options.full else 50)
    store.close()
    work = f"a decision about a customer with {rows:,} payments in 30 days on servers, p50"
    yield row(work, busy, "one with 100 payments", quiet, "ours / theirs <= 3", "ms")
    yield row(work, busy, "the same without tiles", without, "stated", "ms")


if __name__ == "__main__":
    main(__doc__ or "", measure)
