"""Rows of a batch may lie beside their timelines for a while: reads, decisions and other processes never notice."""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from subprocess import Popen
from typing import Any

import apsw
import pytest
from cards import at, check_decisions, decide, features, fraud, frauds, hear, load, paid, pay, payments, reported
from logged_timelines import Wanted, asks, same_as_the_log

import mlpkg as ml
from mlpkg.errors import MlpkgError
from mlpkg.settings import Settings
from mlpkg.store import Store
from mlpkg.store.sqlite import recent_rows

WANTED: list[Wanted] = [
    (payments, ("card",), ("amount", "shop")),
    (payments, ("shop",), ("amount",)),
    (frauds, ("card",), ("about", "fraud")),
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(ml.open_store(Settings(state=tmp_path))) as store:
        store.register("cards", features)
        store.register("whole", asks(*WANTED))
        yield store


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows beside their timelines are many."""
    monkeypatch.setattr(recent_rows, "_SMALL", 2)
    monkeypatch.setattr(recent_rows, "RECENT_ROWS", 60)
    monkeypatch.setattr(recent_rows, "_OFTEN", 10)


def many(start: int, count: int = 200, cards: int = 90) -> list[Any]:
    return [paid(f"p{k}", k / 1000, card=k % cards) for k in range(start, start + count)]


def beside(store: Any) -> int:
    """How many rows lie beside their timelines."""
    return store.db.execute("select coalesce(sum(count), 0) from recent").get


def check(store: Store) -> None:
    assert sum(same_as_the_log(store, *wanted) for wanted in WANTED) > 0


def test_rows_of_a_batch_are_read_before_and_after_they_go_into_their_timelines(store: Store):
    load(store, *many(0))
    assert beside(store)
    check(store)
    store.end_load()
    assert not beside(store)
    check(store)


def test_a_decision_sees_rows_that_lie_beside_its_timelines(store: Store):
    load(store, *many(0))
    assert decide(store, "d1", 1, card=7).features["card_n_30d"] == float(4).hex()  # of 7, 97 and 187, and its own
    load(store, *many(200))
    hear(store, "p7", True, 2)
    for k in range(20):
        decide(store, f"e{k}", 2 + k / 10, card=k)
    store.end_load()
    decide(store, "d2", 5, card=7)
    assert check_decisions(store) == 22
    check(store)


def test_another_process_sees_each_batch_and_that_it_has_gone_into_the_timelines(store: Store, tmp_path: Path):
    with closing(ml.open_store(Settings(state=tmp_path))) as other:
        for k in range(4):
            load(store, *many(200 * k))
            check(other)
            pay(other, f"own{k}", k + 0.5, card=7)
            check(store)
            if k == 2:
                other.end_load()
                assert not beside(store)
                check(store)
        check(other)


def test_a_batch_that_fails_leaves_nothing_in_memory(store: Any):
    """Its reports lie beside their timelines, a correction reads one of them, and then an event cannot be written."""
    load(store, *many(0))
    load(store, *[reported(f"p{k}", True, 1) for k in range(100)])
    check(store)
    batch = [reported(f"p{k}", True, 1) for k in range(100, 200)]
    batch += [reported("p7", False, 2, corrects=True), *many(200)]
    store.db.execute(
        "create trigger full before insert on log when new.id='p399' begin select raise(abort, 'full'); end"
    )
    with pytest.raises(MlpkgError, match="full"):
        load(store, *batch)
    store.db.execute("drop trigger full")
    check(store)
    load(store, *batch)
    check(store)


def test_a_report_that_lies_beside_its_timelines_is_corrected(store: Store):
    load(store, *many(0))
    load(store, *[reported(f"p{k}", True, 1) for k in range(200)])
    assert beside(store)
    store.report(frauds, fraud("p7", False, corrects=True), arrived=at(2))
    assert store.timeline(frauds.stream, "card", 7).columns["fraud"].tolist() == [0, 1, 1]
    check(store)


def test_timelines_that_are_built_anew_do_not_take_over_rows_beside_the_old_ones(store: Any):
    load(store, *many(0))
    check(store)
    store.db.execute("update stream set state='gone'; update control set generation=generation+1")
    store.register("whole", asks(*WANTED))
    assert not beside(store)
    check(store)


@pytest.mark.parametrize("seed", range(3))
def test_any_mix_of_batches_events_and_corrections_is_what_the_log_says(
    few: None, store: Store, tmp_path: Path, seed: int
):
    rng, count, known = random.Random(seed), 0, []
    with closing(ml.open_store(Settings(state=tmp_path))) as other:
        for _ in range(60):
            writer = rng.choice([store, other])
            rows = []
            for _ in range(rng.choice([1, 1, 5, 40, 80])):
                count += 1
                day = count / 100 - rng.choice([0, 0, 0, 1, 3])
                rows.append(paid(f"p{count}", max(day, 0), card=rng.choice([1, rng.randrange(40)])))
            what = rng.random()
            if len(rows) == 1 and what < 0.5:
                decide(writer, f"p{count}", 3 + count / 100, card=rng.randrange(5))
            else:
                load(writer, *rows)
            known.append(f"p{count}")
            if what < 0.3:
                load(writer, *[reported(id, True, count / 100 + 4) for id in rng.sample(known, min(3, len(known)))])
            elif what < 0.5:
                hear(writer, rng.choice(known), rng.random() < 0.5, count / 100 + 4, corrects=True)
            elif what > 0.95:
                writer.end_load()
            if rng.random() < 0.3:
                check(rng.choice([store, other]))
    check(store)
    check_decisions(store)


LOADING = """
import sys
from itertools import count
from pathlib import Path
from test_recent_rows import load, many
import mlpkg as ml
from mlpkg.settings import Settings
from mlpkg.store.sqlite import recent_rows

recent_rows.RECENT_ROWS = 500
store = ml.open_store(Settings(state=Path(sys.argv[1])))
for k in count():
    load(store, *many(200 * k))
    print(k, flush=True)
"""


def test_a_loader_that_is_killed_leaves_whole_batches(store: Any, tmp_path: Path):
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    seen = 0
    for wait in (0.0, 0.005, 0.02, 0.05):
        with Popen(
            [sys.executable, "-c", LOADING, str(tmp_path)], env=os.environ | {"PYTHONPATH": path}, stdout=-1
        ) as process:
            assert process.stdout
            while int(process.stdout.readline()) < seen:  # what is known already
                pass
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
        check(store)
        entries = store.count_entries()
        assert entries % 200 == 0 and entries >= 200 * max([seen + 1, *(int(k) + 1 for k in rest)])
        seen = entries // 200
    with closing(apsw.Connection(str(store.settings.store_path))) as db:
        assert db.execute("pragma integrity_check").get == "ok"
