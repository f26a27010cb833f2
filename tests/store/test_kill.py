"""Serving processes are killed under load, again and again: what they had acknowledged is there, once, and nothing is half there.

Three ways: one worker, and two on one store, each a fork that is there again at once; and BentoML with its supervisor. Fifteen kills, or
a thousand (`make test-kill`).
"""

import json
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from bank import put_live
from serving import CUSTOMERS, LOST, TERMINALS, Client, Packaged, Server, free_port, mlpkg, payment
from workers import Workers

import mlpkg as ml
from mlpkg.examples.fraud.policy import fraud
from mlpkg.settings import Settings
from mlpkg.store import Entry
from mlpkg.store.sqlite.store import SqliteStore
from mlpkg.times import instant

LONG = bool(os.environ.get("MLPKG_LONG"))
KILLS = {"one worker": 6, "two workers": 8, "bento": 1}
if LONG:
    KILLS = {"one worker": 400, "two workers": 560, "bento": 40}
AT_LEAST = 5  # answers before each kill
ASKED = (
    25  # decisions, and events, that are asked for over HTTP after each kill; the log is looked through for all of them
)


@dataclass
class NotNull:
    """What clients sent, and what was acknowledged to them."""

    sent: dict[str, dict[str, Any]] = field(default_factory=dict)  # payments by id
    decisions: dict[str, bytes] = field(default_factory=dict)  # the answers
    events: dict[str, int] = field(default_factory=dict)  # positions
    frauds: dict[str, int] = field(default_factory=dict)
    refused: list[object] = field(default_factory=list)

    @property
    def answers(self) -> int:
        return len(self.decisions) + len(self.events) + len(self.frauds)

    def payment(self, id: str) -> dict[str, Any]:
        if id not in self.sent:
            chance = random.Random(id)
            fields = {"customer_id": chance.randrange(CUSTOMERS), "terminal_id": chance.randrange(TERMINALS)}
            self.sent[id] = payment(id, amount=chance.randrange(1, 20_000) / 100, **fields)
        return self.sent[id]

    def take(self, known: dict[str, Any], id: str, status: int, value: Any, body: Any) -> None:
        if status == 200:
            known[id] = value
        else:
            self.refused.append(body)

    def decide(self, client: Client, id: str) -> None:
        answer = client.ask("POST", "/v1/decide", self.payment(id))
        self.take(self.decisions, id, answer.status, answer.body, answer.body)

    def batch(self, client: Client, id: str) -> None:
        """Events that are not decided, ten at once."""
        ids = [f"{id}-e-{i}" for i in range(10)]
        lines = b"\n".join(json.dumps(self.payment(id)).encode() for id in ids)
        answer = client.ask("POST", "/v1/events/transactions", lines, lines=True)
        for id, receipt in zip(ids, map(json.loads, answer.body.splitlines()), strict=True):
            self.take(self.events, id, receipt.get("status", 200), receipt.get("position"), receipt)

    def report(self, client: Client, id: str) -> None:
        """A fraud, of a payment that is decided at about this time, or of one that nobody knows yet."""
        id = id.replace("r-", "a-", 1)
        answer = client.ask("POST", "/v1/outcomes/fraud", {"id": id, "fraud": True})
        self.take(self.frauds, id, answer.status, answer.json.get("position"), answer.body)
        time.sleep(0.005)

    def check_over_http(self, port: int) -> None:
        """What was acknowledged last is there; what was not acknowledged can be sent again, and is decided once."""
        with closing(Client(port)) as client:
            for id in list(self.decisions)[-ASKED:]:
                assert client.ask("GET", f"/v1/decisions/{id}").body == self.decisions[id]
            for id in [*list(self.decisions)[-ASKED:], *list(self.events)[-ASKED:]]:
                stored = client.ask("GET", f"/v1/events/transactions/{id}").json
                assert at_instant(stored["event"]) == at_instant(self.sent[id])
                assert stored["position"] == self.events.get(id, stored["position"])
            for id in sorted(self.sent.keys() - self.decisions.keys()):
                if to_be_decided(id):
                    answer = client.ask("POST", "/v1/decide", self.sent[id])
                    assert answer.status == 200
                    assert client.ask("POST", "/v1/decide", self.sent[id]).body == answer.body
                    self.decisions[id] = answer.body


def at_instant(event: dict[str, Any]) -> dict[str, Any]:
    """The event with its time as a number, however it was written."""
    return event | {"time": instant(event["time"])}


def to_be_decided(id: str) -> bool:
    return "-e-" not in id


class Load:
    """Clients that send as fast as they are answered. One that is cut off sends the same again, to any worker, or leaves it."""

    def __init__(self, known: NotNull, ports: list[int], name: str):
        self.known, self.ports, self._done = known, ports, threading.Event()
        work = {"a": known.decide, "b": known.decide, "c": known.batch, "r": known.report}
        self._threads = [
            threading.Thread(target=self._send, args=(f"{own}-{name}", call)) for own, call in work.items()
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _send(self, own: str, call: Callable[[Client, str], None]) -> None:
        chance, client = random.Random(own), None
        for k in count():
            cut_off = True
            while cut_off:
                client = client or self._reach(chance)
                if client is None or self._done.is_set():
                    return client and client.close()
                try:
                    call(client, f"{own}-{k}")
                    cut_off = False
                except LOST:
                    client = client.close()
                    cut_off = chance.random() < 0.5
                except Exception as error:
                    self.known.refused.append(error)
                    return None

    def _reach(self, chance: random.Random) -> Client | None:
        """A connection to one of the workers, as soon as there is one."""
        while not self._done.is_set():
            client = Client(chance.choice(self.ports))
            try:
                client.connection.connect()
                return client
            except LOST:
                time.sleep(0.01)
        return None

    def until(self, answers: int, chance: random.Random) -> None:
        """Wait for so many more answers, and then for a moment."""
        enough, give_up = self.known.answers + answers, time.monotonic() + 60
        while self.known.answers < enough and time.monotonic() < give_up:
            time.sleep(0.001)
        assert self.known.answers >= enough, self.known.refused
        time.sleep(chance.uniform(0, 0.1))


@dataclass
class Killed:
    """A store whose workers were killed, what they had acknowledged, and what they said on standard error."""

    state: Path
    known: NotNull
    output: str
    log: dict[str, list[Entry]] = field(default_factory=dict)  # by streams


def kill_workers(state: Path, log: Path, kills: int, number: int) -> NotNull:
    """The load goes on while one worker after the other is killed, at times both at once."""
    with closing(ml.open_store(Settings(state=state))) as store:
        put_live(fraud, store)
    known, chance = NotNull(), random.Random(number)
    durability = "disk" if number == 1 else "process"
    settings = Settings(state=state, durability=durability, trust_loopback=True)
    workers = Workers(settings, "mlpkg.examples.fraud.policy:fraud", log, [free_port() for _ in range(number)])
    try:
        workers.wait()
        with Load(known, workers.ports, "0") as load:
            while kills > 0:
                load.until(AT_LEAST, chance)
                chosen = chance.sample(workers.ports, min(kills, chance.randint(1, number)))
                workers.kill(*chosen)
                kills -= len(chosen)
            load.until(AT_LEAST, chance)
        workers.kill(*workers.ports)
        workers.wait()
        known.check_over_http(workers.ports[0])
    finally:
        workers.stop()
    return known


def kill_bento(server: Server, kills: int) -> NotNull:
    """BentoML is started, loaded and killed; what was acknowledged before each kill is asked for after it."""
    known = NotNull()
    try:
        for number in range(kills):
            assert server.start()["status"] == "ready", server.output
            known.check_over_http(server.port)
            chance = random.Random(number)
            with Load(known, [server.port], str(number)) as load:
                load.until(10 * AT_LEAST, chance)
                server.kill()
        server.start()
        known.check_over_http(server.port)
    finally:
        server.stop()
    return known


@pytest.fixture(scope="module", params=list(KILLS))
def killed(
    request: pytest.FixtureRequest, made: Packaged, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Killed]:
    folder = tmp_path_factory.mktemp("killed")
    state, log, kills = made.state(folder / "state"), folder / "log", KILLS[request.param]
    if request.param == "bento":
        known = kill_bento(Server(made.bento, state, log), kills)
    else:
        known = kill_workers(state, log, kills, 1 if request.param == "one worker" else 2)
    run = Killed(state, known, log.read_text("utf-8", "replace"))
    with closing(ml.open_store(Settings(state=state))) as store:
        for entry in store.read():
            run.log.setdefault(entry.source, []).append(entry)
    yield run
    shutil.rmtree(folder)


def test_what_killed_workers_acknowledged_is_there_afterwards(killed: Killed):
    """The log has every decision as it was answered, and every event and report at the position of its receipt."""
    recorded = {entry.id: entry for entry in killed.log["decisions.fraud"]}
    events = {entry.id: entry for entry in killed.log["transactions"]}
    reports = {entry.id: entry for entry in killed.log["transactions.fraud"]}
    known = killed.known
    assert known.refused == []
    assert known.decisions and known.events and known.frauds
    for id, decision in known.decisions.items():
        assert json.loads(recorded[id].body) == json.loads(decision)
        assert recorded[id].about == events[id].position
    for id in [*known.decisions, *known.events]:
        sent = known.sent[id]
        assert events[id].time == instant(sent["time"])
        assert json.loads(events[id].body) == {k: v for k, v in sent.items() if k not in ("id", "time")}
    assert all(events[id].position == position for id, position in known.events.items())
    assert all(reports[id].position == position for id, position in known.frauds.items())


def test_nothing_is_in_the_log_twice(killed: Killed):
    for stream, entries in killed.log.items():
        if not stream.startswith("promotions."):
            twice = [id for id, n in Counter(entry.id for entry in entries).items() if n > 1]
            assert twice == [], stream
    assert len(killed.log["promotions.fraud"]) == 1, "a restart takes nothing over again"
    sent = set(killed.known.sent)
    assert {entry.id for entry in killed.log["decisions.fraud"]} == set(filter(to_be_decided, sent))


def test_no_decision_is_half_written(killed: Killed):
    """An event that was sent to be decided is in the log with its decision or not at all."""
    decided = {entry.about for entry in killed.log["decisions.fraud"]}
    sent = set(filter(to_be_decided, killed.known.sent))
    assert decided == {entry.position for entry in killed.log["transactions"] if entry.id in sent}


def test_timelines_are_those_that_a_rebuild_from_the_log_gives(killed: Killed, tmp_path: Path):
    again = Settings(state=tmp_path / "rebuilt")
    again.state.mkdir()
    for file in killed.state.glob("mlpkg.db*"):  # what was written last may lie in the -wal still
        shutil.copy(file, again.state)
    with closing(SqliteStore(Settings(state=killed.state))) as live, closing(SqliteStore(again)) as rebuilt:
        for table in ("timeline", "chunk", "node", "stream"):
            rebuilt.db.execute(f"delete from {table}")
        rebuilt.db.execute("update control set generation=generation+1")
        rebuilt.register("fraud", fraud.features)
        held = "select s.name, s.key, t.key from timeline t join stream s on s.id=t.stream where s.state='live' order by 1, 2, 3"
        entities = live.db.execute(held).fetchall()
        assert len(entities) > 200 and entities == rebuilt.db.execute(held).fetchall()
        for stream, key, value in entities:
            kept, other = live.timeline(stream, key, value), rebuilt.timeline(stream, key, value)
            assert kept.time.tolist() == other.time.tolist() and kept.position.tolist() == other.position.tolist()
            assert {n: c.tolist() for n, c in kept.columns.items()} == {n: c.tolist() for n, c in other.columns.items()}


def test_what_killed_workers_decided_verifies(killed: Killed):
    result = mlpkg("verify", "fraud", state=killed.state)
    assert (result["decisions"], result["mismatches"]) == (len(killed.log["decisions.fraud"]), 0), result


def test_killed_workers_said_nothing_unexpected(killed: Killed):
    assert "Traceback" not in killed.output and "Error" not in killed.output, killed.output
