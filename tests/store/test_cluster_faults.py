"""A store on servers loses nothing that it acknowledged, whatever happens to Redis and to the processes that write."""

import importlib
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import handbook
import pytest
from bank import Bank
from batches import batch_of
from confluent_kafka import Producer
from local_servers.kafka_server import Kafka
from local_servers.postgres_server import Postgres
from local_servers.redis_server import Redis

import mlpkg as ml
from mlpkg.decisions import verify
from mlpkg.errors import MlpkgError, StoreError, StoreLocked
from mlpkg.schema import Rejected
from mlpkg.settings import Settings
from mlpkg.store import open_store
from mlpkg.store.kafka.messages import LogRecord
from mlpkg.store.opening import store_place
from mlpkg.store.redis.sequencer import LAYOUT, Questions, Stale
from mlpkg.times import instant, iso, now


@pytest.fixture
def redis(own_server: Callable[..., Any]) -> Redis:
    return own_server(Redis)


def settings_on(state: Path, *servers: Any) -> Settings:
    """The settings of a new, empty store on servers."""
    named: dict[str, Any] = {name: value for server in servers for name, value in server.settings().items()}
    namespace = f"t{secrets.token_hex(6)}"
    return Settings(state=state, store="cluster", namespace=namespace, kafka_protocol="SASL_PLAINTEXT", **named)


@pytest.fixture
def settings(kafka_server: Any, postgres_server: Any, redis: Redis, tmp_path: Path) -> Iterator[Settings]:
    own = settings_on(tmp_path / "state", kafka_server, postgres_server, redis)
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


@pytest.mark.parametrize("is_whole", [True, False], ids=["all of it", "not all of it"])
def test_a_batch_that_lost_its_commit_counts_if_the_log_has_all_of_it(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch, is_whole: bool
):
    """Redis came back with the beginning of a batch and without its end, which may have been acknowledged."""
    bank = Bank(handbook.fraud, settings)
    with closing(bank.store), closing(open_store(settings)) as writer:
        bank.pays("first", 0)
        writes: Any = writer.session  # type: ignore[attr-defined]
        payments = [bank.payment(f"loaded-{k}", 1 + k, customer_id=1) for k in range(3)]
        batch = batch_of([(handbook.transactions, body, instant(body["time"])) for body in payments])
        appended = writes.log.append

        def append(record: LogRecord, key: bytes) -> Any:
            if record.id == "loaded-2" and not is_whole:
                raise StoreError("the process died")
            return appended(record, key)

        monkeypatch.setattr(writes.log, "append", append)
        monkeypatch.setattr(writes, "settle", lambda: None)
        with nullcontext() if is_whole else pytest.raises(StoreError, match="died"):
            writer.load(batch)
        writes.log.producer.flush(10)
        redis.kill()
        redis.start()
        bank.store.check()  # it recovers Redis
        loaded = [f"loaded-{k}" for k in range(3)]
        assert [e.id for e in bank.store.read(streams=["transactions"])] == ["first", *(loaded if is_whole else [])]
        again = bank.store.load(batch)
        assert (again.known, sum(again.new.values())) == ((3, 0) if is_whole else (0, 3))
        assert [e.id for e in bank.store.read(streams=["transactions"])] == ["first", *loaded]
        assert len(bank.store.timeline("transactions", "customer_id", 1).time) == 4
        bank.pays("last", 6)
        assert verify(handbook.fraud, bank.store).mismatches == 0


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


def test_decisions_go_on_while_postgres_is_away(
    kafka_server: Any, redis_server: Any, own_server: Callable[..., Any], tmp_path: Path
):
    """They use the model that was active; a model cannot be promoted meanwhile."""
    postgres = own_server(Postgres)
    bank = Bank(handbook.fraud, settings_on(tmp_path / "state", kafka_server, postgres, redis_server))
    with closing(bank.store):
        use(bank, "before", 0)
        postgres.kill()
        use(bank, "meanwhile", 3)
        with pytest.raises(StoreError, match="control plane"):
            bank.store.change_model("fraud", lambda before: {**before[-1]})
        postgres.start()
        assert len([*bank.store.read(streams=["decisions.fraud"])]) == 20
        assert verify(handbook.fraud, bank.store).mismatches == 0


def test_what_kafka_did_not_acknowledge_is_not_answered_and_can_be_sent_again(
    postgres_server: Any, redis_server: Any, own_server: Callable[..., Any], tmp_path: Path
):
    """The broker stands still for some seconds."""
    kafka = own_server(Kafka)
    bank = Bank(handbook.fraud, settings_on(tmp_path / "state", kafka, postgres_server, redis_server))
    with closing(bank.store):
        use(bank, "before", 0)
        kafka.pause()
        with pytest.raises(StoreError, match="Kafka"):
            bank.pays("meanwhile", 3)
        kafka.resume()
        until = time.monotonic() + 60
        while True:  # what was not acknowledged is undone first
            try:
                bank.pays("meanwhile", 3)
                break
            except StoreError:
                assert time.monotonic() < until
                time.sleep(0.1)
        names = [entry.id for entry in bank.store.read(streams=["decisions.fraud"])]
        assert len(names) == len({*names}) == 11 and names[-1] == "meanwhile"
        assert verify(handbook.fraud, bank.store).mismatches == 0


def test_timelines_whose_key_this_process_cannot_compute_are_given_up(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They would lack what it writes, so they are built again where their code is."""
    (tmp_path / "shop_keys.py").write_text("def parity(customer_id):\n    return customer_id % 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    parity: Any = importlib.import_module("shop_keys").parity
    source = handbook.transactions
    features = ml.FeatureSet("parity", on=source, parity=source.by(parity).agg(n=ml.count(over="30d")))
    with closing(open_store(settings)) as store:
        bank = Bank(handbook.fraud, settings)
        store.register("parity", features)
        (needed,) = features.streams
        name, odd = needed.key, needed.by.of({"customer_id": 1}, 0)
        bank.pays("first", 0)
        monkeypatch.undo()
        monkeypatch.delitem(sys.modules, "shop_keys", raising=False)
        with closing(Bank(handbook.fraud, settings).store) as without_code:
            body = bank.payment("second", 1)
            without_code.accept(source, body, arrived=instant(body["time"]), clock=instant(body["time"]))
        with pytest.raises(MlpkgError, match="not built"):
            store.timeline("transactions", name, odd)
        monkeypatch.syspath_prepend(str(tmp_path))
        store.register("parity", features)
        assert len(store.timeline("transactions", name, odd)) == 2
        bank.store.close()


def test_a_report_finds_an_event_that_was_stored_before_its_source_had_the_column(settings: Settings):
    """Its columns then come from its body in the log."""
    older = ml.Source("orders", type("Order", (ml.Event,), {"__annotations__": {"customer": int}}))
    newer = ml.Source(
        "orders", type("Order", (ml.Event,), {"__annotations__": {"customer": int, "tip": int | None}, "tip": None})
    )
    returned = newer.outcome("returned", bool, default=False, matures_after="7d")
    risk = returned.by("customer").agg(risk=ml.mean("returned", over="30d", empty=0.0))
    with closing(open_store(settings)) as store:
        store.accept(older, {"id": "o-1", "time": iso(now()), "customer": 596})
        store.register("returns", ml.FeatureSet("returns", on=newer, customer=risk))
        assert not store.report(returned, {"id": "o-1", "returned": True}).waiting
        rows = store.timeline(returned.stream, "customer", 596)
        assert rows.columns["returned"].tolist() == [1] and rows.columns["about"].tolist() == [
            next(store.read()).position
        ]


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
        log.flush([delivery])
        log.check_delivered([delivery])
        assert [e.id for e in bank.store.read(streams=["transactions"])] == ["first", "second"]


def test_threads_that_share_a_store_hear_of_their_own_writes(
    postgres_server: Any, redis_server: Any, own_server: Callable[..., Any], tmp_path: Path
):
    """While the broker stands still, none of them is told that its decision is in the log, and one in a hurry is told at once."""
    kafka = own_server(Kafka)
    bank = Bank(handbook.fraud, settings_on(tmp_path / "state", kafka, postgres_server, redis_server))
    with closing(bank.store), ThreadPoolExecutor(3) as pool:
        use(bank, "before", 0)
        settle = bank.store.defer_fsync()
        bank.pays("waits", 3)
        settle()
        kafka.pause()
        bank.store.session.is_deferred = False
        answers = [pool.submit(bank.pays, f"meanwhile-{k}", 3 + k, customer_id=k) for k in range(3)]
        assert {type(answer.exception()) for answer in answers} == {StoreError}

        bank.store.defer_fsync()
        bank.pays("deferred", 9, customer_id=9, terminal_id=9)
        bank.store.lock_timeout, began = 0.002, time.monotonic()
        with pytest.raises(StoreLocked):
            bank.pays("deferred", 9, customer_id=9, terminal_id=9)
        assert time.monotonic() - began < 1, "it does not wait for the log"
        waits = [pool.submit(settle) for _ in range(2)]
        assert all(wait.exception() for wait in waits), "two requests may wait for what one of them took"
        kafka.resume()
        bank.store.lock_timeout = 10
        bank.store.start_checkpointer()
        until = time.monotonic() + 30
        while "deferred" not in [entry.id for entry in bank.store.read(streams=["decisions.fraud"])]:
            assert time.monotonic() < until
            with suppress(StoreError):
                bank.pays("deferred", 9, customer_id=9, terminal_id=9)
                settle()
            time.sleep(0.1)
        assert verify(handbook.fraud, bank.store).mismatches == 0


def test_messages_of_others_in_the_topics_are_passed_over(
    settings: Settings, kafka_server: Kafka, redis: Redis, caplog: pytest.LogCaptureFixture
):
    """A warning says where each is; readers go on, and so does who writes Redis again."""
    bank = Bank(handbook.fraud, settings)
    with closing(bank.store):
        use(bank, "before", 0)
        with pytest.raises(Rejected):
            bank.pays("refused", 0, amount="much")
        before, letters = state_of(bank), bank.store.dead_letters()
        producer = Producer(kafka_server.client_settings())
        topics = ("transactions", "transactions.fraud", "_control", "_dead-letters")
        for topic in topics:
            for value in (b"hello", b"\xff\xfe", b"{}", b'{"undone": "all"}', b"null", b""):
                producer.produce(f"{settings.namespace}.{topic}", value)
        assert producer.flush(10) == 0
        redis.lose_data()
        redis.start()
        assert state_of(bank) == before and bank.store.dead_letters() == letters
        use(bank, "after", 3)
        assert verify(handbook.fraud, bank.store).mismatches == 0
        for topic in topics:
            assert f"the topic {settings.namespace}.{topic}, partition " in caplog.text


def test_nothing_is_decided_while_redis_is_written_again(settings: Settings, redis: Redis):
    """Who is in a hurry hears so at once, also in the process that writes it."""
    bank = Bank(handbook.fraud, settings)
    with closing(bank.store), ThreadPoolExecutor(1) as pool:
        for k in range(150):
            bank.pays(f"before-{k}", k / 24)
        bank.store.lock_timeout, refused = 0.002, 0
        redis.lose_data()
        redis.start()
        checked = pool.submit(bank.store.check)
        while not checked.done():
            began = time.monotonic()
            try:
                bank.pays(f"early-{refused}", 7)
            except StoreError:
                refused += 1
            assert time.monotonic() - began < 2
        checked.result()
        bank.store.lock_timeout = 10
        after: Any = bank.pays("after", 7).features["customer_n_tx_7d"]
        assert refused and after >= 149
        assert verify(handbook.fraud, bank.store).mismatches == 0


def test_no_call_goes_to_a_redis_that_has_restarted_before_it_is_complete(settings: Settings, redis: Redis):
    """It may have come back without its last second, and with an id missing that was acknowledged."""
    bank = Bank(handbook.fraud, settings)
    with closing(bank.store) as store:
        for day in range(2):  # the second time, scripts were given to Redis by this process before
            bank.pays(f"payment-{day}", day)
            redis.kill()
            redis.start()
            known = partial(Questions(store.session.sequencer).known, "transactions", [f"payment-{day}"])
            for ask in (store.session.sequencer.stable_position, store.session.sequencer.spans, known):
                with pytest.raises(Stale):
                    ask()
            assert store.entry("transactions", f"payment-{day}") is not None, "a reader completes it"
            assert len(list(store.read(streams=["transactions"]))) == day + 1
            assert store.session.sequencer.spans() == []


def test_what_an_older_mlpkg_wrote_into_redis_is_refused_until_up_writes_it_again(settings: Settings):
    """A process that still runs learns of it, one that has to read the old keys does not, and nothing is lost."""
    bank = Bank(handbook.fraud, settings)
    keeper = bank.store.session.state
    with closing(bank.store):
        use(bank, "before", 0)
        before = state_of(bank)
        keeper.write(layout=0)
        with pytest.raises(StoreError, match=r"timelines of an older mlpkg \(layout 0, .*; stop .*: mlpkg up"):
            open_store(settings)
        store_place(settings).prepare()
        assert state_of(bank) == before
        use(bank, "after", 20)
        keeper.write(layout=LAYOUT + 1)
        with pytest.raises(StoreError, match=r"timelines of a newer mlpkg .*; upgrade mlpkg"):
            open_store(settings)
        keeper.write(layout=LAYOUT)
        assert verify(handbook.fraud, bank.store).mismatches == 0


def test_processes_that_start_at_once_wait_for_the_one_that_writes_redis(settings: Settings):
    with ThreadPoolExecutor(4) as pool:
        prepared = [*pool.map(lambda _: store_place(settings).prepare(), range(4))]
    assert {lines[-1] for lines in prepared} == {"Redis holds all of the log"}


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_redis_that_drops_keys_is_refused(settings: Settings, redis: Redis, policy: str):
    with redis.client() as client:
        client.config_set("maxmemory", 100_000_000)
        client.config_set("maxmemory-policy", policy)
        with pytest.raises(StoreError, match=f"maxmemory-policy is {policy}; set maxmemory-policy noeviction"):
            store_place(settings).prepare()
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "no")
    assert "with appendonly yes" in store_place(settings).prepare()[-1]


@pytest.mark.parametrize("address", ["secret9", "http://:secret9@127.0.0.1:6379/0", "redis://:secret9@127.0.0.1:x/0"])
def test_an_address_of_redis_that_is_none_is_an_error_without_it(settings: Settings, address: str):
    with pytest.raises(MlpkgError, match="the address of Redis cannot be read; write it as redis://") as refused:
        store_place(settings.model_copy(update={"redis": address})).prepare()
    assert "secret9" not in str(refused.value)
