"""The stores that the suite runs over. To add one, add a line to `KINDS`.

A test opens a store through `StoreUnderTest` and assumes what `mlpkg.store.protocol` promises, and nothing else:

- A position is an int64 that grows. Positions need not begin at 1, and need not follow each other.
- With `edges`, a timeline may come as rows or as tiles.
- Another process sees a write once the method that wrote has returned.
"""

import secrets
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mlpkg.settings import Settings
from mlpkg.store import Store, open_store
from mlpkg.store.opening import store_place


@dataclass(frozen=True)
class Kind:
    """A kind of store: the settings of a new, empty one, and how to remove what it holds outside its folder.

    `settings` gets an empty folder of its own, and the servers of the fixtures that `servers` names. Both are called in the process of
    the tests; `mlpkg.store.open_store` opens the store, here and in other processes. `has_backup` says whether its place makes
    backups.
    """

    settings: Callable[..., Settings]
    remove: Callable[[Settings], None] = lambda settings: None
    has_backup: bool = True
    servers: tuple[str, ...] = ()

    def on(self, *servers: Any) -> "Kind":
        """Return the kind on servers that run."""
        return replace(self, settings=partial(_with_servers, self.settings, servers))


def _with_servers(settings: Callable[..., Settings], servers: tuple[Any, ...], folder: Path) -> Settings:
    return settings(folder, *servers)


def remove_namespace(settings: Settings) -> None:
    """Delete the topics, keys and tables of a namespace."""
    store_place(settings).remove()  # type: ignore[attr-defined]


def _on_servers(folder: Path, kafka: Any, redis: Any, postgres: Any) -> Settings:
    servers = kafka.settings() | redis.settings() | postgres.settings()
    namespace = f"t{secrets.token_hex(6)}"
    return Settings(
        state=folder / "state", store="cluster", namespace=namespace, kafka_protocol="SASL_PLAINTEXT", **servers
    )


KINDS: dict[str, Kind] = {
    "sqlite": Kind(lambda folder: Settings(state=folder / "state")),
    "cluster": Kind(
        _on_servers, remove_namespace, has_backup=False, servers=("kafka_server", "redis_server", "postgres_server")
    ),
}


@dataclass
class StoreUnderTest:
    """One store, empty at first; a test may open it several times, in this process and in others."""

    kind: Kind
    settings: Settings
    new_folder: Callable[[], Path]
    processes: Callable[[], ProcessPoolExecutor]
    _opened: list[Store] = field(default_factory=list)
    _others: list["StoreUnderTest"] = field(default_factory=list)

    @classmethod
    def of(cls, kind: Kind, new_folder: Callable[[], Path], processes: Callable[[], ProcessPoolExecutor]):
        """Make a new, empty store of a kind."""
        return cls(kind, kind.settings(new_folder()), new_folder, processes)

    def open(self, **changed: object) -> Store:
        """Open the store, beside those who have it open already; `changed` are other settings, by name."""
        self._opened.append(open_store(self.settings.model_copy(update=changed)))
        return self._opened[-1]

    def reopen(self) -> Store:
        """Close the store wherever this process has it open, and open it."""
        self._close_opened()
        return self.open()

    def fresh(self) -> "StoreUnderTest":
        """Make another, empty store of the same kind."""
        self._others.append(StoreUnderTest.of(self.kind, self.new_folder, self.processes))
        return self._others[-1]

    def elsewhere(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Call ``function(store, *args)`` in another process, which opens the same store and closes it afterwards."""
        return self.processes().submit(_call, self.settings, function, args)

    def dies(self, function: Callable[[Store], Any]) -> None:
        """Call ``function(store)``, which ends its process, in another process."""
        process = get_context("spawn").Process(target=_call, args=(self.settings, function, ()))
        process.start()
        process.join()
        assert process.exitcode == 9, process.exitcode

    def close(self) -> None:
        """Close and remove the store, and those that `fresh` made."""
        self._close_opened()
        self.kind.remove(self.settings)
        for other in self._others:
            other.close()

    def _close_opened(self) -> None:
        for store in self._opened:
            store.close()
        self._opened.clear()


def _call(settings: Settings, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    store = open_store(settings)
    try:
        return function(store, *args)
    finally:
        store.close()
