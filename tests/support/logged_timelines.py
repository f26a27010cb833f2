"""What a use case asks of a store, and whether its timelines hold what the log says."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from mlpkg.engine.columns import NULL
from mlpkg.features import Stream

Wanted = tuple[Any, tuple[Any, ...], tuple[str, ...]]  # stream, key, columns


def asks(*wanted: Wanted) -> Any:
    """What a feature set says of the timelines it needs."""
    streams = [Stream(s.stream, s.by(*keys).key.name, columns, s.by(*keys).key) for s, keys, columns in wanted]
    return SimpleNamespace(sources=list({s.base.name: s.base for s, *_ in wanted}.values()), streams=streams)


def same_as_the_log(store: Any, stream: Any, keys: tuple[Any, ...], columns: tuple[str, ...]) -> int:
    """All timelines of a stream and key hold what the log says, and nothing else; how many rows that is."""
    source = stream.base
    history = store.history([source], [] if stream is source else [stream])
    events = history.events[source.name]
    if stream is source:
        time, position, table = events.time, events.position, events.columns
    else:
        reports = history.reports[stream.stream]
        last = np.flatnonzero(np.append(reports.about[1:] != reports.about[:-1], True)[: len(reports.about)])
        row = events.position.searchsorted(reports.about[last])
        time, position = events.time[row], reports.known[last]
        table = {n: c[row] for n, c in events.columns.items()} | {n: c[last] for n, c in reports.columns.items()}
        table["about"] = reports.about[last]
    key = stream.by(*keys).key
    of = key.of_many(table, time)
    about = table.get("about", position)
    rows = 0
    for value in np.unique(of[of != NULL]).tolist():
        of_key = np.flatnonzero(of == value)
        of_key = of_key[np.lexsort((-about[of_key], position[of_key], time[of_key]))]
        held = store.timeline(stream.stream, key.name, value)
        assert held.time.tolist() == time[of_key].tolist()
        assert held.position.tolist() == position[of_key].tolist()
        for name in columns:
            assert held.columns[name].tolist() == table[name][of_key].tolist()
        rows += len(of_key)
    return rows
