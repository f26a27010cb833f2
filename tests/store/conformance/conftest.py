from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import handbook
import pytest
from bank import Bank
from stores import KINDS, Kind, StoreUnderTest

from mlpkg.store import Store


@pytest.fixture(scope="session", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    made = KINDS[request.param]
    return made.on(*(request.getfixturevalue(name) for name in made.servers))


@pytest.fixture(scope="session")
def processes() -> Iterator[Callable[[], ProcessPoolExecutor]]:
    """Two processes that wait for work, started when a test first needs them."""

    @cache
    def start() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(2, get_context("spawn"))

    yield start
    if start.cache_info().currsize:
        start().shutdown()


@pytest.fixture(scope="session")
def new_store(
    kind: Kind, processes: Callable[[], ProcessPoolExecutor], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], StoreUnderTest]:
    """A function that makes a new store; who calls it closes the store."""
    return lambda: StoreUnderTest.of(kind, lambda: Path(tmp_path_factory.mktemp("store")), processes)


@pytest.fixture
def tested(new_store: Callable[[], StoreUnderTest]) -> Iterator[StoreUnderTest]:
    """A new store for one test."""
    made = new_store()
    yield made
    made.close()


@pytest.fixture
def store(tested: StoreUnderTest) -> Store:
    """The new store, open."""
    return tested.open()


@pytest.fixture
def bank(tested: StoreUnderTest) -> Iterator[Bank]:
    """The handbook's use case on the new store, with an active model."""
    made = Bank(handbook.fraud, tested.settings)
    with closing(made.store):
        yield made


@pytest.fixture
def early_bank(tested: StoreUnderTest) -> Iterator[Bank]:
    """The same, where a report counts as soon as it is known."""
    made = Bank(handbook.early, tested.settings)
    with closing(made.store):
        yield made
