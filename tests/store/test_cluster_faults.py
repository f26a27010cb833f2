"""A store on servers loses nothing that it acknowledged, whatever happens to Redis and to the processes that write."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import handbook
import pytest
from bank import Bank
from local_servers.redis_server import Redis

from mlpkg.decisions import verify
from mlpkg.errors import StoreError
from mlpkg.settings import Settings
from mlpkg.store import open_store
from mlpkg.store.kafka.messages import LogRecord
from mlpkg.store.opening import store_place


@pytest.fixture
def redis(own_server: Callable[..., Any]) -> Redis:
    return own_server(Redis)


@pytest.fixture
def settings(kafka_server: Any, postgres_server: Any, redis: Redis, tmp_path: Path) -> Iterator[Settings]:
    servers = kafka_server.settings() | postgres_server.settings() | redis.settings()
    namespace = f"t{secrets.token_hex(6)}"
    own = Settings(
        state=tmp_path / "state", store="cluster", namespace=namespace, kafka_protocol="SASL_PLAINTEXT", **servers
    )
    yield own
    store_place(own).remove()  # type: ignore[attr-defined]


def use(bank: Bank, name: str, first_day: int) -> None:
    """Decide on ten payments, and hear about some of them; one report waits for its event."""
    for k in range(10):
        bank.pays(f"{name}-{k}", first_day + k / 4, customer_id=k % 3, amount=float(k))
    for k in range(0, 10, 3):
        bank.hears(f"{name}-{k}", k % 2 == 0, first_day + 5)
    bank.hears(f"{name}-later", True, first_day + 5)


def state_of(bank: Bank) -> Any:
    """What the log holds, what waits, and the timelines of three customers and a terminal."""
    store = bank.store
    timelines = [store.timeline("transactions", "customer_id", value) for value in range(3)]
    timelines.append(store.timeline("transactions.fraud", "terminal_id", 7))
    rows = [(t.time.tolist(), t.position.tolist(), {k: v.tolist() for k, v in t.columns.items()}) for t in timelines]
    return list(store.read()), store.waiting(), rows, store.identity()


@pytest.mark.parametrize("with_data", [True, False], ids=["with its data", "without"])
def test_redis_that_was_killed_is_complete_again(settings: Settings, redis: Redis, with_data: bool):
    """Log, timelines, waiting reports and known ids are as before, and the next decisions see them."""
    bank = Bank(handbook.fraud, settings)
    with closing(bank.store), closing(open_store(settings)) as other:
        use(bank, "before", 0)
        before = state_of(bank)
        if with_data:
            redis.kill()
        else:
            redis.lose_data()
        with pytest.raises(StoreError, match="Redis"):
            bank.pays("meanwhile", 3)
        redis.start()
        assert state_of(bank) == before
        again = bank.pays("before-1", 1 / 4, customer_id=1, amount=1.0)
        assert again.event == "before-1" and list(bank.store.read()) == before[0], "it is known"
        use(bank, "after", 3)
        bank.pays("before-later", 6)
        assert verify(handbook.fraud, other).mismatches == 0
        assert [entry.id for entry in other.waiting()] == ["after-later"]


def test_a_write_that_nobody_ends_is_undone_and_what_saw_it_is_tried_again(settings: Settings):
    """Its process died; after three seconds another one goes on, and the id is free."""
    bank = Bank(handbook.fraud, settings)
    with closing(bank.store), closing(open_store(settings)) as other:
        bank.pays("first", 0)
        other.register(handbook.fraud.name, handbook.features)
        body = bank.payment("stuck", 1)
        row = handbook.transactions.parse(body)
        stuck: Any = other.decision("fraud", handbook.transactions, row, row.time)
        stuck.__enter__()
        time.sleep(0.5)  # what begins sooner sees its row, and is undone with it
        began = time.monotonic()
        seen = bank.pays("next", 1.5)
        assert time.monotonic() - began > 2
        assert seen.features["customer_n_tx_1d"] == 1, "the first payment is a day and a half older"
        assert [e.id for e in other.read(streams=["transactions"])] == ["first", "next"]
        stuck.record("{}")
        with pytest.raises(StoreError, match="undone"):
            stuck.__exit__(None, None, None)
        assert [e.id for e in other.read(streams=["transactions"])] == ["first", "next"], "its record is void"
        assert bank.pays("stuck", 1).event == "stuck"
        assert verify(handbook.fraud, other).mismatches == 0


def test_what_a_process_of_an_older_epoch_appends_is_void(settings: Settings, redis: Redis):
    """It slept while Redis was lost and another process recovered it."""
    bank = Bank(handbook.fraud, settings)
    with closing(bank.store), closing(open_store(settings)) as sleeper:
        bank.pays("first", 0)
        position = sleeper.last_position() + 10
        redis.lose_data()
        redis.start()
        bank.pays("second", 1)
        log = sleeper.session.log  # type: ignore[attr-defined]
        late = LogRecord(position, "transactions", "late", 1, 1, None, "{}", 1, position)
        delivery = log.append(late, b"late")
        log.flush()
        log.check_delivered([delivery])
        assert [e.id for e in bank.store.read(streams=["transactions"])] == ["first", "second"]
