"""The serving process is killed under load, again and again: what it had acknowledged is there, once."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from typing import Any

import pytest
from serving import CUSTOMERS, LOST, TERMINALS, Client, Server, made_once, mlpkg, payment

import mlpkg as ml
from mlpkg.platform import Entry
from mlpkg.settings import Settings
from mlpkg.times import instant

KILLS = 20
AT_LEAST = 30  # answers before each kill
ASKED = 25  # decisions, and events, that are asked for over HTTP after each; the log is looked through for all of them


class Load:
    """Clients that send as fast as they are answered, until the server is gone, and remember what it acknowledged."""

    def __init__(self, port: int, number: int):
        self.port, self.number = port, number
        self.sent: dict[str, dict[str, Any]] = {}  # payments by id
        self.decisions: dict[str, bytes] = {}  # the answers
        self.events: dict[str, int] = {}  # positions
        self.frauds: dict[str, int] = {}
        self.refused: list[object] = []
        work = [lambda: self._decide("a"), lambda: self._decide("b"), self._batch, self._report]
        self.threads = [threading.Thread(target=self._until_gone, args=(one,)) for one in work]

    @property
    def answers(self) -> int:
        return len(self.decisions) + len(self.events) + len(self.frauds)

    def payment(self, id: str) -> dict[str, Any]:
        chance = random.Random(id)
        fields = {"customer_id": chance.randrange(CUSTOMERS), "terminal_id": chance.randrange(TERMINALS)}
        self.sent[id] = payment(id, amount=chance.randrange(1, 20_000) / 100, **fields)
        return self.sent[id]

    def _until_gone(self, work: Any) -> None:
        try:
            work()
        except LOST:
            return  # killed
        except Exception as error:
            self.refused.append(error)

    def _take(self, known: dict[str, Any], id: str, status: int, value: Any, body: Any) -> None:
        if status == 200:
            known[id] = value
        else:
            self.refused.append(body)

    def _decide(self, own: str) -> None:
        with closing(Client(self.port)) as client:
            for k in count():
                id = f"{self.number}-{own}-{k}"
                said = client.ask("POST", "/v1/decide", self.payment(id))
                self._take(self.decisions, id, said.status, said.body, said.body)

    def _batch(self) -> None:
        """Events that are not decided, ten at once."""
        with closing(Client(self.port)) as client:
            for k in count():
                ids = [f"{self.number}-e-{k}-{i}" for i in range(10)]
                lines = b"\n".join(json.dumps(self.payment(id)).encode() for id in ids)
                said = client.ask("POST", "/v1/events/transactions", lines, lines=True)
                for id, receipt in zip(ids, map(json.loads, said.body.splitlines()), strict=True):
                    self._take(self.events, id, receipt.get("status", 200), receipt.get("position"), receipt)

    def _report(self) -> None:
        """Frauds, of payments that were decided and of ones that nobody knows yet."""
        with closing(Client(self.port)) as client:
            for k in count():
                id = f"{self.number}-a-{k}"
                said = client.ask("POST", "/v1/outcomes/fraud", {"id": id, "fraud": True})
                self._take(self.frauds, id, said.status, said.json.get("position"), said.body)
                time.sleep(0.005)

    def run_and_kill(self, server: Server, chance: random.Random) -> None:
        for thread in self.threads:
            thread.start()
        try:
            give_up = time.monotonic() + 60
            while (self.answers < AT_LEAST or not self.decisions or not self.events) and time.monotonic() < give_up:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.15))
        finally:
            server.kill()
            for thread in self.threads:
                thread.join()
        assert self.refused == []
        assert self.answers >= AT_LEAST


def check_over_http(server: Server, load: Load) -> None:
    """What was acknowledged last before the kill is there; what was not acknowledged can be sent again, and is decided once."""
    with closing(Client(server.port)) as client:
        for id in list(load.decisions)[-ASKED:]:
            assert client.ask("GET", f"/v1/decisions/{id}").body == load.decisions[id]
        for id in [*list(load.decisions)[-ASKED:], *list(load.events)[-ASKED:]]:
            there = client.ask("GET", f"/v1/events/transactions/{id}").json
            assert at_instant(there["event"]) == at_instant(load.sent[id])
            assert there["position"] == load.events.get(id, there["position"])
        for id in sorted(load.sent.keys() - load.decisions.keys()):
            if to_be_decided(id):
                said = client.ask("POST", "/v1/decide", load.sent[id])
                assert said.status == 200
                assert client.ask("POST", "/v1/decide", load.sent[id]).body == said.body
                load.decisions[id] = said.body


def at_instant(event: dict[str, Any]) -> dict[str, Any]:
    """The event with its time as a number, however it was written."""
    return event | {"time": instant(event["time"])}


def to_be_decided(id: str) -> bool:
    return "-e-" not in id


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made, folder = made_once(tmp_path_factory), tmp_path_factory.mktemp("killed")
    server = Server(made.bento, made.state(folder / "state"), folder / "log")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def loads(server: Server) -> list[Load]:
    """The server is started, loaded and killed twenty times; what was acknowledged before each kill is asked for after it."""
    loads: list[Load] = []
    for number in range(KILLS):
        assert server.start()["status"] == "ready", server.said
        if loads:
            check_over_http(server, loads[-1])
        loads.append(Load(server.port, number))
        loads[-1].run_and_kill(server, random.Random(number))
    server.start()
    check_over_http(server, loads[-1])
    server.stop()
    return loads


@pytest.fixture(scope="module")
def log(server: Server, loads: list[Load]) -> dict[str, list[Entry]]:
    """The log afterwards, by streams."""
    found: dict[str, list[Entry]] = {}
    with closing(ml.open(Settings(state=server.state))) as platform:
        for entry in platform.read():
            found.setdefault(entry.source, []).append(entry)
    return found


def test_what_a_killed_service_acknowledged_is_there_afterwards(loads: list[Load], log: dict[str, list[Entry]]):
    """Every decision as it was answered, every event and report at the position that its receipt named."""
    recorded = {entry.id: entry for entry in log["decisions.fraud"]}
    events = {entry.id: entry for entry in log["transactions"]}
    reports = {entry.id: entry for entry in log["transactions.fraud"]}
    for load in loads:
        assert load.decisions and load.events and load.frauds
        for id, decision in load.decisions.items():
            assert json.loads(recorded[id].body) == json.loads(decision)
            assert recorded[id].about == events[id].position
        for id in [*load.decisions, *load.events]:
            sent = load.sent[id]
            assert events[id].time == instant(sent["time"])
            assert json.loads(events[id].body) == {k: v for k, v in sent.items() if k not in ("id", "time")}
        assert all(events[id].position == position for id, position in load.events.items())
        assert all(reports[id].position == position for id, position in load.frauds.items())


def test_nothing_is_in_the_log_twice(loads: list[Load], log: dict[str, list[Entry]]):
    for stream, entries in log.items():
        if not stream.startswith("promotions."):
            twice = [id for id, n in Counter(entry.id for entry in entries).items() if n > 1]
            assert twice == [], stream
    assert len(log["promotions.fraud"]) == 1, "a restart takes nothing over again"
    sent = {id for load in loads for id in load.sent}
    live = {entry.id for entry in log["transactions"]} & sent
    assert {entry.id for entry in log["decisions.fraud"]} == set(filter(to_be_decided, sent))
    assert {id for load in loads for id in [*load.decisions, *load.events]} <= live


def test_no_decision_is_half_written(loads: list[Load], log: dict[str, list[Entry]]):
    """An event that was sent to be decided is in the log with its decision or not at all."""
    decided = {entry.about for entry in log["decisions.fraud"]}
    sent = {id for load in loads for id in load.sent if to_be_decided(id)}
    assert decided == {entry.position for entry in log["transactions"] if entry.id in sent}


def test_what_a_killed_service_decided_verifies(server: Server, log: dict[str, list[Entry]]):
    found = mlpkg("verify", "fraud", state=server.state)
    assert (found["decisions"], found["mismatches"]) == (len(log["decisions.fraud"]), 0), found


def test_a_killed_service_said_nothing_unexpected(server: Server, loads: list[Load]):
    assert "Traceback" not in server.said, server.said
