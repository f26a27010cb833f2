"""The cost of a write if 500 feature sets use the same sources instead of one.

    python benchmarks/features/many_sets.py [--full] [--rows N] [-o FILE]

Two stores get the same payments in turns: one at a time, and in batches of 1,000. The one feature set needs both keys and
every column; the 500 draw keys, aggregates, columns, windows and conditions at random.
"""

import argparse
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from harness import BenchmarkRow, load_payments, main, row, save_payments
from stores import batches, new_store, taken
from tables import source as payments

import mlpkg as ml
from mlpkg.times import iso

SETS, SINGLES, BATCHES = 500, 1000, 30


def one_set(source: Any) -> ml.FeatureSet:
    customer = source.by("customer_id").agg(n=ml.nunique("terminal_id", over="7d"), mean=ml.mean("amount", over="7d"))
    terminal = source.by("terminal_id").agg(n=ml.nunique("customer_id", over="7d"), mean=ml.mean("amount", over="7d"))
    return ml.FeatureSet("set_0", on=source, c=customer, t=terminal)


def random_set(source: Any, number: int) -> ml.FeatureSet:
    rng = random.Random(number)
    members = {}
    for key, other in (("customer_id", "terminal_id"), ("terminal_id", "customer_id")):
        window, where = f"{rng.randrange(1, 720)}h", f"amount > {rng.randrange(200)}"
        verb = rng.choice([ml.sum, ml.mean, ml.min, ml.max])
        aggregates = {"value": verb("amount", over=window, where=where), "n": ml.nunique(other, over=window)}
        members[key] = source.by(key).agg(**aggregates)
    return ml.FeatureSet(f"set_{number}", on=source, **members)


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    events = save_payments(options.folder, options.rows)
    source, rows = payments(), load_payments(options.folder)
    few: Any = new_store(options.folder)
    many: Any = new_store(options.folder)
    few.register("set_0", one_set(source))
    many.register("set_0", one_set(source))
    for number in range(1, SETS):
        many.register(f"set_{number}", random_set(source, number))
    held = events - BATCHES * 1000 - SINGLES
    parts = [slice(0, held), slice(held, events - SINGLES), slice(events - SINGLES, events)]
    before, batched, single = ({name: v[part] for name, v in rows.items()} for part in parts)
    for store in (few, many):
        for batch in batches(source, before, 50_000):
            store.load(batch)
    took: dict[Any, list[float]] = {}
    for k, batch in enumerate(batches(source, batched, 1000, "b")):
        for store in (few, many) if k % 2 else (many, few):
            took.setdefault(("batch", store), []).append(taken(lambda p=store, b=batch: p.load(b)) / 1000)
    for k in range(SINGLES):
        time, customer, terminal, cents = (single[n][k].item() for n in ("time", "customer_id", "terminal_id", "cents"))
        about = {"customer_id": customer, "terminal_id": terminal}
        body = {"id": f"s{k}", "time": iso(time), **about, "amount": cents / 100}
        for store in (few, many) if k % 2 else (many, few):
            write = taken(lambda p=store, b=body, t=time: p.accept(source, b, arrived=t))
            took.setdefault(("single", store), []).append(write)
    if few.last_position() != events or many.last_position() != events:
        raise SystemExit("not every payment was written")
    for what, name in (("single", "one event"), ("batch", "an event in a batch of 1,000")):
        ours, theirs = (float(np.median(took[what, store])) for store in (many, few))
        yield row(f"write {name} with {SETS} feature sets", ours, "ours, one set", theirs, "ours / theirs <= 1.1", "µs")
    few.close()
    many.close()


if __name__ == "__main__":
    main(__doc__, measure, rows=(100_000, 500_000), best=1)
