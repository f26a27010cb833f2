"""The log in a real Kafka: what is appended is read in the order of its positions, and what is void is not."""

import json
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import OffsetSpec
from confluent_kafka.cimpl import NewTopic

from mlpkg.errors import MlpkgError, Rejected, StoreError
from mlpkg.store.kafka import stable
from mlpkg.store.kafka import topics as topics_module
from mlpkg.store.kafka.log import Delivery, KafkaLog
from mlpkg.store.kafka.messages import LogRecord, Place, Voids, encode_record, epoch_message, undone_message
from mlpkg.store.kafka.stable import StableLog
from mlpkg.store.kafka.topics import TOPIC_CONFIG, TopicLayout

if TYPE_CHECKING:
    from local_servers.kafka_server import Kafka

START = 1_700_000_000_000_000  # a position, in microseconds
LAYOUT = TopicLayout(partitions=3)


def options(server: "Kafka") -> dict[str, object]:
    return {name: value for name, value in server.client_settings().items() if name != "bootstrap.servers"}


def log_of(server: "Kafka", prefix: str, layout: TopicLayout = LAYOUT) -> KafkaLog:
    return KafkaLog(server.address, f"{prefix}log", layout, options(server))


@pytest.fixture
def log(kafka_server: "Kafka", kafka_prefix: str) -> Iterator[KafkaLog]:
    """A log with one stream of three partitions, and its topic `_control`."""
    with closing(log_of(kafka_server, kafka_prefix)) as log:
        log.topics.make(["_control"], 1)
        log.topics.make(["payments"])
        yield log


def record(number: int, low: int = 0, stream: str = "payments", epoch: int = 1) -> LogRecord:
    """The record at a position; those before `low` had ended when it began."""
    return LogRecord(
        START + number, stream, f"tx-{number}", 35, 45, None, f'{{"id":"tx-{number}"}}', epoch, START + low
    )


def append(log: KafkaLog, *records: LogRecord, key: bytes | None = None) -> list[Place]:
    """Append records, each with its own key or all with one, and return where they lie."""
    deliveries = [log.append(r, r.id.encode() if key is None else key) for r in records]
    return places(log, deliveries)


def places(log: KafkaLog, deliveries: Sequence[Delivery]) -> list[Place]:
    log.flush(deliveries)
    log.check_delivered(deliveries)
    return [delivery.place for delivery in deliveries if delivery.place is not None]


def numbers(log: KafkaLog, after: int = 0, streams: Sequence[str] | None = None) -> list[int]:
    """The positions that a reader gets, less that of the start."""
    return [r.position - START for r in log.read(streams, START + after, log.voids())]


def test_a_record_that_was_acknowledged_is_read_and_fetched_as_it_was(log: KafkaLog) -> None:
    written = record(1)._replace(needs=(START - 2, START - 1), use_case="fraud", decision="{}", decided=START + 2)
    (place,) = append(log, written)
    expected = written._replace(partition=place.partition, offset=place.offset)
    assert log.fetch(place) == expected
    assert [*log.read(None, 0, Voids())] == [expected]
    assert log.ends()[place.topic][place.partition] == place.offset + 1


def test_records_of_several_partitions_come_in_the_order_of_their_positions(log: KafkaLog) -> None:
    """Positions are out of order inside partitions, too, as several processes write."""
    pairs = [number for low in range(1, 120, 2) for number in (low + 1, low)]
    where = append(log, *(record(number, low=(number - 1) // 2 * 2) for number in pairs))
    assert len({place.partition for place in where}) == 3
    assert numbers(log) == [*range(1, 121)]
    assert numbers(log, after=118) == [119, 120]


def test_two_streams_are_one_order_and_a_reader_may_take_one_of_them(log: KafkaLog) -> None:
    log.topics.make(["refunds"])
    append(log, record(3, 2), record(1, 0), record(2, 1, "refunds"), record(4, 3, "refunds"))
    assert numbers(log) == [1, 2, 3, 4]
    assert numbers(log, streams=["refunds", "unknown"]) == [2, 4]


def test_the_latest_records_are_those_before_a_position(log: KafkaLog) -> None:
    append(log, *(record(number * 1_000_000, number * 1_000_000) for number in range(1, 31)), key=b"596")
    records, is_all = log.latest("payments", START + 20_000_000, 4, Voids())
    earlier = [r.position - START for r in records if r.position < START + 20_000_000]
    assert earlier == [17_000_000, 18_000_000, 19_000_000] and not is_all
    records, is_all = log.latest(None, START + 20_000_000, 100, Voids())
    assert len(records) == 30 and is_all


def test_what_was_undone_is_void(log: KafkaLog) -> None:
    decided = record(5)._replace(use_case="fraud", decision="{}", decided=START + 6)
    append(log, record(1), record(2), record(3), decided)
    log.append_control(undone_message(START + 1, START + 2))
    log.append_control(undone_message(START + 6, START + 6))
    assert numbers(log) == [3, 5]
    assert [r.decision for r in log.read(None, 0, log.voids())] == ["", ""]
    assert [r.position - START for r in log.latest(None, START + 9, 10, log.voids())[0]] == [3, 5]


def test_what_a_process_of_an_older_epoch_appends_later_is_void(log: KafkaLog) -> None:
    append(log, record(1))
    log.append_control(epoch_message(2, log.ends()))
    append(log, record(2))
    append(log, record(3, epoch=2))
    assert log.voids().epoch == 2 and numbers(log) == [1, 3]
    log.topics.make(["refunds"])  # it was not there when the epoch began
    append(log, record(4, stream="refunds"), record(5, stream="refunds", epoch=2))
    assert numbers(log) == [1, 3, 5]


def follower_of(server: "Kafka", prefix: str) -> StableLog:
    """The same log, as a reader has it that has nothing but the log."""
    return StableLog(server.address, f"{prefix}log", LAYOUT, options(server))


@pytest.fixture
def follower(log: KafkaLog, kafka_server: "Kafka", kafka_prefix: str) -> Iterator[StableLog]:
    with closing(follower_of(kafka_server, kafka_prefix)) as follower:
        yield follower


def followed(follower: StableLog, after: int = 0) -> list[int]:
    """The positions that it reads on from a position, less that of the start."""
    return [r.position - START for r in follower.read_on(START + after)]


def test_a_follower_reads_what_nothing_can_precede(log: KafkaLog, follower: StableLog) -> None:
    """Whatever lies before the `low` of a message has ended, in every partition and topic."""
    append(log, record(10, low=5), record(12, low=11))
    assert followed(follower) == [10]
    end = follower.end()
    assert (end.last - START, end.readable - START, end.newest - START) == (10, 10, 12)
    append(log, record(11, low=5))  # it had begun before 12, and came later
    append(log, record(20, low=20))
    assert followed(follower, after=10) == [11, 12]
    log.topics.make(["visits"])
    append(log, record(21, low=20, stream="visits"), record(22, low=20))
    append(log, record(30, low=30))
    assert followed(follower, after=12) == [20, 21, 22]
    assert followed(follower, after=20) == [21, 22], "what was read is held until the reader is past it"


def test_a_follower_passes_over_what_was_undone_while_it_was_held(log: KafkaLog, follower: StableLog) -> None:
    append(log, record(10, low=5), record(12, low=11))
    assert followed(follower) == [10]
    log.append_control(undone_message(START + 12, START + 12))
    append(log, record(20, low=20))
    assert followed(follower, after=10) == []
    append(log, record(30, low=30))
    assert followed(follower, after=10) == [20]


def test_a_follower_may_begin_again_at_an_earlier_position(log: KafkaLog, follower: StableLog) -> None:
    append(log, *[record(n, low=n) for n in range(1, 9)])
    assert followed(follower, after=4) == [5, 6, 7]
    assert followed(follower) == [1, 2, 3, 4, 5, 6, 7]


def test_a_follower_that_is_far_behind_holds_nothing(
    log: KafkaLog, kafka_server: "Kafka", kafka_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stable, "_HELD", 3)
    append(log, *[record(n, low=n) for n in range(1, 9)])
    with closing(follower_of(kafka_server, kafka_prefix)) as follower:
        assert followed(follower) == [1, 2, 3, 4, 5, 6, 7], "when it begins"
        assert followed(follower, after=6) == [7]
        append(log, *[record(n, low=n) for n in range(9, 15)])
        assert followed(follower, after=7) == [8, 9, 10, 11, 12, 13], "when much has come since"
        assert followed(follower, after=12) == [13] and follower.end().newest == START + 14


def test_texts_are_read_in_the_order_in_which_they_were_appended(log: KafkaLog) -> None:
    log.topics.make(["_dead-letters"], 1)
    assert log.read_texts("_dead-letters", bytes.decode) == [] and log.read_texts("_missing", bytes.decode) == []
    log.append_texts("_dead-letters", ["first", "zweitens: ü", "third"])
    assert log.read_texts("_dead-letters", bytes.decode) == ["first", "zweitens: ü", "third"]


def test_a_message_that_is_none_of_mlpkgs_is_skipped_with_one_warning(
    log: KafkaLog, kafka_server: "Kafka", caplog: pytest.LogCaptureFixture
) -> None:
    append(log, record(1), key=b"596")
    topic = log.topics.name("payments")
    foreign = Producer(kafka_server.client_settings() | {"log_level": 0})
    where: list[tuple[int, int]] = []

    def note(_: object, message: Message) -> None:
        where.append((message.partition() or 0, message.offset() or 0))

    messages: dict[bytes, dict[str, str | bytes | None]] = {
        b"hello": {},
        b"{}": {"position": b"\xff"},
        b"": {"position": None},
    }
    for value, headers in messages.items():
        foreign.produce(topic, value, b"596", headers=headers, on_delivery=note)
    foreign.flush(10)
    append(log, record(2), key=b"596")
    for _ in range(2):
        assert numbers(log) == [1, 2]
    assert [r.position - START for r in log.latest("payments", START + 9, 10, Voids())[0]] == [1, 2]
    warned = [r.getMessage() for r in caplog.records if r.name == "mlpkg"]
    assert len(where) == len(warned) == 3
    for (partition, offset), text in zip(where, warned, strict=True):
        assert text.startswith(f"the topic {topic}, partition {partition}, offset {offset} ")
    with pytest.raises(StoreError, match="no message"):
        log.fetch(Place(topic, *where[0]))


def test_a_message_whose_place_is_not_known_is_not_acknowledged(log: KafkaLog, kafka_server: "Kafka") -> None:
    """The client reports some messages as delivered that lie nowhere; these have no offset, as all without `acks`."""
    careless = options(kafka_server) | {"enable.idempotence": False, "acks": "0"}
    with closing(KafkaLog(log.brokers, log.topics.prefix, LAYOUT, careless)) as sender:
        with pytest.raises(StoreError, match="where the message lies"):
            append(sender, record(1))


def test_a_topic_that_was_just_made_can_be_written(log: KafkaLog, kafka_server: "Kafka") -> None:
    newest = cast(OffsetSpec, OffsetSpec.latest())
    for number in range(10):
        log.topics.make([f"refunds-{number}"])
        topic = log.topics.name(f"refunds-{number}")
        ends = kafka_server.admin.list_offsets({TopicPartition(topic, p): newest for p in range(3)})
        assert [end.result().offset for end in ends.values()] == [0, 0, 0]


def test_anybody_can_read_the_topic(log: KafkaLog, kafka_server: "Kafka") -> None:
    (place,) = append(log, record(1))
    consumer = Consumer(kafka_server.client_settings() | {"group.id": place.topic, "log_level": 0})
    with closing(consumer):
        consumer.assign([TopicPartition(*place)])
        message = consumer.poll(10)
    assert message is not None and message.value() == b'{"id":"tx-1"}'
    assert message.timestamp()[1] == record(1).position // 1000
    assert message.headers() == encode_record(record(1))[1]


def test_topics_are_made_once_and_checked(log: KafkaLog, kafka_server: "Kafka", kafka_prefix: str) -> None:
    log.topics.make(["payments", "_control"])
    log.topics.check()
    assert log.topics.partitions() == {log.topics.name("payments"): 3, log.topics.name("_control"): 1}
    with closing(log_of(kafka_server, kafka_prefix, TopicLayout(partitions=4))) as wider:
        with pytest.raises(MlpkgError, match=r"payments has 3 partitions, not 4"):
            wider.topics.check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retention.ms", "60000"),
        ("retention.bytes", "1000000"),
        ("cleanup.policy", "compact"),
        ("max.message.bytes", "1048588"),
    ],
)
def test_a_topic_that_would_lose_entries_is_refused(
    name: str, value: str, log: KafkaLog, kafka_server: "Kafka"
) -> None:
    foreign = NewTopic(log.topics.name("refunds"), 3, 1, config={**TOPIC_CONFIG, name: value})
    kafka_server.admin.create_topics([foreign], operation_timeout=10)[foreign.topic].result()
    until = time.monotonic() + 10
    while foreign.topic not in log.topics.partitions() and time.monotonic() < until:
        time.sleep(0.05)
    with pytest.raises(MlpkgError, match=rf"{name} of the topic \S+refunds is {value}, not .*; .*kafka-configs"):
        log.topics.check()


def test_a_message_that_is_too_large_is_refused_and_named(log: KafkaLog) -> None:
    log.topics.make(["payments"])
    large = record(1)._replace(body=json.dumps({"id": "tx-1", "note": "x" * 9_000_000}))
    with pytest.raises(Rejected, match=r"message: 9,\d+,\d+ bytes is more than a message of the log may have"):
        log.append(large, b"tx-1")
    digits = "".join(random.choices("0123456789", k=5_000_000))
    almost = record(2)._replace(body=json.dumps({"id": "tx-2", "note": digits}))
    delivery = log.append(almost, b"tx-2")
    log.flush([delivery])
    log.check_delivered([delivery])


@pytest.mark.parametrize(
    ("login", "why"),
    [
        ({"sasl.password": "guess"}, r"invalid credentials .*; check kafka_user and MLPKG_KAFKA_PASSWORD"),
        ({"security.protocol": "SASL_SSL"}, r"SSL handshake failed.*; check kafka_protocol"),
        ({"security.protocol": "PLAINTEXT"}, r"whether it wants a login: kafka_user, kafka_protocol"),
        ({"bootstrap.servers": "127.0.0.1:1"}, r"Connection refused; check that it runs$"),
        ({"bootstrap.servers": "kafka.invalid:9092"}, r"Failed to resolve 'kafka.invalid:9092'"),
    ],
)
def test_a_wrong_login_or_address_is_named(
    login: dict[str, str], why: str, kafka_server: "Kafka", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics_module, "_TIMEOUT", 5.0)
    options: Any = kafka_server.client_settings() | login
    with closing(KafkaLog(options.pop("bootstrap.servers"), "shop", LAYOUT, options)) as log:
        with pytest.raises(StoreError, match=why) as raised:
            log.topics.partitions()
    assert kafka_server.password not in str(raised.value) and "guess" not in str(raised.value)


def test_a_broker_that_is_not_there_is_an_error_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics_module, "_TIMEOUT", 1.0)
    with closing(KafkaLog("127.0.0.1:1", "shop", LAYOUT)) as log, ThreadPoolExecutor() as pool:
        start = time.monotonic()
        calls = [
            lambda: append(log, record(1)),
            log.topics.partitions,
            log.topics.check,
            log.ends,
            lambda: numbers(log),
        ]
        for result in [pool.submit(call) for call in calls]:
            with pytest.raises(StoreError, match=r"127\.0\.0\.1:1"):
                result.result()
        assert time.monotonic() - start < 12
