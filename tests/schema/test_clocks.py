"""The clock of the store, of a sender or of the writer of a file is wrong: no event is lost, and no number is wrong."""

import asyncio
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import handbook
import httpx
import numpy as np
import offers
import pandas as pd
import pytest
from bank import Bank
from paths import SUPPORT
from ranking_shop import Shop
from serving import Packaged, Server, payment, serving
from short_chunks import short_chunks

import mlpkg as ml
from mlpkg.client import AsyncClient, Client, Unavailable
from mlpkg.decisions import replay, verify
from mlpkg.examples.fraud.policy import fraud
from mlpkg.lab import training_set
from mlpkg.lab.ingest import ingest_file
from mlpkg.schema import ClockDiffers, Rejected, ValidatedEvent
from mlpkg.serve.app import Application
from mlpkg.settings import Settings
from mlpkg.store import Batch
from mlpkg.times import DAY, HOUR, MINUTE, SECOND, instant, iso, now

LONG = bool(os.environ.get("MLPKG_LONG"))
EVENTS, LINES = "/v1/events/transactions", {"content-type": "application/x-ndjson"}
APRIL = instant("2018-04-01")
FAR = "2062-05-01T10:00:00Z"


def checked(case: ml.UseCase, store: Any) -> int:
    """How many decisions there are, all of which are what the log says."""
    result = verify(case, store)
    assert result.mismatches == 0, result.differences
    return result.decisions


def held(store: Any) -> dict[tuple[str, str], list[Any]]:
    """All that the timelines of a store hold, by stream and key."""
    query = "select t.name, t.key, e.key from timeline e join stream t on t.id = e.stream where t.state='live'"
    timelines = {}
    for stream, key, value in store.db.execute(query).fetchall():
        rows = store.timeline(stream, key, value)
        columns = [rows.time, rows.position, *(rows.columns[name] for name in sorted(rows.columns))]
        timelines[stream, key, value] = [column.tolist() for column in columns]
    return timelines


def rebuilt(case: ml.UseCase, store: Any) -> dict[tuple[str, str], list[Any]]:
    """What they hold when they are built from the log anew."""
    store.db.execute("update stream set state='gone'; update control set generation=generation+1")
    store.register(case.name, case.features)
    return held(store)


# -- timelines and decisions ----------------------------------------------------------------------------------------


class Jumping:
    """A bank whose clock jumps back and forth, and whose cash desks have clocks of their own."""

    def __init__(self, seed: int, state: Path):
        self.rng = random.Random(seed)
        self.bank = Bank(self.rng.choice([handbook.fraud, handbook.early]), state)
        self.true, self.off, self.ids, self.refused = APRIL + 300 * DAY, 0, [], 0

    def step(self, k: int) -> None:
        rng, store = self.rng, self.bank.store
        self.true += rng.randrange(2 * HOUR)
        if rng.random() < 0.03:
            self.off = rng.choice([0, 0, 1, -1]) * rng.choice([4 * MINUTE, HOUR, 10 * DAY, 200 * DAY, 290 * DAY])
        clock = self.true + self.off
        theirs = 0 if rng.random() < 0.2 else self.off + rng.choice([0, 0, 0, MINUTE, -HOUR, -2 * DAY])
        body = self.bank.payment(f"t{k}", 0, terminal_id=rng.randrange(3), customer_id=rng.randrange(2))
        body["time"] = iso(self.true + theirs)
        what = rng.random()
        try:
            if what < 0.5:
                self.bank.decider.decide(body, clock=clock)
            elif what < 0.7:
                store.accept(handbook.transactions, body, clock=clock)
            elif what < 0.8:  # a file of that machine, read by one whose clock is right
                self.load([{**body, "id": f"t{k}-{i}"} for i in range(rng.randrange(1, 40))], clock)
            elif self.ids:
                report = {"id": rng.choice(self.ids), "fraud": rng.random() < 0.5, "corrects": rng.random() < 0.5}
                store.report(handbook.frauds, report, clock=clock)
                return
            self.ids.append(f"t{k}")
        except ClockDiffers as why:
            assert abs(why.time - why.clock) > 5 * MINUTE
            self.refused += 1
        except Rejected as why:
            assert why.status == 409, why

    def load(self, bodies: list[dict[str, Any]], arrived: int) -> None:
        rows = [handbook.transactions.parse(body) for body in bodies]
        n = len(rows)
        done = self.bank.store.load(
            Batch(
                [handbook.transactions], np.zeros(n, np.int64), [r.id for r in rows], np.array([r.time for r in rows]),
                np.full(n, arrived), [r.body for r in rows], {"transactions": np.array([r.codes for r in rows])}, np.arange(n),
            )
        )  # fmt: skip
        assert not done.refused or len(done.refused) == n

    def check(self) -> None:
        case, store = self.bank.case, self.bank.store
        assert checked(case, store) > 30
        served = {e.id: json.loads(e.body)["features"] for e in store.read(streams=[f"decisions.{case.name}"])}
        rows: Any = training_set(case.features, "2016-01-01", "2026-01-01", use_case=case, store=store)
        for row in rows[rows["id"].isin(list(served))].to_dict("records"):
            for name, value in served[row["id"]].items():
                assert row[name] == value or (value is None and row[name] != row[name]), (row["id"], name)
        timelines = held(store)
        assert timelines == rebuilt(case, store)


@pytest.mark.parametrize("seed", range(200 if LONG else 2))
def test_under_any_clock_timelines_are_what_the_log_says(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And each decision is that of the training set and of `verify`."""
    short_chunks(random.Random(seed), monkeypatch)
    world = Jumping(seed, tmp_path)
    with closing(world.bank.store):
        for k in range(260):
            world.step(k)
        world.check()
    assert world.refused or seed > 2  # a tenth of the worlds refuse nothing, none of the first three


@pytest.mark.parametrize("ahead", [40 * DAY, 200 * DAY, 3000 * DAY])
def test_a_clock_that_ran_ahead_for_a_while_loses_no_event(bank: Bank, ahead: int):
    start = APRIL + 20 * DAY

    def pays(id: str, moment: int) -> Any:
        return bank.decider.decide({**bank.payment(id, 0), "time": iso(moment)}, clock=moment)

    for k in range(700):
        pays(f"real-{k}", start + k * HOUR // 2)
    for k in range(300):
        pays(f"ahead-{k}", start + ahead + k * HOUR)
    back = start + 350 * HOUR
    assert [pays(f"back-{k}", back + k * MINUTE).features["customer_n_tx_30d"] for k in range(3)] == [701, 702, 703]
    assert held(bank.store) == rebuilt(handbook.fraud, bank.store)
    assert checked(handbook.fraud, bank.store) == 1003


def test_a_store_whose_clock_jumped_is_replayed_as_it_was_decided(bank: Bank, tmp_path: Path):
    ahead = now() + 200 * DAY
    for k, clock in enumerate([APRIL, ahead, APRIL + HOUR, ahead + HOUR]):
        body = {**bank.payment(f"p{k}", 0), "time": iso(clock)}
        bank.decider.decide(body, clock=clock)
    done = replay(handbook.fraud, bank.store, 0, ahead + DAY, tmp_path / "again")
    assert (done.decisions, done.equal, done.refused) == (4, 4, 0)
    with closing(ml.open_store(Settings(state=tmp_path / "again"))) as again:
        assert checked(handbook.fraud, again) == 4


# -- ahead of the machine's clock, at every door --------------------------------------------------------------------


def test_a_single_arrival_and_a_column_of_them_are_judged_alike():
    rng, source, clock = random.Random(1), handbook.transactions, 10**15
    near = [
        0,
        1,
        -1,
        source.max_clock_skew_us,
        source.max_clock_skew_us + 1,
        source.allowed_lateness_us,
        source.allowed_lateness_us + 1,
        10 * DAY,
    ]

    def any_of() -> int:
        return rng.choice(near) * rng.choice([1, -1])

    times, arrivals = [], []
    for _ in range(2000):
        arrivals.append(clock + any_of())
        times.append(arrivals[-1] + any_of())
    column = source.arrival_fine(np.array(times), np.array(arrivals), clock).tolist()
    assert 100 < sum(column) < 1900
    for time_, arrived, fine in zip(times, arrivals, column, strict=True):
        try:
            source.check_arrival(ValidatedEvent("a", time_, "{}", ()), arrived, clock)
            assert fine
        except Rejected as why:
            assert not fine
            assert isinstance(why, ClockDiffers) == (arrived == clock)
            assert (
                arrived == clock
                or iso(clock)[:16] in str(why)
                or "before the event" in str(why)
                or "after the" in str(why)
            )


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("declared", [None, FAR, "2018-04-20T10:00:00Z"])
def test_rows_of_the_future_in_a_file_are_refused_one_by_one(
    bank: Bank, tmp_path: Path, kind: str, declared: str | None
):
    good = [bank.payment(f"good-{k}", k) for k in range(5)]
    future = [bank.payment(f"far-{k}", 0) | {"time": iso(instant(FAR) + k * SECOND)} for k in range(900)]
    rows = [row | ({"arrived": row["time"] if row in good else declared} if declared else {}) for row in good + future]
    path = tmp_path / f"payments.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        frame = pd.DataFrame(rows)
        for name in {"time", "arrived"} & {*frame}:
            frame[name] = pd.to_datetime(frame[name], format="ISO8601", utc=True)
        frame.to_parquet(path)
    done = ingest_file(handbook.fraud, path, bank.store, source="transactions")
    assert (done.new["transactions"], len(done.refused)) == (5, 900)
    clock = f"clock of this machine, {iso(now())[:13]}"
    past = declared is not None and declared < "2062"
    assert all(("after the event arrived" in why) if past else (clock in why) for _, why in done.refused)
    assert len(bank.store.dead_letters()) == 900
    assert bank.pays("after", 6).features["customer_n_tx_30d"] == 6
    assert checked(handbook.fraud, bank.store) == 1


def test_an_arrival_ahead_of_the_clock_is_refused_at_every_door(bank: Bank):
    soon, far = now() + 4 * MINUTE, now() + 6 * MINUTE
    store, source = bank.store, handbook.transactions
    body = bank.payment("p", 0)

    def dated(moment: int) -> dict[str, Any]:
        return {**body, "id": f"p{moment}", "time": iso(moment)}

    doors: list[Callable[[int], Any]] = [
        lambda moment: bank.decider.decide(dated(moment), arrived=moment),
        lambda moment: bank.decider.decide({**body, "id": f"d{moment}"}, arrived=moment) if moment > soon else None,
        lambda moment: store.accept(source, {**body, "id": f"a{moment}", "time": iso(moment)}, arrived=moment),
        lambda moment: store.report(handbook.frauds, {"id": f"r{moment}", "fraud": True}, arrived=moment),
    ]
    for door in doors:
        door(soon)
        position = store.last_position()
        with pytest.raises(Rejected) as refused:
            door(far)
        assert "ahead of the clock of this machine, 2" in str(refused.value) or "before the event" in str(refused.value)
        assert refused.value.status == 422 and store.last_position() == position
    checked(handbook.fraud, store)


def test_a_loaded_batch_with_arrivals_ahead_is_refused_row_by_row(bank: Bank):
    streams = [handbook.transactions, handbook.frauds]
    times = [now() - HOUR, now() + HOUR, now() - HOUR, now() - HOUR]
    arrived = [now() - HOUR, now() + HOUR, now() - HOUR, now() + HOUR]
    event, report = handbook.transactions.parse(bank.payment("x", 0)), handbook.frauds.parse({"id": "x", "fraud": True})
    bodies = [event.body, event.body, report.body, report.body]
    codes = {"transactions": np.array([event.codes] * 2), "transactions.fraud": np.array([report.codes] * 2)}
    ids = ["a", "b", "a", "c"]
    batch = Batch(streams, np.array([0, 0, 1, 1]), ids, np.array(times), np.array(arrived), bodies, codes, np.arange(4))
    bank.store.register(handbook.fraud.name, handbook.fraud.features)
    done = bank.store.load(batch)
    assert done.new == {"transactions": 1, "transactions.fraud": 1}
    assert [row for row, _ in done.refused] == [1, 3]
    assert all("ahead of the clock of this machine" in str(why) for _, why in done.refused)


def test_an_undeclared_outcome_arrives_by_now_though_its_event_is_of_today(bank: Bank, tmp_path: Path):
    rows = [bank.payment(f"p{k}", 0) | {"time": iso(now() - (k + 1) * MINUTE), "fraud": k == 0} for k in range(4)]
    pd.DataFrame(rows).to_csv(tmp_path / "today.csv", index=False)
    done = ingest_file(handbook.fraud, tmp_path / "today.csv", bank.store, source="transactions")
    assert not done.refused and done.new["transactions.fraud"] == 1
    (report,) = bank.store.read(streams=["transactions.fraud"])
    assert report.arrived <= now()


# -- dead letters ---------------------------------------------------------------------------------------------------


def test_an_event_refused_by_the_clock_is_buried_once_for_each_reason(bank: Bank):
    """And it is taken when the clock is mended."""
    body = bank.payment("p", 0)
    moment = instant(body["time"])
    for off, letters in ((-HOUR, 1), (10 * DAY, 2), (-HOUR, 2), (20 * DAY, 2)):
        for k in range(5):
            with pytest.raises(ClockDiffers) as refused:
                bank.decider.decide(body, clock=moment + off + k * SECOND)
            with pytest.raises(ClockDiffers):
                bank.store.accept(handbook.transactions, body, clock=moment + off + k * SECOND)
            assert iso(moment + off + k * SECOND) in str(refused.value) and "dead letters" in str(refused.value)
        assert bank.size == (bank.store.last_position(), letters, 0)
    with pytest.raises(ClockDiffers):
        bank.decider.decide(bank.payment("q", 0), clock=moment - HOUR)
    assert len(bank.store.dead_letters()) == 3
    assert bank.decider.decide(body, clock=moment + SECOND).event == "p"
    assert bank.decider.decide(body, clock=moment + 20 * DAY).event == "p", (
        "what is known is acknowledged under any clock"
    )
    assert checked(handbook.fraud, bank.store) == 1


# -- over HTTP ------------------------------------------------------------------------------------------------------


class Clocked:
    """A service in processes of its own, whose clock is wrong by as much as the test says."""

    def __init__(self, server: Server, clock: Path):
        self.server, self.clock = server, clock
        self.http = httpx.Client(base_url=server.address, timeout=20)
        self.store: Any = ml.open_store(Settings(state=server.state))

    def off(self, seconds: int) -> None:
        new = self.clock.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self.clock)

    def letters(self, id: str) -> list[str]:
        return [letter.reason for letter in self.store.dead_letters() if letter.event == id]

    def metric(self, name: str) -> float:
        line = next(line for line in self.http.get("/metrics").text.splitlines() if line.startswith(f"mlpkg_{name} "))
        return float(line.split()[-1])


@pytest.fixture(scope="module")
def _clocked(made: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clocked]:
    folder = tmp_path_factory.mktemp("clocks")
    clock = folder / "wrong-by"
    clock.write_text("0")
    more = {"PYTHONPATH": str(SUPPORT / "wrong_clock"), "WRONG_CLOCK": str(clock)}
    with serving(made.bento, made.state(folder / "state"), folder / "log", **more) as server:
        service = Clocked(server, clock)
        with closing(service.store), closing(service.http):
            yield service
            service.off(0)
            checked(fraud, service.store)


@pytest.fixture
def clocked(_clocked: Clocked) -> Clocked:
    _clocked.off(0)
    return _clocked


WRONG = {"an hour behind": (-3600, "ahead"), "ten days ahead": (10 * 86_400, "late")}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_service_whose_clock_is_wrong_asks_to_be_called_again(clocked: Clocked, wrong: str):
    seconds, direction = WRONG[wrong]
    id = f"tx {wrong}"
    event, sent = payment(id), {"decide": "/v1/decide", "event": EVENTS}
    counted = clocked.metric(f'clock_refusals_total{{direction="{direction}"}}')
    clocked.off(seconds)
    for k in range(6):
        answer = clocked.http.post(sent["decide" if k % 2 else "event"], json=event)
        problem = answer.json()
        assert (answer.status_code, problem["status"], answer.headers["retry-after"]) == (503, 503, "1")
        assert answer.headers["content-type"] == "application/problem+json"
        assert (problem["type"], problem["title"]) == (
            "urn:mlpkg:clock-differs",
            "The server's clock differs from the event's",
        )
        assert (problem["time"], problem["field"], problem["event"]) == (event["time"], "Transaction.time", id)
        assert (
            abs(instant(problem["clock"]) - now() - seconds * SECOND) < 30 * SECOND
            and problem["clock"] in problem["detail"]
        )
    assert len(clocked.letters(id)) == 1
    assert clocked.metric(f'clock_refusals_total{{direction="{direction}"}}') == counted + 6
    most = clocked.metric(f'clock_difference_seconds{{direction="{direction}"}}')
    assert abs(most - abs(seconds)) < 60
    clocked.off(0)
    assert clocked.http.post(EVENTS, json=event).json()["new"] is True
    assert clocked.http.post("/v1/decide", json=event).status_code == 200
    assert len(clocked.letters(id)) == 1


@pytest.mark.parametrize("wrong", WRONG)
def test_a_line_of_a_batch_is_refused_by_the_clock_for_now(clocked: Clocked, wrong: str):
    clocked.off(WRONG[wrong][0])
    events = [payment(f"line {wrong} {k}") for k in range(3)]
    fine = payment(f"fine {wrong}", time=iso(now() + WRONG[wrong][0] * SECOND))
    body = b"\n".join(json.dumps(e).encode() for e in [*events, fine])
    for path in (EVENTS, "/v1/decide"):
        answers = [json.loads(line) for line in clocked.http.post(path, content=body, headers=LINES).text.splitlines()]
        assert [a.get("status") for a in answers] == [503, 503, 503, None]
        assert [a["line"] for a in answers[:3]] == [1, 2, 3] and all("clock" in a for a in answers[:3])
    clocked.off(0)
    answers = [json.loads(line) for line in clocked.http.post(EVENTS, content=body, headers=LINES).text.splitlines()]
    assert [a["new"] for a in answers] == [True, True, True, False]


def test_an_outcome_is_taken_under_any_clock(clocked: Clocked):
    """It has no time of its own: it arrives when it does."""
    clocked.http.post(EVENTS, json=payment("tx-told"))
    for seconds in (-3600, 10 * 86_400):
        clocked.off(seconds)
        report = {"id": "tx-told", "fraud": seconds > 0, "corrects": seconds > 0}
        assert clocked.http.post("/v1/outcomes/transactions.fraud", json=report).status_code == 200


def test_the_client_names_both_clocks_in_the_end(clocked: Clocked):
    clocked.off(-3600)
    with Client(clocked.server.address, attempts=2) as client:
        for call in (
            lambda: client.decide(payment("c-wrong")),
            lambda: client.send("transactions", payment("c-wrong-2")),
            lambda: client.decide_many([payment("c-wrong-3")]),
        ):
            with pytest.raises(Unavailable) as raised:
                call()
            message = str(raised.value)
            assert f"the service's clock says {iso(now() - HOUR)[:13]}" in message
            assert f"the clock here {iso(now())[:13]}" in message and "set the clock that is wrong" in message

    async def awaits() -> None:
        async with AsyncClient(clocked.server.address, attempts=1) as client:
            await client.decide(payment("c-wrong-4"))

    with pytest.raises(Unavailable, match="the service's clock says"):
        asyncio.run(awaits())


def test_the_client_succeeds_when_the_clock_is_mended_meanwhile(clocked: Clocked):
    clocked.off(10 * 86_400)
    mended = threading.Timer(1.5, clocked.off, [0])
    mended.start()
    with Client(clocked.server.address, attempts=30) as client:
        assert client.decide(payment("c-mended")).event == "c-mended"
        clocked.off(-3600)
        threading.Timer(1.5, clocked.off, [0]).start()
        answers = client.decide_many([payment(f"c-mended-{k}") for k in range(5)])
    assert [d.event for d in answers if isinstance(d, ml.Decision)] == [f"c-mended-{k}" for k in range(5)]
    mended.join()


def test_a_ranking_is_refused_by_the_clock_for_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shop, right = Shop(tmp_path / "shop", now()), time.time_ns
    with closing(shop.store), closing(Application(offers.offers, shop.store.settings)) as app:
        body = shop.visit("v-wrong") | {"candidates": shop.candidates(3)}

        async def rank() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                return await http.post("/v1/rank", json=body)

        for seconds in (-3600, 10 * 86_400):
            monkeypatch.setattr(time, "time_ns", lambda s=seconds: right() + s * 10**9)
            answer = asyncio.run(rank())
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:mlpkg:clock-differs")
            assert answer.headers["retry-after"] == "1"
        monkeypatch.setattr(time, "time_ns", right)
        assert asyncio.run(rank()).status_code == 200
        checked(offers.offers, shop.store)
