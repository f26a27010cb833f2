"""Parts of a store on servers fail under load: nothing that was acknowledged is lost or doubled, and service is soon back.

Real processes: two workers over HTTP, Kafka, Redis and PostgreSQL. Each test is a row of the table that `make test-faults` prints
and writes into build/faults.json.
"""

import json
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import handbook
import pytest
from archive_rows import rows_of_archive
from background import free_port
from bank import Bank
from confluent_kafka import Producer
from local_servers.kafka_server import Kafka
from local_servers.postgres_server import Postgres
from local_servers.redis_server import Redis
from paths import ROOT, SUPPORT
from raw_topics import RawTopics, StreamProcess
from serving import payment
from steady_load import CUSTOMERS, TERMINALS, SteadyLoad
from workers import Workers

import mlpkg as ml
from mlpkg.decisions import verify
from mlpkg.errors import StoreError
from mlpkg.settings import Settings
from mlpkg.store import open_archive, open_store
from mlpkg.store.kafka.messages import LogRecord
from mlpkg.store.opening import store_place

STILL = 30  # seconds that a part stands still
SERVED_WITHIN = 5.0  # seconds after the part that failed is back


@dataclass
class Row:
    """One fault: what clients sent and got, what became of it, and how soon they were served again."""

    fault: str
    sent: int = 0
    acknowledged: int = 0
    refused: int = 0
    lost: int = 0
    doubled: int = 0
    mismatches: int = 0
    away: float = 0.0
    recovered: float = 0.0
    note: str = ""


class Table:
    """The rows so far."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def markdown(self) -> str:
        names = (
            "fault",
            "sent",
            "acknowledged",
            "refused",
            "lost",
            "doubled",
            "mismatches",
            "away s",
            "served again s",
        )
        lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        for row in self.rows:
            values = [*asdict(row).values()][:7]
            lines.append(f"| {' | '.join(map(str, values))} | {row.away:.1f} | {row.recovered:.1f} |")
        return "\n".join(lines)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    made = Table()
    yield made
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    (build / "faults.json").write_text(json.dumps([asdict(row) for row in made.rows], indent=1))
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{made.markdown()}")


@dataclass
class Running:
    """An environment under load."""

    settings: Settings
    workers: Workers
    load: SteadyLoad
    row: Row
    log: Path
    late: list[str] = field(default_factory=list)

    def down(self, seconds: float) -> None:
        """Let time pass while a part is away."""
        self.row.away += seconds
        time.sleep(seconds)


@dataclass
class Rig:
    """The servers of environments."""

    folder: Path
    kafka: Kafka
    redis: Redis
    postgres: Postgres
    table: Table

    def settings(self) -> Settings:
        named: dict[str, Any] = {}
        for server in (self.kafka, self.redis, self.postgres):
            named |= server.settings()
        brokers = len(self.kafka.brokers)
        namespace = f"f{secrets.token_hex(4)}"
        return Settings(
            state=self.folder / namespace,
            store="cluster",
            namespace=namespace,
            kafka_protocol="SASL_PLAINTEXT",
            replication=brokers,
            min_insync=min(2, brokers),
            trust_loopback=True,
            **named,
        )

    @contextmanager
    def running(
        self,
        fault: str,
        before: Callable[[Settings], object] = lambda settings: None,
        after: Callable[[Settings, Row], object] | None = None,
    ) -> Iterator[Running]:
        """Put an environment under load; afterwards, check it, by default its timelines too, and note its row."""
        settings, row = self.settings(), Row(fault)
        with closing(Bank(handbook.fraud, settings).store):
            pass
        before(settings)
        log = self.folder / f"{settings.namespace}.log"
        workers = Workers(settings, "handbook:fraud", log, [free_port(), free_port()])
        try:
            workers.wait()
            with SteadyLoad(workers.ports) as load:
                load.wait_for(100)
                run = Running(settings, workers, load, row, log)
                yield run
                load.wait_for(50)
        finally:
            workers.stop()
            print(log.read_text("utf-8", "replace")[-6000:])
        assert not load.crashes and not load.contradictions
        assert {*load.refused} <= {0, 408, 503}, load.refused
        row.sent, row.acknowledged = len(load.sent) + len(load.frauds), len(load.decisions) + len(load.frauds)
        row.refused = load.refused.total()
        self.table.rows.append(row)
        check_log(settings, row, load.decisions, load.frauds)
        (after or check_timelines)(settings, row)
        store_place(settings).remove()  # type: ignore[attr-defined]
        assert (row.lost, row.doubled, row.mismatches) == (0, 0, 0), row
        assert not run.late


def settled_store(settings: Settings) -> Any:
    """The store, with nothing pending."""
    store: Any = open_store(settings)
    store.register("fraud", handbook.features)
    store.start_checkpointer()
    until = time.monotonic() + 20
    while store.session.sequencer.spans():
        assert time.monotonic() < until, "a write is pending for ever"
        time.sleep(0.1)
    return store


def check_log(settings: Settings, row: Row, decisions: Mapping[str, bytes | None], frauds: Mapping[str, int]) -> None:
    """Compare the log with what was acknowledged, and every decision with what the log says; None is any decision."""
    with closing(settled_store(settings)) as store:
        streams: dict[str, list[Any]] = {"decisions.fraud": [], "transactions": [], "transactions.fraud": []}
        for entry in store.read(streams=[*streams]):
            streams[entry.source].append(entry)
        for entries in streams.values():
            row.doubled += sum(n - 1 for n in Counter(entry.id for entry in entries).values())
        logged = {entry.id: json.loads(entry.body) for entry in streams["decisions.fraud"]}
        answers = {id: json.loads(answer) if answer else logged.get(id) for id, answer in decisions.items()}
        row.lost += sum(id not in logged or logged[id] != answer for id, answer in answers.items())
        reports = {entry.id: entry.position for entry in streams["transactions.fraud"]}
        row.lost += sum(reports.get(id) != position for id, position in frauds.items())
        events = {entry.id for entry in streams["transactions"]}
        row.lost += len(decisions.keys() - events)
        assert logged.keys() == events, "an event that is decided over HTTP is there with its decision or not at all"
        checked = verify(handbook.fraud, store)
        assert checked.decisions == len(logged)
        row.mismatches = checked.mismatches


def timelines_of(store: Any) -> list[Any]:
    rows = [("transactions", "customer_id", value) for value in range(CUSTOMERS)]
    rows += [("transactions.fraud", "terminal_id", value) for value in range(TERMINALS)]
    timelines = [store.timeline(*place) for place in rows]
    assert any(len(timeline) for timeline in timelines)
    return [(t.time.tolist(), t.position.tolist(), {k: v.tolist() for k, v in t.columns.items()}) for t in timelines]


def check_timelines(settings: Settings, row: Row) -> None:
    """Compare the timelines with those that are written from the log into an empty Redis."""
    with closing(settled_store(settings)) as store:
        before = timelines_of(store)
        store.session.state.delete_all()
    with closing(settled_store(settings)) as store:
        assert timelines_of(store) == before, row


@pytest.fixture(scope="module")
def rig(module_server: Callable[..., Any], table: Table, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """One broker, one Redis, one PostgreSQL."""
    kafka, redis, postgres = (module_server(kind) for kind in (Kafka, Redis, Postgres))
    return Rig(tmp_path_factory.mktemp("faults"), kafka, redis, postgres, table)


@pytest.fixture(scope="module")
def three(module_server: Callable[..., Any], rig: Rig) -> Iterator[Rig]:
    """Three brokers, two of which have to acknowledge, and the others of the rig."""
    kafka = module_server(Kafka, brokers=3)
    yield Rig(rig.folder, kafka, rig.redis, rig.postgres, rig.table)
    kafka.kill()


def finish(run: Running, since: float, within: float = SERVED_WITHIN) -> None:
    """Wait until all clients are served, and hold the time against the promise."""
    took = run.load.wait_until_recovered(since)
    run.row.recovered = max(run.row.recovered, took)
    if took >= within:
        run.late.append(f"served again after {took:.1f} s, not within {within:.0f} s")


def test_a_worker_is_killed_and_started_again(rig: Rig):
    with rig.running("a worker is killed (three times)") as run:
        for port in (*run.workers.ports, run.workers.ports[0]):
            run.workers.kill(port)
            finish(run, time.monotonic())


def test_redis_is_killed(rig: Rig):
    with rig.running("Redis is killed, its data stay") as run:
        rig.redis.kill()
        run.down(3)
        rig.redis.start()
        finish(run, time.monotonic())


def test_redis_loses_its_data(rig: Rig):
    with rig.running("Redis is killed and its data are lost") as run:
        run.load.wait_for(500)
        rig.redis.lose_data()
        run.down(3)
        rig.redis.start()
        finish(run, time.monotonic())


def test_postgres_is_killed(rig: Rig):
    with rig.running("PostgreSQL is killed") as run:
        before = run.load.refused.total()
        rig.postgres.kill()
        run.down(3)
        assert run.load.refused.total() == before, "decisions do without it"
        rig.postgres.start()
        finish(run, time.monotonic())


def test_the_only_broker_is_killed(rig: Rig):
    with rig.running("the only broker is killed") as run:
        rig.kafka.kill()
        run.down(3)
        rig.kafka.start()
        finish(run, time.monotonic())


def test_a_worker_stands_still(rig: Rig):
    with rig.running(f"a worker stands still for {STILL} s") as run:
        port = run.workers.ports[0]
        run.workers.pause(port)
        run.down(STILL)
        run.workers.resume(port)
        finish(run, time.monotonic())


def test_redis_stands_still(rig: Rig):
    with rig.running(f"Redis stands still for {STILL} s") as run:
        rig.redis.pause()
        run.down(STILL)
        rig.redis.resume()
        finish(run, time.monotonic())


def test_the_only_broker_stands_still(rig: Rig):
    with rig.running(f"the only broker stands still for {STILL} s") as run:
        rig.kafka.pause()
        run.down(STILL)
        rig.kafka.resume()
        finish(run, time.monotonic())


def test_one_broker_of_three_is_killed(three: Rig):
    """The others take over what it led after 3 s, the session of a broker in these tests."""
    with three.running("one broker of three is killed") as run:
        broker = three.kafka.brokers[0]
        broker.kill()
        finish(run, time.monotonic(), 3 + SERVED_WITHIN)
        broker.start()
        finish(run, time.monotonic())


def test_one_broker_of_three_stands_still(three: Rig):
    with three.running(f"one broker of three stands still for {STILL} s") as run:
        broker = three.kafka.brokers[1]
        broker.pause()
        began = time.monotonic()
        finish(run, began, 3 + SERVED_WITHIN)
        time.sleep(max(0.0, STILL - (time.monotonic() - began)))
        run.row.away = time.monotonic() - began
        broker.resume()
        finish(run, time.monotonic())


def archive_equals_log(location: str, settings: Settings, row: Row) -> None:
    """Finish an archive, and count what it lacks and what it has twice."""
    with closing(settled_store(settings)) as store:
        archive = open_archive(location)
        archive.write(store)
        rows = Counter((e.position, e.source, e.id, e.body) for e in rows_of_archive(location, store))
        log = {(e.position, e.source, e.id, e.body) for e in store.read()}
    row.doubled += sum(n - 1 for n in rows.values())
    row.lost += len(log - rows.keys())
    assert not rows.keys() - log, "the archive has what the log has not"


def test_the_archive_writer_is_killed(rig: Rig, tmp_path: Path):
    """Six times while it writes; each that follows goes on where the one before was."""
    archive, chance = str(tmp_path / "archive"), random.Random(6)

    def check(settings: Settings, row: Row) -> None:
        archive_equals_log(archive, settings, row)
        check_timelines(settings, row)

    with rig.running("the archive writer is killed while it writes (six times)", after=check) as run:
        command = [sys.executable, SUPPORT / "write_archive.py", run.settings.model_dump_json(), archive]
        kills, longest = 0, 2.0
        for _ in range(24):
            writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert writer.stdout and writer.stdout.readline() == "begin\n"
            time.sleep(chance.uniform(0, longest))
            writer.send_signal(signal.SIGKILL)
            out, err = writer.communicate()
            assert not err, err
            is_killed = "end" not in out
            kills, longest = kills + is_killed, longest * (1.1 if is_killed else 0.7)
            if kills == 6:
                break
        assert kills == 6
        finish(run, time.monotonic())


def test_messages_of_others_in_the_topics(rig: Rig):
    """Readers warn of them with their places, and go on; also those that write Redis again."""
    with rig.running("messages that are no JSON, or not mlpkg's, in the topics, then Redis is lost") as run:
        producer = Producer(rig.kafka.client_settings())
        of_mlpkg: Any = [
            ("position", b"1e3"),
            ("id", b"x"),
            ("time", b""),
            ("arrived", b"1"),
            ("epoch", b"1"),
            ("low", b"0"),
        ]
        for value in (b"hello", b"\xff\xfe", b"{}", b'{"undone": "all"}', b'{"epoch": [2]}', b"null", b""):
            for topic in ("transactions", "transactions.fraud", "_control"):
                producer.produce(f"{run.settings.namespace}.{topic}", value)
        producer.produce(f"{run.settings.namespace}.transactions", b"{}", headers=of_mlpkg)
        assert producer.flush(10) == 0
        finish(run, time.monotonic())
        rig.redis.lose_data()
        rig.redis.start()
        finish(run, time.monotonic())
        said = run.log.read_text("utf-8")
        for topic in ("transactions", "transactions.fraud", "_control"):
            assert f"the topic {run.settings.namespace}.{topic}, partition " in said


class SmallKafka(Kafka):
    """A broker whose data lie on a disk of 64 MB."""

    @property
    def disk(self) -> Path:
        return self.brokers[0].folder / "data"

    def start(self) -> "SmallKafka":
        self.disk.mkdir(parents=True, exist_ok=True)
        if not self.disk.is_mount():
            mounted = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", self.disk], capture_output=True, text=True
            )
            if mounted.returncode:
                pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
        return super().start()

    def remove(self) -> None:
        self.kill()
        subprocess.run(["umount", "--lazy", self.disk], capture_output=True)  # also while its files are being closed
        super().remove()

    def fill(self) -> Path:
        """Write a file until the disk is full."""
        file = self.disk / "filler"
        with suppress(OSError), file.open("wb", buffering=0) as out:
            while True:
                out.write(bytes(4096))
        return file


def test_the_disk_of_the_broker_is_full(rig: Rig, own_server: Callable[..., Any]):
    """The broker ends; when there is room again, it is started."""
    kafka = own_server(SmallKafka)
    small = Rig(rig.folder, kafka, rig.redis, rig.postgres, rig.table)
    with small.running("the disk of the broker is full") as run:
        filler, began = kafka.fill(), time.monotonic()
        while kafka.is_running and time.monotonic() < began + 30:
            time.sleep(0.1)
        run.down(3)
        assert not kafka.is_running, "a broker without a disk does not go on"
        filler.unlink()
        kafka.start()
        run.row.away = time.monotonic() - began
        finish(run, time.monotonic())


MILLION = 1_000_000


class Click(ml.Event):
    customer_id: int
    page: int


clicks = ml.Source("clicks", Click, subject="customer_id")
clicked = ml.FeatureSet("clicked", on=clicks, customer=clicks.by("customer_id").agg(n=ml.count(over="1d")))


def append_a_million(settings: Settings) -> None:
    """Write events straight into a topic; Redis is not told."""
    with closing(open_store(settings)) as store:
        store.register("clicked", clicked)
        session: Any = store.session  # type: ignore[attr-defined]
        first, epoch = session.state.read().last + 1, session.sequencer.epoch
        body = clicks.parse({"id": "c", "time": "2024-01-01T00:00:00Z", "customer_id": 7, "page": 3}).body
        for at in range(first, first + MILLION):
            record = LogRecord(at, "clicks", f"c-{at}", at, at, None, body, epoch, at)
            is_appended = False
            while not is_appended:
                with suppress(StoreError):  # its queue is full
                    session.log.append(record, b"%d" % (at % 1000))
                    is_appended = True
        session.log.producer.flush(10)
        session.state.write(last=first + MILLION)


def test_a_reader_is_a_million_events_behind(rig: Rig, tmp_path: Path):
    """The archive is brought up to date while decisions go on."""

    def check(settings: Settings, row: Row) -> None:
        archive_equals_log(str(tmp_path / "archive"), settings, row)

    with rig.running("the archive is a million events behind", before=append_a_million, after=check) as run:
        began = time.monotonic()
        code = "import sys; from mlpkg.settings import *; from mlpkg.store import *; "
        code += "open_archive(sys.argv[2]).write(open_store(Settings.model_validate_json(sys.argv[1])))"
        command = [sys.executable, "-c", code, run.settings.model_dump_json(), tmp_path / "archive"]
        subprocess.run(command, check=True)
        run.row.note = f"the archive has a million events after {time.monotonic() - began:.0f} s"
        finish(run, began)


class RawLoad:
    """An application that writes payments straight to Kafka until it is told to stop."""

    def __init__(self, raw: RawTopics):
        self.raw, self.sent, self._done = raw, list[str](), threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> "RawLoad":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self.raw.flush()

    def _send(self) -> None:
        for number in count():
            if self._done.wait(0.02):
                return
            id, customer = f"s-{number}", number % CUSTOMERS
            body = payment(id, customer_id=customer, terminal_id=number % TERMINALS)
            self.raw.send("transactions", body, key=str(customer))
            self.sent.append(id)


def seconds_until_decided(store: Any, ids: Sequence[str], since: float) -> float:
    """Wait until there is a decision about each; return how long that took."""
    known: list[Any] = [None]
    while any(one is None or one.is_pending for one in known):
        assert time.monotonic() < since + 90
        known = store.session.questions.known("decisions.fraud", ids)
        time.sleep(0.05)
    return time.monotonic() - since


def test_processes_of_a_stream_come_and_are_killed(rig: Rig, tmp_path: Path):
    """The partitions move while events are decided; only after 10 s does the group give up one that is dead."""
    settings, row = rig.settings(), Row("`mlpkg stream`: a process comes, one is killed")
    store_place(settings).prepare(["transactions", "transactions.fraud"])
    with closing(Bank(handbook.fraud, settings).store):
        pass
    processes = [StreamProcess(settings, tmp_path) for _ in range(2)]
    try:
        with closing(settled_store(settings)) as store, RawLoad(RawTopics(settings, rig.kafka)) as load:
            while len(load.sent) < 100:
                time.sleep(0.1)
            seconds_until_decided(store, load.sent[:100], time.monotonic())
            for change in (lambda: processes.append(StreamProcess(settings, tmp_path)), lambda: processes[0].kill()):
                change()
                since = time.monotonic()
                time.sleep(2)
                row.recovered = max(row.recovered, seconds_until_decided(store, [*load.sent], since))
        with closing(settled_store(settings)) as store:
            seconds_until_decided(store, load.sent, time.monotonic())
            assert not store.dead_letters()
    finally:
        for process in processes:
            process.kill()
    row.sent = row.acknowledged = len(load.sent)
    rig.table.rows.append(row)
    check_log(settings, row, dict.fromkeys(load.sent), {})
    check_timelines(settings, row)
    store_place(settings).remove()  # type: ignore[attr-defined]
    assert (row.lost, row.doubled, row.mismatches) == (0, 0, 0), row
    assert row.recovered < 10 + SERVED_WITHIN, row
