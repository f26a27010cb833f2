"""Payments as batches for a store, and a store of a time of its own to measure on."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import Columns

from mlpkg.features import FeatureSet, evaluate
from mlpkg.schema import Outcome, Source, ValidatedEvent
from mlpkg.settings import Settings
from mlpkg.store import Batch, DecisionTransaction, Store, open_store


def batches(source: Source, rows: Columns, size: int, prefix: str = "e") -> Iterator[Batch]:
    """Payments (time, customer_id, terminal_id, cents) in batches of `size`, as they come from the door."""
    names = ("time", "customer_id", "terminal_id", "cents")
    for begin in range(0, len(rows["time"]), size):
        at, customer, terminal, cents = (rows[name][begin : begin + size] for name in names)
        each = zip(customer.tolist(), terminal.tolist(), (cents / 100).tolist(), strict=True)
        yield Batch(
            streams=[source],
            stream=np.zeros(len(at), np.int64),
            ids=[f"{prefix}{i}" for i in range(begin, begin + len(at))],
            time=at,
            arrived=at,
            bodies=[f'{{"customer_id":{c},"terminal_id":{t},"amount":{a!r}}}' for c, t, a in each],
            codes={source.stream: np.column_stack([customer, terminal, cents])},
            rows=np.arange(begin, begin + len(at)),
        )


def reports(outcome: Outcome, ids: Sequence[str], truth: np.ndarray, arrived: np.ndarray) -> Batch:
    """What became of some payments."""
    return Batch(
        streams=[outcome],
        stream=np.zeros(len(ids), np.int64),
        ids=list(ids),
        time=arrived,
        arrived=arrived,
        bodies=[f'{{"{outcome.name}":{"true" if t else "false"}}}' for t in truth.tolist()],
        codes={outcome.stream: truth.astype(np.int64)[:, None]},
        rows=np.arange(len(ids)),
    )


def new_store(folder: Path) -> Store:
    """A store on a store of its own inside `folder`, which whoever made the folder removes."""
    return open_store(Settings(state=Path(tempfile.mkdtemp(prefix="store-", dir=folder))))


def evaluated(features: FeatureSet, unit: DecisionTransaction, row: ValidatedEvent) -> list[float | int]:
    """The features of the event of a decision under way, reads included, as `Decider` gets them."""
    return evaluate(features, row.codes, row.time, unit.log_position, unit.event_position, unit.read)


def taken(work: Callable[[], Any]) -> float:
    """Microseconds that it took."""
    began = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - began) / 1000
