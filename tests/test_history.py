"""History may be loaded in any order: what counts is when it arrived, not where it stands in the log."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import handbook
import numpy as np
import pytest
from conftest import START

import mlpkg as ml
from mlpkg.columns import NULL
from mlpkg.platform import Batch
from mlpkg.settings import Settings
from mlpkg.times import DAY, iso

Said = tuple[Any, dict[str, Any], int | None]  # stream, body, arrived (of a report that does not say when: None)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Fresh stores, each with the timelines of the handbook's features."""
    made: list[Any] = []

    def make(features: ml.FeatureSet = handbook.early_features) -> Any:
        made.append(ml.open(Settings(state=tmp_path / f"store{len(made)}")))
        made[-1].register(features.name, features)
        return made[-1]

    yield make
    for platform in made:
        platform.close()


def batch_of(said: list[Said]) -> Batch:
    """Events and reports as a batch, in the given order."""
    streams = list({s.stream: s for s, *_ in said}.values())
    rows = [s.parse(body) for s, body, _ in said]
    codes = {
        stream.stream: np.array([r.codes for (s, *_), r in zip(said, rows, strict=True) if s is stream], np.int64)
        for stream in streams
    }
    arrived = np.array([NULL if at is None else at for *_, at in said], np.int64)
    time = np.array([row.time or max(at, 0) for row, at in zip(rows, arrived.tolist(), strict=True)], np.int64)
    number = np.array([streams.index(s) for s, *_ in said])
    return Batch(
        streams, number, [r.id for r in rows], time, arrived, [r.body for r in rows], codes, np.arange(len(rows))
    )


def payment(id: str, day: float, **fields: Any) -> Said:
    """A payment that arrived at its time."""
    time = START + round(day * DAY)
    body = {"id": id, "time": iso(time), "customer_id": 1, "terminal_id": 7, "amount": 10.0} | fields
    return handbook.transactions, body, time


def fraud(id: str, truth: bool, day: float | None, corrects: bool = False) -> Said:
    """A report about a payment."""
    body = {"id": id, "fraud": truth} | ({"corrects": True} if corrects else {})
    return handbook.frauds, body, None if day is None else START + round(day * DAY)


def reported(platform: Any) -> list[tuple[int, int, bool]]:
    """What the history says was reported: truth, arrival and whether it corrects, in the order of precedence."""
    found = platform.history([handbook.transactions], [handbook.frauds]).reports["transactions.fraud"]
    return list(
        zip(found.columns["fraud"].tolist(), found.arrived.tolist(), found.corrects.astype(bool).tolist(), strict=True)
    )


def held(platform: Any) -> list[int]:
    """The truths in the timeline of the terminal."""
    return platform.timeline("transactions.fraud", "terminal_id", 7).columns["fraud"].tolist()


STORY = [fraud("a", True, 3), fraud("a", False, 5, corrects=True), fraud("a", True, 6, corrects=True)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
@pytest.mark.parametrize("at_once", [True, False])
def test_corrections_mean_the_same_in_whatever_order_they_are_loaded(
    stores: Callable[[], Any], order: tuple[int, ...], at_once: bool
):
    """The event last, first or in between; a later correction before the report that it corrects."""
    platform = stores()
    said = [([payment("a", 0), *STORY])[i] for i in order]
    for many in [said] if at_once else [[one] for one in said]:
        assert not platform.load(batch_of(many)).refused
        assert platform.load(batch_of(many)).known == len(many), "what is loaded again is known"
    assert reported(platform) == [
        (1, START + 3 * DAY, False),
        (0, START + 5 * DAY, True),
        (1, START + 6 * DAY, True),
    ]
    assert held(platform) == [1] and platform.waiting() == []
    sets = ml.FeatureSet(
        "new", on=handbook.transactions, by=handbook.frauds.by("customer_id").agg(n=ml.count(over="7d"))
    )
    platform.register("new", sets)
    built = platform.timeline("transactions.fraud", "customer_id", 1)
    assert (len(built), built.columns["about"].tolist()) == (1, held_about(platform))


def held_about(platform: Any) -> list[int]:
    return platform.timeline("transactions.fraud", "terminal_id", 7).columns["about"].tolist()


def test_a_report_after_its_correction_is_taken_and_undoes_nothing(stores: Callable[[], Any]):
    platform = stores()
    platform.load(batch_of([payment("a", 0)]))
    platform.report(*fraud("a", False, None, corrects=True)[:2])
    assert platform.report(*fraud("a", True, None)[:2]).new
    assert not platform.report(*fraud("a", True, None)[:2]).new
    with pytest.raises(ml.Rejected, match="other content"):
        platform.report(*fraud("a", False, None)[:2])
    assert held(platform) == [0]


def test_a_correction_sent_now_holds_also_where_the_clock_was_set_back(stores: Callable[[], Any]):
    platform = stores()
    ahead = ml.times.now() + DAY  # the clock was a day ahead when this was said
    for stream, body, at in (payment("a", 0), fraud("a", True, None), fraud("a", False, None, corrects=True)):
        if stream is handbook.transactions:
            platform.accept(stream, body, arrived=at)
        else:
            platform.report(stream, body, clock=ahead)
    platform.report(*fraud("a", True, None, corrects=True)[:2])
    assert held(platform) == [1] and [at - ahead for _, at, _ in reported(platform)] == [0, 1, 2]


@pytest.mark.parametrize("event_first", [True, False])
@pytest.mark.parametrize("by", ["load", "accept"])
def test_a_report_without_arrival_arrived_the_outcomes_delay_after_its_event(
    stores: Callable[[], Any], event_first: bool, by: str
):
    """Also where it waits for its event, which comes later in the log."""
    platform = stores()
    said = [payment("a", 0), fraud("a", True, None)]
    for stream, body, at in said if event_first else said[::-1]:
        if stream is handbook.transactions and by == "accept":
            platform.accept(stream, body, arrived=at)
        else:
            platform.load(batch_of([(stream, body, at)]))
        (waits,) = platform.waiting() or [None]
        assert waits is None or 0 <= waits.time <= waits.arrived <= ml.times.now(), "harmless until then"
    assert reported(platform) == [(1, START + 7 * DAY, False)] and held(platform) == [1]
    entry = platform.entry("transactions.fraud", "a")
    assert (entry.time, entry.arrived) == (START + 7 * DAY, START + 7 * DAY)


def test_a_report_without_arrival_did_not_arrive_in_the_future(stores: Callable[[], Any]):
    platform = stores()
    yesterday = (ml.times.now() - START) / DAY - 1
    platform.load(batch_of([payment("a", yesterday), fraud("a", True, None), fraud("b", True, None)]))
    platform.load(batch_of([payment("b", yesterday)]))
    assert all(yesterday * DAY < at - START and at <= ml.times.now() for _, at, _ in reported(platform))
    assert len(reported(platform)) == 2
