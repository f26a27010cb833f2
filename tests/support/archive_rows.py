"""All rows of an archive, each as often as it is there."""

from collections.abc import Iterator
from typing import Any

from mlpkg.engine.timeline import FAR
from mlpkg.store import open_archive
from mlpkg.store.delta.archived_log import _archived_entries


def rows_of_archive(location: str, store: Any) -> Iterator[Any]:
    archive = open_archive(location)
    for stream in store.streams():
        yield from _archived_entries(archive.view(stream), stream, 0, FAR - 1)
