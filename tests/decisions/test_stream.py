"""Raw events that applications write straight to Kafka are decided once each, whatever happens to those who decide them."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import handbook
import pytest
from bank import START, Bank
from command import Answer
from confluent_kafka.cimpl import NewTopic
from raw_topics import RawTopics, StreamProcess, until, variables

from mlpkg.decisions import StreamDecider, compare_decisions, verify
from mlpkg.decisions.record import decode_decision
from mlpkg.errors import MlpkgError, StoreError
from mlpkg.settings import Settings
from mlpkg.store import RawEvents, Store, store_place
from mlpkg.store.steps import run_steps
from mlpkg.times import HOUR, MINUTE, iso, now

if TYPE_CHECKING:
    from local_servers.kafka_server import Kafka

pytestmark = pytest.mark.slow
STREAMS = ["transactions", "transactions.fraud"]
MESSAGES = 1200


@pytest.fixture
def settings(kafka_server: Any, postgres_server: Any, redis_server: Any, kafka_prefix: str, tmp_path: Path):
    servers = kafka_server.settings() | postgres_server.settings() | redis_server.settings()
    name: dict[str, Any] = {"namespace": kafka_prefix.strip("-"), "kafka_protocol": "SASL_PLAINTEXT"}
    own = Settings(state=tmp_path / "state", store="cluster", max_body=50_000, **name, **servers)
    yield own
    store_place(own).remove()  # type: ignore[attr-defined]


@pytest.fixture
def bank(settings: Settings) -> Iterator[Bank]:
    store_place(settings).prepare(STREAMS)
    made = Bank(handbook.fraud, settings)
    with closing(made.store):
        yield made


@pytest.fixture
def raw(settings: Settings, kafka_server: "Kafka") -> RawTopics:
    return RawTopics(settings, kafka_server)


def payment(k: int, **fields: Any) -> dict[str, Any]:
    """A payment of history, in the order of its number; forty make a day."""
    at = START + k * HOUR * 24 // 40
    body = {"id": f"tx-{k}", "time": iso(at), "customer_id": k * 7 % 23, "terminal_id": k % 5, "amount": k % 97 + 0.5}
    return body | {"arrived": iso(at + MINUTE)} | fields


def recent(id: str, **fields: Any) -> dict[str, Any]:
    """A payment of this minute."""
    return {"id": id, "time": iso(now()), "customer_id": 1, "terminal_id": 7, "amount": 10.0} | fields


def send_payments(raw: RawTopics, numbers: range) -> None:
    """Send payments by their customers, and reports about every ninth of them, in which another application is not quicker."""
    for k in numbers:
        body = payment(k)
        raw.send("transactions", body, key=str(body["customer_id"]))
        if k % 9 == 0:
            report = {"id": f"tx-{k}", "fraud": k % 2 == 0, "arrived": iso(START + k * HOUR * 24 // 40 + 2 * HOUR)}
            raw.send("transactions.fraud", report, key=f"tx-{k}")
    raw.flush()


def decided(store: Store) -> list[str]:
    return [entry.id for entry in store.read(streams=["decisions.fraud"])]


def equals_embedded(store: Store, folder: Path) -> int:
    """Send the log through the embedded store, and compare all decisions; return how many there are."""
    bank, recorded, compared = Bank(handbook.fraud, folder), {}, 0
    entries = [*store.read()]
    for entry in entries:
        if entry.source == "decisions.fraud":
            recorded[entry.id] = decode_decision(entry.body)
    with closing(bank.store):
        for entry in entries:
            body = {"id": entry.id, **json.loads(entry.body)} if entry.source in STREAMS else {}
            if entry.source == "transactions":
                repeated = bank.decider.decide(body | {"time": iso(entry.time)}, arrived=entry.arrived)
                assert not compare_decisions(recorded[entry.id], repeated), entry.id
                compared += 1
            elif entry.source == "transactions.fraud":
                bank.store.report(handbook.frauds, body, arrived=entry.arrived)
    return compared


def test_processes_share_events_and_each_is_decided_once_though_one_is_killed(
    settings: Settings, bank: Bank, raw: RawTopics, tmp_path: Path
):
    """One of two dies while it decides, and another takes its place; what is decided equals what the embedded store decides."""
    send_payments(raw, range(MESSAGES // 3))
    first, second = (StreamProcess(settings, tmp_path, "--stated-arrivals") for _ in range(2))
    until(lambda: len(decided(bank.store)) > 100)
    send_payments(raw, range(MESSAGES // 3, MESSAGES * 2 // 3))
    first.kill()
    third = StreamProcess(settings, tmp_path, "--stated-arrivals")
    send_payments(raw, range(MESSAGES * 2 // 3, MESSAGES))
    last = StreamProcess(settings, tmp_path, "--stated-arrivals", "--until-caught-up", "--json")
    json.loads(last.wait())
    assert "decided" in second.stop() and "decided" in third.stop()

    ids = decided(bank.store)
    assert sorted(ids) == sorted(f"tx-{k}" for k in range(MESSAGES)), "each once"
    assert len([*bank.store.read(streams=["transactions"])]) == MESSAGES
    assert len([*bank.store.read(streams=["transactions.fraud"])]) == len(range(0, MESSAGES, 9))
    assert not bank.store.dead_letters() and not bank.store.waiting()
    assert verify(handbook.fraud, bank.store).mismatches == 0
    assert equals_embedded(bank.store, tmp_path / "embedded") == MESSAGES


def test_poison_becomes_dead_letters_that_can_be_mended(
    settings: Settings, bank: Bank, raw: RawTopics, tmp_path: Path, cli: Callable[..., Answer], monkeypatch: Any
):
    """Whatever is sent, the events behind it are decided, and nothing is lost; the same events again change nothing."""
    ahead = recent("ahead", time=iso(now() + 2 * HOUR))
    raw.send("transactions", recent("good"), key="1", headers={"contract": "1"})
    raw.send("transactions", b"no JSON")
    raw.send("transactions", b'{"id": "\xff"}')
    raw.send("transactions", None)
    raw.send("transactions", b'{"a":' * 20_000)
    raw.send("transactions", recent("negative", amount=-1.0))
    raw.send("transactions", recent("of another"), key="2")
    raw.send("transactions", recent("unknown contract"), headers={"contract": "7"})
    raw.send("transactions", recent("large", note="x" * settings.max_body))
    raw.send("transactions", ahead)
    raw.send("transactions", recent("old", time=iso(now() - 96 * HOUR)))
    raw.send("transactions", recent("good", amount=99.0))
    raw.send("transactions.fraud", {"id": "good", "fraud": "perhaps"})
    raw.send("transactions.fraud", {"id": "good", "fraud": True}, key="good")
    raw.send("transactions", recent("behind"))
    raw.flush()
    for _ in range(2):
        StreamProcess(settings, tmp_path, "--until-caught-up").wait()
        assert sorted(decided(bank.store)) == ["behind", "good"]
        letters = {letter.origin: letter for letter in bank.store.dead_letters()}
        assert len(letters) == 12 == len(bank.store.dead_letters())
        take_again(settings, bank)

    for name, value in variables(settings).items():
        monkeypatch.setenv(name, value)
    listed = cli("dead-letters", "list").out
    for reason in ("is not JSON", "below 0", "does not match the event", "no version of the contract", "max_body"):
        assert reason in listed, reason
    assert "after the event arrived" in listed and "before the event arrived" in listed and "other content" in listed
    number = next(letter.number for letter in letters.values() if letter.event == "negative")
    done = cli("dead-letters", "retry", number, "--set", "amount=12.5")
    assert done.status == 0 and "accepted" in done.out, done
    raw.send("transactions", {"id": "negative"})
    raw.flush()
    StreamProcess(settings, tmp_path, "--until-caught-up").wait()
    assert sorted(decided(bank.store)) == ["behind", "good", "negative"], "it is decided, as it is in the log now"
    assert verify(handbook.fraud, bank.store).mismatches == 0


def take_again(settings: Settings, bank: Bank) -> None:
    """Take all raw events once more, as a group that has not committed anything."""
    before = bank.store.last_position(), len(bank.store.dead_letters())
    with closing(store_place(settings).raw_events(f"again-{time.monotonic_ns()}", STREAMS)) as raw:
        stream = StreamDecider(handbook.fraud, bank.store, raw)
        run_steps(stream, threading.Event(), until_caught_up=True)
        assert stream.counts["decided"] == 2 and stream.counts["reported"] == 1
    assert (bank.store.last_position(), len(bank.store.dead_letters())) == before


def test_a_store_that_fails_is_waited_for(settings: Settings, kafka_server: Any, own_server: Callable[..., Any]):
    """It says so once; when Redis is back, no event is missing."""
    from local_servers.redis_server import Redis

    redis = own_server(Redis)
    own = settings.model_copy(update=redis.settings() | {"namespace": f"{settings.namespace}-redis"})
    store_place(own).prepare(STREAMS)
    bank, raw, said, stop = Bank(handbook.fraud, own), RawTopics(own, kafka_server), [], threading.Event()
    with closing(bank.store), closing(store_place(own).raw_events("stream", STREAMS)) as events:
        stream = StreamDecider(handbook.fraud, bank.store, events)
        thread = threading.Thread(target=run_steps, args=(stream, stop), kwargs={"trouble": said.append}, daemon=True)
        thread.start()
        for k in range(300):
            raw.send("transactions", recent(f"tx-{k}", customer_id=k % 7), key=str(k % 7))
            if k == 150:
                raw.flush()
                until(lambda: stream.counts["decided"])
                redis.kill()
        raw.flush()
        until(lambda: said)
        redis.start()
        until(lambda: said[-1] is None and sum(stream.counts.values()) >= 300 and len(decided(bank.store)) == 300)
        stop.set()
        thread.join()
        assert isinstance(said[0], StoreError) and [error is None for error in said] == [False, True] * (len(said) // 2)
        assert sorted(decided(bank.store)) == sorted(f"tx-{k}" for k in range(300))
        assert verify(handbook.fraud, bank.store).mismatches == 0
    store_place(own).remove()  # type: ignore[attr-defined]


@pytest.fixture
def sent(settings: Settings, raw: RawTopics) -> RawTopics:
    """Twelve payments in the topic of one source."""
    store_place(settings).prepare(STREAMS)
    for k in range(12):
        raw.send("transactions", recent(f"tx-{k}"), key=str(k))
    raw.flush()
    return raw


def take_all(events: RawEvents, seconds: float = 3) -> set[str]:
    """What a process gets until nothing comes for some time."""
    taken, end = set(), time.monotonic() + seconds
    while time.monotonic() < end:
        for event in events.take(100, 0.2):
            taken.add(json.loads(event.body)["id"])
            end = time.monotonic() + seconds
    return taken


def test_what_was_not_committed_comes_again(settings: Settings, sent: RawTopics):
    """To the same process after it has gone back, and to another one if the first is gone; what was committed does not."""
    place = store_place(settings)
    with closing(place.raw_events("group", STREAMS)) as first:
        every = take_all(first)
        assert len(every) == 12 and first.lag() == 12
        first.rewind()
        assert take_all(first) == every
    with closing(place.raw_events("group", STREAMS)) as second:
        assert take_all(second) == every
        second.commit()
        assert second.lag() == 0
        sent.send("transactions", recent("later"))
        sent.flush()
    with closing(place.raw_events("group", STREAMS)) as third:
        assert take_all(third) == {"later"}


def test_a_partition_that_goes_to_another_process_is_not_committed_by_the_first(settings: Settings, sent: RawTopics):
    """It had taken all and committed nothing; the second one gets what its partitions hold."""
    place = store_place(settings)
    with closing(place.raw_events("group", STREAMS)) as first:
        assert len(take_all(first)) == 12
        with closing(place.raw_events("group", STREAMS)) as second:
            taken = set[str]()
            for _ in range(50):
                first.take(100, 0.1)
                taken |= {json.loads(event.body)["id"] for event in second.take(100, 0.1)}
                if taken:
                    break
            assert taken
            first.commit()
            lag = second.lag()
            assert lag >= len(taken), "what the second one has is open"
            taken |= take_all(second)
            second.commit()
            assert second.lag() == lag - len(taken) == 0


def test_marks_of_transactions_are_no_events(settings: Settings, sent: RawTopics, kafka_server: Any):
    """An application may write in transactions of its own; what it took back never was, and nothing waits for it."""
    other = RawTopics(settings, kafka_server, **{"transactional.id": settings.namespace, "linger.ms": 0})
    other.producer.init_transactions(30)
    for id, ends in (("kept", other.producer.commit_transaction), ("taken back", other.producer.abort_transaction)):
        other.producer.begin_transaction()
        other.send("transactions", recent(id), key="1")
        other.flush()
        ends(30)
    with closing(store_place(settings).raw_events("group", STREAMS)) as events:
        assert take_all(events) == {"kept", *(f"tx-{k}" for k in range(12))}
        events.commit()
        assert events.lag() == 0


def test_topics_that_cannot_hold_raw_events_are_refused(settings: Settings, bank: Bank, kafka_server: "Kafka"):
    """Times of applications are not arrivals, and fewer partitions are fewer processes."""
    place, namespace = store_place(settings), settings.namespace
    with pytest.raises(MlpkgError, match="rename the source 'raw'"):
        bank.store.session.make_topics(["raw.fraud"])
    config = {"message.timestamp.type": "CreateTime"}
    topic = NewTopic(f"{namespace}.raw.visits", 3, 1, config=config)
    kafka_server.admin.create_topics([topic])[topic.topic].result()
    with pytest.raises(MlpkgError, match=r"raw\.visits is CreateTime, not LogAppendTime"):
        place.raw_events("group", STREAMS)
