"""A new timeline is used at once, with its whole history, while others write; what is said later finds its place in it."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logged_timelines import asks, same_as_the_log

import mlpkg as ml
from mlpkg.errors import MlpkgError
from mlpkg.settings import Settings
from mlpkg.store import Batch, open_store
from mlpkg.store.sqlite import backfill as building
from mlpkg.store.sqlite.schema import VERSION
from mlpkg.store.sqlite.store import SqliteStore
from mlpkg.times import DAY, instant, iso

START = instant("2024-01-01")


class Payment(ml.Event):
    card: int
    shop: str | None = None
    amount: ml.Money


payments = ml.Source("payments", Payment)
frauds = payments.outcome("fraud", bool)


def hour_of_day(time):
    return time // 3_600_000_000 % 24


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


def test_what_only_reads_makes_no_store(settings: Settings):
    with pytest.raises(MlpkgError, match="there is no store in") as refused:
        open_store(settings, create=False)
    assert "MLPKG_STATE" in str(refused.value.hint) and not settings.state.exists()


@pytest.mark.parametrize(("version", "age"), [(1, "an older"), (6, "an older"), (99, "a newer")])
def test_a_store_of_another_version_is_refused(settings: Settings, version: int, age: str):
    store = SqliteStore(settings)
    store.db.pragma("user_version", version)
    store.close()
    with pytest.raises(
        MlpkgError, match=f"was made by {age} mlpkg .store version {version}, this one uses {VERSION}"
    ) as refused:
        SqliteStore(settings)
    assert refused.value.hint and "\n" not in refused.value.what
