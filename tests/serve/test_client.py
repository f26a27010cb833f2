"""The client: it returns what the service answered, and it may safely send a request again."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from serving import Packaged, Server, free_port, payment, serving

import mlpkg as ml
from mlpkg.client import AsyncClient, Client, Refused, Unavailable
from mlpkg.examples.fraud.policy import fraud
from mlpkg.settings import Settings
from mlpkg.times import iso, now

STARTED = iso(now())


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
        with pytest.raises(Refused, match=r"amount") as refused:
            client.decide(payment("c-5", amount=-3.2))
        assert (refused.value.status, refused.value.value) == (422, "-3.2") and "amount" in str(refused.value.field)
        good, bad = client.decide_many([payment("c-6"), payment("c-7", terminal_id="x")])
        assert isinstance(good, ml.Decision) and isinstance(bad, Refused) and bad.status == 422


class Terminal(Enum):
    OURS = 23


@pytest.mark.parametrize(
    ("field", "value", "sent"),
    [
        ("amount", Decimal("57.16"), 57.16),
        ("amount", Decimal(57), 57.0),
        ("amount", np.float64(57.16), 57.16),
        ("amount", np.float32(0.5), 0.5),
        ("amount", np.int64(57), 57.0),
        ("amount", np.array(57.16), 57.16),
        ("customer_id", np.int64(17), 17),
        ("customer_id", np.uint8(17), 17),
        ("customer_id", Decimal(17), 17),
        ("terminal_id", Terminal.OURS, 23),
        ("id", UUID(int=17), str(UUID(int=17))),
        ("id", np.str_("c-numpy"), "c-numpy"),
        ("time", pd.Timestamp("now", tz="Europe/Berlin"), None),
    ],
    ids=lambda part: type(part).__name__,
)
@pytest.mark.parametrize("kind", ["one", "many", "in process"])
def test_values_of_numpy_and_pandas_are_sent_as_what_they_are(
    server: Server, tmp_path: Path, field: str, value: Any, sent: Any, kind: str
):
    event = payment(f"c-{field}-{value!r}-{kind}"[:99], time=STARTED) | {field: value}
    if kind == "in process":
        with closing(ml.open_store(Settings(state=tmp_path))) as store:
            row = fraud.on.parse(event)
            assert sent is None or {**row.values, "id": row.id}[field] == sent
            assert store.accept(fraud.on, event).new
        return
    with Client(server.address) as client:
        decision = client.decide(event) if kind == "one" else client.decide_many([event])[0]
        assert isinstance(decision, ml.Decision), decision
        entry: Any = client.event("transactions", decision.event)
        assert sent is None or entry["event"][field] == sent


@pytest.mark.parametrize(
    "value", [None, np.nan, float("nan"), pd.NA, pd.NaT, np.datetime64("NaT"), Decimal("NaN")], ids=repr
)
def test_what_is_missing_is_sent_as_null(server: Server, value: Any):
    """An optional field becomes null; the service refuses a required one."""
    with Client(server.address) as client:
        for field in ("amount", "customer_id", "time"):
            with pytest.raises(Refused, match=f"{field}: is null, but required") as refused:
                client.decide(payment("c-null") | {field: value})
            assert refused.value.status == 422


@pytest.mark.parametrize(
    "value",
    [
        *(datetime(2018, 7, 25), np.datetime64("2018-07-25"), pd.Timestamp("2018-07-25"), object(), 1j, b"\xff", {1}),
        *(np.timedelta64(1, "s"), pd.Timedelta("1s"), pd.Period("2018"), "\ud800", Path()),
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_cannot_be_sent_is_refused_by_its_field_before_it_is_sent(value: Any):
    """Nobody listens there."""
    event = payment("c-never") | {"amount": value}
    client, other = Client("http://127.0.0.1:9", attempts=1), AsyncClient("http://127.0.0.1:9", attempts=1)
    for ask in (client.decide, lambda e: client.decide_many([payment("c-first"), e]), lambda e: client.send("x", e)):
        with pytest.raises(TypeError, match="amount"):
            ask(event)
    with pytest.raises(TypeError, match="fraud"):
        client.report("x.fraud", "c-1", value)
    with pytest.raises(TypeError, match="amount"):
        asyncio.run(other.decide(event))


@pytest.mark.parametrize("event", [None, "tx-1", [("id", "tx-1")], 7], ids=lambda event: type(event).__name__)
def test_what_is_no_event_is_refused_before_it_is_sent(event: Any):
    """Nobody listens there."""
    client = Client("http://127.0.0.1:9", attempts=1)
    for ask in (client.decide, lambda e: client.send("x", e), lambda e: client.decide_many([payment("c-first"), e])):
        with pytest.raises(TypeError, match="an event is a dict of its fields, not of type"):
            ask(event)


def test_a_table_is_refused_in_one_line():
    table = pd.DataFrame([payment("c-1"), payment("c-2")])
    client: Any = Client("http://127.0.0.1:9", attempts=1)
    with pytest.raises(TypeError, match="to_dict"):
        client.decide_many(table)
    with pytest.raises(TypeError, match=r"^amount: .* is of type Series, .*"):
        client.decide(payment("c-3") | {"amount": table["amount"]})


def test_a_generator_of_events_is_sent_in_slices(server: Server):
    with Client(server.address) as client:
        receipts = client.send_many("transactions", (payment(f"c-slice-{k}", customer_id=k % 40) for k in range(2_500)))
        assert [r.id for r in receipts] == [f"c-slice-{k}" for k in range(2_500)]  # type: ignore[union-attr]


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


def test_a_service_that_is_killed_and_comes_back_is_asked_again(server: Server):
    """No call fails, and nothing is decided twice."""
    answers = []
    events = [payment(f"k-{k}") for k in range(300)]
    with Client(server.address, attempts=40) as client:
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
    with closing(ml.open_store(Settings(state=server.state))) as store:
        recorded = [e.id for e in store.read(streams=["decisions.fraud"]) if e.id.startswith("k-")]
    assert sorted(recorded) == sorted(event["id"] for event in events)


@pytest.mark.parametrize(
    ("url", "token", "words"),
    [
        ("127.0.0.1:3000", None, "no address of a service"),
        ("", None, "no address of a service"),
        ("ftp://127.0.0.1", None, "no address of a service"),
        ("http://", None, "no address of a service"),
        ("http://me:hidden@127.0.0.1", None, "a name or a password"),
        ("http://127.0.0.1", "hidden\nline", "characters that no token has"),
        ("http://127.0.0.1", "hidden\ufffd", "characters that no token has"),
    ],
)
def test_an_address_or_token_that_cannot_be_right_is_an_error_that_shows_no_secret(
    url: str, token: str | None, words: str
):
    with pytest.raises(ml.MlpkgError, match=words) as error:
        Client(url, token=token)
    assert "hidden" not in str(error.value)
