"""Payments as batches for a store, and new stores to measure on."""

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
    """Payments (time, customer_id, terminal_id, cents) in batches of `size`, as they are after validation."""
    names = ("time", "customer_id", "terminal_id", "cents")
    for begin in range(0, len(rows["time"]), size):
        times, customer, terminal, cents = (rows[name][begin : begin + size] for name in names)
        each = zip(customer.tolist(), terminal.tolist(), (cents / 100).tolist(), strict=True)
        yield Batch(
            streams=[source],
            stream=np.zeros(len(times), np.int64),
            ids=[f"{prefix}{i}" for i in range(begin, begin + len(times))],
            time=times,
            arrived=times,
            bodies=[f'{{"customer_id":{c},"terminal_id":{t},"amount":{a!r}}}' for c, t, a in each],
            codes={source.stream: np.column_stack([customer, terminal, cents])},
            rows=np.arange(begin, begin + len(times)),
        )


def reports(outcome: Outcome, ids: Sequence[str], truth: np.ndarray, arrived: np.ndarray) -> Batch:
    """Make a batch of outcomes of payments."""
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
    """Open a new store inside `folder`. The maker of the folder removes it."""
    return open_store(Settings(state=Path(tempfile.mkdtemp(prefix="store-", dir=folder))))


def evaluated(features: FeatureSet, unit: DecisionTransaction, row: ValidatedEvent) -> list[float | int]:
    """Compute the features of the event that is being decided, reads included, as `Decider` does."""
    return evaluate(features, row.codes, row.time, unit.log_position, unit.event_position, unit.read)


def taken(work: Callable[[], Any]) -> float:
    """Return the microseconds that a call took."""
    began = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - began) / 1000
