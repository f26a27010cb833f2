"""The client: what it is answered, and that asking again is harmless."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from serving import Packaged, Server, free_port, made_once, payment, serving

import mlpkg as ml
from mlpkg.client import AsyncClient, Client, Refused, Unavailable
from mlpkg.settings import Settings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Packaged:
    return made_once(tmp_path_factory)


@pytest.fixture(scope="module")
def server(made: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("client")
    with serving(made.bento, made.state(folder / "state"), folder / "log") as server:
        yield server


def test_every_verb_is_answered_with_its_type(server: Server, made: Packaged):
    with Client(server.address) as client:
        decision = client.decide(payment("c-1"))
        assert isinstance(decision, ml.Decision) and decision.model["version"] == made.version
        assert client.decide(payment("c-1", time=decision.time)) == client.decision("c-1") == decision
        assert client.send("transactions", payment("c-2")).new
        assert [r.new for r in client.send_many("transactions", [payment("c-3"), payment("c-4")])] == [True, True]  # type: ignore[union-attr]
        assert client.report("fraud", "c-1", True).new
        entry: Any = client.event("transactions", "c-2")
        assert entry["event"]["id"] == "c-2"
        assert client.decision("nobody's") is None
        assert (client.ready() or {})["status"] == "ready"


def test_what_is_refused_says_field_value_and_reason(server: Server):
    with Client(server.address) as client:
        with pytest.raises(Refused, match=r"amount") as told:
            client.decide(payment("c-5", amount=-3.2))
        assert (told.value.status, told.value.value) == (422, "-3.2") and "amount" in str(told.value.field)
        good, bad = client.decide_many([payment("c-6"), payment("c-7", terminal_id="x")])
        assert isinstance(good, ml.Decision) and isinstance(bad, Refused) and bad.status == 422


def test_many_await_their_answers_at_once(server: Server):
    async def all_of_them() -> list[ml.Decision]:
        async with AsyncClient(server.address) as client:
            return await asyncio.gather(*(client.decide(payment(f"a-{k}")) for k in range(40)))

    assert {d.event for d in asyncio.run(all_of_them())} == {f"a-{k}" for k in range(40)}


def test_nobody_there_is_said_after_all_attempts():
    with (
        Client(f"http://127.0.0.1:{free_port()}", attempts=2) as client,
        pytest.raises(Unavailable, match="2 attempts"),
    ):
        client.ready()


def test_a_service_that_is_killed_and_comes_back_is_asked_again(made: Packaged, tmp_path: Path):
    """No call fails, and nothing is decided twice."""
    state, answers = made.state(tmp_path / "state"), []
    events = [payment(f"k-{k}") for k in range(300)]
    with serving(made.bento, state, tmp_path / "log") as server, Client(server.address, attempts=40) as client:
        begun = threading.Event()

        def decide_all() -> None:
            for event in events:
                answers.append(client.decide(event))
                begun.set()

        load = threading.Thread(target=decide_all)
        load.start()
        assert begun.wait(30)
        server.kill()
        server.start()
        load.join()
    assert [d.event for d in answers] == [event["id"] for event in events]
    with closing(ml.open(Settings(state=state))) as platform:
        recorded = [e.id for e in platform.read(streams=["decisions.fraud"]) if e.id.startswith("k-")]
    assert sorted(recorded) == sorted(event["id"] for event in events)
