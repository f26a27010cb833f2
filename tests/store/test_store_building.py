"""A new timeline is used at once, with its whole history, while others write; what is said later finds its place in it."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mlpkg as ml
from mlpkg.errors import MlpkgError
from mlpkg.features import Stream
from mlpkg.settings import Settings
from mlpkg.store import Batch, open_store
from mlpkg.store.sqlite import backfill as building
from mlpkg.store.sqlite.store import SqliteStore
from mlpkg.times import DAY, instant, iso

START = instant("2024-01-01")


class Payment(ml.Event):
    card: int
    shop: str | None = None
    amount: ml.Money


payments = ml.Source("payments", Payment)
frauds = payments.outcome("fraud", bool)
decided = payments.decisions("guard")


def hour_of_day(time):
    return time // 3_600_000_000 % 24


def asks(*wanted: tuple[Any, Any, tuple[str, ...]]) -> Any:
    """What a feature set says of the timelines it needs."""
    streams = [Stream(s.stream, s.by(*keys).key.name, columns, s.by(*keys).key) for s, keys, columns in wanted]
    return SimpleNamespace(sources=[payments], streams=streams)


def payment(k: int, moment: int | None = None, **changes: Any) -> dict[str, Any]:
    moment = START + k * 60_000_000 if moment is None else moment
    return {"id": f"p{k}", "time": iso(moment), "card": k % 7, "shop": f"s{k % 3}", "amount": k % 100 + 0.5} | changes


def load(store: Any, ks: range) -> None:
    rows = [payments.parse(payment(k)) for k in ks]
    time = np.array([r.time for r in rows])
    codes = {"payments": np.array([r.codes for r in rows], np.int64)}
    none = np.zeros(len(rows), np.int64)
    batch = Batch([payments], none, [r.id for r in rows], time, time, [r.body for r in rows], codes, none)
    store.load(batch)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state")


@pytest.fixture
def store(settings: Settings) -> Iterator[SqliteStore]:
    made = SqliteStore(settings)
    yield made
    made.close()


def same_as_the_log(store: Any, stream: Any, keys: tuple[Any, ...], columns: tuple[str, ...]) -> int:
    """All timelines of a stream and key hold what the log says, and nothing else; how many rows that is."""
    history = store.history([payments], list(payments.feedback.values()))
    events = history.events["payments"]
    if stream is payments:
        time, position, table = events.time, events.position, events.columns
    else:
        reports = history.reports[stream.stream]
        last = (
            np.flatnonzero(np.append(reports.about[1:] != reports.about[:-1], True))
            if len(reports.about)
            else slice(0, 0)
        )
        row = events.position.searchsorted(reports.about[last])
        time, position = events.time[row], reports.known[last]
        table = {n: c[row] for n, c in events.columns.items()} | {n: c[last] for n, c in reports.columns.items()}
        table["about"] = reports.about[last]
    key = stream.by(*keys).key
    of = key.of_many(table, time)
    rows = 0
    for value in np.unique(of[of != -(2**63)]).tolist():
        of_key = np.flatnonzero(of == value)
        of_key = of_key[np.lexsort((position[of_key], time[of_key]))]
        held = store.timeline(stream.stream, key.name, value)
        assert held.time.tolist() == time[of_key].tolist()
        assert held.position.tolist() == position[of_key].tolist()
        for name in columns:
            assert held.columns[name].tolist() == table[name][of_key].tolist()
        rows += len(of_key)
    stored = store.db.execute(
        "select sum(length(head)) from timeline t join stream s on s.id=t.stream where s.name=? and s.key=? and s.state='live'",
        (stream.stream, key.name),
    ).get
    assert rows == 0 or stored > 0
    return rows


def test_a_timeline_is_built_while_others_write(settings: Settings, store: SqliteStore, monkeypatch):
    """Another connection goes on appending; when register returns, nothing is missing and nothing appears twice."""
    monkeypatch.setattr(building, "_SLICE", 0.001)
    monkeypatch.setattr(building, "_REST", 50)
    store.register("guard", asks((payments, ("card",), ("amount",))))
    load(store, range(3000))
    writer, done, sent = SqliteStore(settings), threading.Event(), []

    def write() -> None:
        for k in range(3000, 8000):
            if done.is_set():
                return
            writer.accept(payments, payment(k), arrived=START + k * 60_000_000)
            if k % 3 == 0:
                writer.report(frauds, {"id": f"p{k // 2}", "fraud": k % 2 == 0}, arrived=START + k * 60_000_000)
            if k % 50 == 0:  # of an event that is still to come
                writer.report(frauds, {"id": f"p{k + 30}", "fraud": True}, arrived=START + k * 60_000_000)
            sent.append(k)

    thread = threading.Thread(target=write)
    thread.start()
    while len(sent) < 200:
        time.sleep(0.01)
    wanted = [
        (payments, ("card",), ("amount", "shop")),
        (payments, ("shop", hour_of_day), ("amount",)),
        (frauds, ("card",), ("amount", "fraud")),
    ]
    store.register("guard", asks(*wanted))
    during = len(sent)
    time.sleep(0.1)
    done.set()
    thread.join()
    assert during > 200
    for stream, keys, columns in wanted:
        assert same_as_the_log(store, stream, keys, columns) > 10
    writer.close()
    states = store.db.execute("select distinct state from stream").fetchall()
    assert states == [("live",)] and store.db.execute("select count(*) from stream").get == 3


def test_two_that_register_the_same_build_it_once(settings: Settings, store: SqliteStore):
    load(store, range(5000))
    others = [SqliteStore(settings) for _ in range(3)]
    threads = [
        threading.Thread(target=p.register, args=("guard", asks((payments, ("card",), ("amount",))))) for p in others
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        assert same_as_the_log(other, payments, ("card",), ("amount",)) == 5000
        other.close()
    assert store.db.execute("select max(id) from stream").get == 1


def test_a_build_that_died_is_begun_again(store: SqliteStore, monkeypatch):
    load(store, range(3000))
    with monkeypatch.context() as patch:
        patch.setattr(building.Backfill, "_finish", lambda self, new, pages, reached: 1 / 0 if reached else False)
        with pytest.raises(ZeroDivisionError):
            store.register("guard", asks((payments, ("card",), ("amount",))))
    assert store.db.execute("select state from stream").get == "building"
    with pytest.raises(MlpkgError, match="not built"):
        store.timeline("payments", "card", 1)
    store.register("guard", asks((payments, ("card",), ("amount",))))
    assert same_as_the_log(store, payments, ("card",), ("amount",)) == 3000
    assert store.db.execute("select count(*) from timeline").get == 7


def test_a_row_without_a_key_is_in_no_timeline(store: SqliteStore):
    store.register("guard", asks((payments, ("shop",), ("amount",))))
    store.accept(payments, payment(1, shop=None), arrived=START + DAY)
    load(store, range(2, 10))
    store.accept(payments, payment(11), arrived=START + DAY)
    assert same_as_the_log(store, payments, ("shop",), ("amount",)) == 9


def test_who_lacks_the_code_of_a_key_gives_the_timeline_up(store: SqliteStore, settings: Settings, monkeypatch):
    """Events go on being accepted; with the code there again, a register builds it anew."""
    wanted = asks((payments, (hour_of_day,), ("amount",)), (payments, ("card",), ("amount",)))
    store.register("guard", wanted)
    load(store, range(100))
    monkeypatch.delattr("test_store_building.hour_of_day")
    other = SqliteStore(settings)
    other.accept(payments, payment(100), arrived=START + DAY)
    other.close()
    monkeypatch.undo()
    with pytest.raises(MlpkgError, match="not built"):
        store.timeline("payments", "hour_of_day(time)", 1)
    assert same_as_the_log(store, payments, ("card",), ("amount",)) == 101
    store.register("guard", wanted)
    assert same_as_the_log(store, payments, (hour_of_day,), ("amount",)) == 101


def test_a_correction_supersedes_what_was_reported(store: SqliteStore):
    """The timeline holds what is true now, the log every version."""
    store.register("guard", asks((frauds, ("card",), ("fraud", "amount"))))
    load(store, range(10))
    first = store.report(frauds, {"id": "p3", "fraud": True}, arrived=START + DAY)
    second = store.report(frauds, {"id": "p3", "fraud": False, "corrects": True}, arrived=START + 2 * DAY)
    again = store.report(frauds, {"id": "p3", "fraud": False, "corrects": True}, arrived=START + 2 * DAY)
    assert not store.report(frauds, {"id": "p3", "fraud": False, "corrects": True}).new, "now it says what holds"
    assert (second.new, again.new, again.position) == (
        True,
        False,
        second.position,
    ) and second.position > first.position
    assert not store.report(frauds, {"id": "p3", "fraud": True}).new, "the first one sent again is known"
    with pytest.raises(ml.Rejected, match="other content"):
        store.report(frauds, {"id": "p3", "fraud": False})
    third = store.report(frauds, {"id": "p3", "fraud": True, "corrects": True}, arrived=START + 4 * DAY)
    held = store.timeline("payments.fraud", "card", 3)
    assert (held.columns["fraud"].tolist(), held.position.tolist()) == ([1], [third.position])
    reports = store.history([payments], [frauds]).reports["payments.fraud"]
    assert reports.columns["fraud"].tolist() == [1, 0, 1]
    assert reports.known.tolist() == [first.position, second.position, third.position]
    assert [e.id for e in store.read(streams=["payments.fraud"])] == ["p3"] * 3
    assert same_as_the_log(store, frauds, ("card",), ("fraud", "amount")) == 1
    store.register("guard", asks((frauds, ("shop",), ("fraud",))))
    assert same_as_the_log(store, frauds, ("shop",), ("fraud",)) == 1


def test_a_correction_may_wait_too(store: SqliteStore):
    store.register("guard", asks((frauds, ("card",), ("fraud",))))
    store.report(frauds, {"id": "p3", "fraud": True}, arrived=START)
    assert store.report(frauds, {"id": "p3", "fraud": False, "corrects": True}, arrived=START).waiting
    load(store, range(10))
    held = store.timeline("payments.fraud", "card", 3)
    assert held.columns["fraud"].tolist() == [0] and store.waiting() == []
    reports = store.history([payments], [frauds]).reports["payments.fraud"]
    assert reports.columns["fraud"].tolist() == [1, 0]


def test_a_batch_may_hold_corrections(store: SqliteStore):
    store.register("guard", asks((frauds, ("card",), ("fraud",))))
    load(store, range(10))
    reports = [("p1", True, ""), ("p2", True, ""), ("p1", False, ',"corrects":true'), ("p3", True, "")]
    bodies = [f'{{"fraud":{json.dumps(truth)}{more}}}' for _, truth, more in reports]
    n = np.arange(4)
    batch = Batch(
        [frauds],
        n * 0,
        [i for i, *_ in reports],
        n * 0 + START,
        n * 0 + START,
        bodies,
        {"payments.fraud": n[:, None] * 0 + 1},
        n,
    )
    loaded = store.load(batch)
    assert (loaded.new, loaded.known, loaded.waiting) == ({"payments.fraud": 4}, 0, 0)
    assert same_as_the_log(store, frauds, ("card",), ("fraud",)) == 3
    assert store.load(batch).known == 4
    assert store.timeline("payments.fraud", "card", 1).columns["fraud"].tolist() == [0]


def test_decisions_are_a_stream_to_define_features_over(store: SqliteStore):
    wanted = (decided, ("card",), ("about", "score", "action", "amount"))
    store.register("guard", asks(wanted))
    for k in range(20):
        with store.decision("guard", payments, payments.parse(payment(k)), START + DAY) as unit:
            unit.record(json.dumps({"score": k / 10, "action": "block" if k % 2 else "pass"}))
    assert same_as_the_log(store, *wanted) == 20
    store.register("guard", asks((decided, ("shop",), ("action",))))
    assert same_as_the_log(store, decided, ("shop",), ("action",)) == 20


def test_what_only_reads_makes_no_store(settings: Settings):
    with pytest.raises(MlpkgError, match="there is no store in") as refused:
        open_store(settings, create=False)
    assert "MLPKG_STATE" in str(refused.value.hint) and not settings.state.exists()


def test_every_version_of_a_contract_is_kept(store: SqliteStore):
    store.register("guard", asks())

    class More(Payment):
        country: str | None = None

    grown: Any = SimpleNamespace(sources=[ml.Source("payments", More, retention="120d")], streams=[])
    grown.sources[0].outcomes.update(payments.outcomes)
    store.register("guard", grown)
    store.register("guard", grown)
    versions = store.contracts("payments")
    assert [v["version"] for v in versions] == [1, 2] and "country" in " ".join(versions[1]["changes"])
    with pytest.raises(MlpkgError, match="lost its field 'country'"):
        store.register("guard", asks())


@pytest.mark.parametrize(("version", "age"), [(1, "an older"), (6, "an older"), (99, "a newer")])
def test_a_store_of_another_version_is_refused(settings: Settings, version: int, age: str):
    store = SqliteStore(settings)
    store.db.pragma("user_version", version)
    store.close()
    with pytest.raises(
        MlpkgError, match=f"was made by {age} mlpkg .store version {version}, this one uses 7"
    ) as refused:
        SqliteStore(settings)
    assert refused.value.hint and "\n" not in refused.value.what
