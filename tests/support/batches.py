"""Events and reports as a batch, as a file of history would bring them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlpkg.engine.columns import NULL
from mlpkg.store import Batch

Sent = tuple[Any, dict[str, Any], int | None]  # stream, body, arrived (of a report that does not say when: None)


def batch_of(sent: Sequence[Sent]) -> Batch:
    """Events and reports as a batch, in the given order."""
    streams = list({s.stream: s for s, *_ in sent}.values())
    rows = [s.parse(body) for s, body, _ in sent]
    codes = {
        stream.stream: np.array([r.codes for (s, *_), r in zip(sent, rows, strict=True) if s is stream], np.int64)
        for stream in streams
    }
    arrived = np.array([NULL if arrival is None else arrival for *_, arrival in sent], np.int64)
    time = np.array(
        [row.time or max(arrival, 0) for row, arrival in zip(rows, arrived.tolist(), strict=True)], np.int64
    )
    number = np.array([streams.index(s) for s, *_ in sent])
    return Batch(
        streams, number, [r.id for r in rows], time, arrived, [r.body for r in rows], codes, np.arange(len(rows))
    )
