"""The log as entries and as columns: bounds, order, pages, and what a reader may rely on."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from cards import START, at, frauds, hear, ids, load, paid, pay, payment, payments, refunds, reported, visit, visits
from elsewhere import all_ids
from stores import StoreUnderTest

from mlpkg.engine.columns import NULL, text_code
from mlpkg.store import Entry, Store
from mlpkg.times import DAY


class Log(NamedTuple):
    """A store whose log a test reads, and all its entries."""

    store: Store
    entries: list[Entry]

    def positions(self, *streams: str) -> list[int]:
        return [e.position for e in self.entries if not streams or e.source in streams]


@pytest.fixture(scope="module")
def log(new_store: Callable[[], StoreUnderTest]) -> Iterator[Log]:
    """Forty payments on forty days, each with a visit just before; every fourth is reported two days later, one before it came."""
    tested = new_store()
    store = tested.open()
    hear(store, "p39", True, 40)
    for k in range(40):
        store.accept(visits, visit(f"v{k}", k - 0.1), arrived=at(k - 0.1))
        pay(store, f"p{k}", k, card=k % 3, shop=None if k % 5 == 0 else f"s{k % 2}", amount=k + 0.25)
        if k % 4 == 0:
            hear(store, f"p{k}", k % 8 == 0, k + 2)
    yield Log(store, list(store.read()))
    tested.close()


def test_an_empty_log_has_nothing(store: Store):
    assert store.last_position() == 0 and list(store.read()) == []
    assert store.last_arrival(["payments"]) is None
    assert store.latest_entries("payments") == ([], None)
    assert store.entry("payments", "p1") is None
    assert [len(a) for a in store.decided("cards")] == [0, 0]
    history = store.history([payments], [frauds])
    assert len(history.events["payments"]) == 0 and len(history.reports["payments.fraud"].about) == 0
    assert sum(map(len, store.pages(payments))) == 0


def test_positions_grow_in_the_order_of_the_writes(log: Log):
    positions = log.positions()
    assert 0 < positions[0] and all(a < b for a, b in pairwise(positions)) and positions[-1] < 2**62
    assert positions[-1] == log.store.last_position()
    written = ["p39", *(id for k in range(40) for id in (f"v{k}", f"p{k}", *([f"p{k}"] if k % 4 == 0 else [])))]
    assert [e.id for e in log.entries] == written


def test_an_entry_has_all_that_was_written(log: Log):
    entry = log.store.entry("payments", "p7")
    assert entry in log.entries and entry is not None
    assert (entry.source, entry.id, entry.time, entry.arrived, entry.about) == ("payments", "p7", at(7), at(7), None)
    assert msgspec.json.decode(entry.body) == {"card": 1, "shop": "s1", "amount": 7.25}
    report = log.store.entry("payments.fraud", "p8")
    event = log.store.entry("payments", "p8")
    assert report and event and (report.about, report.arrived) == (event.position, at(10))
    assert msgspec.json.decode(report.body) == {"fraud": True}


def test_an_entry_is_found_by_stream_and_id(log: Log):
    assert log.store.entry("payments", "v7") is None
    assert log.store.entry("nothing", "p7") is None
    assert log.store.entry("payments", "p") is None


def test_reading_begins_after_a_position_and_ends_with_another(log: Log):
    positions = log.positions()
    first, last = positions[10], positions[20]
    between = [e for e in log.entries if first < e.position <= last]
    assert list(log.store.read(first, until=last)) == between and len(between) == 10
    assert list(log.store.read(after=first)) == log.entries[11:]
    assert list(log.store.read(until=last)) == log.entries[:21]
    assert list(log.store.read(last, until=first)) == []
    assert list(log.store.read(first, until=first)) == []
    assert list(log.store.read(after=log.store.last_position())) == []
    assert list(log.store.read(until=2**62)) == log.entries


def test_a_bound_may_lie_between_two_positions(log: Log):
    positions = log.positions()
    assert list(log.store.read(positions[0] - 1)) == log.entries
    assert list(log.store.read(positions[5] - 1, until=positions[5])) == [log.entries[5]]


def test_streams_are_chosen_by_name(log: Log):
    for streams in (["payments"], ["payments.fraud", "visits"], ["nothing"], []):
        assert list(log.store.read(streams=streams)) == [e for e in log.entries if e.source in streams]
    after = log.positions()[15]
    chosen = [e for e in log.entries if e.source == "visits" and e.position > after]
    assert list(log.store.read(after, streams=["visits", "nothing"])) == chosen


def test_the_latest_entries_come_newest_first_a_page_at_a_time(log: Log):
    payments_backwards = [e for e in log.entries if e.source == "payments"][::-1]
    for most in (1, 7, 40, 100):
        before, pages, calls = None, [], 0
        while calls == 0 or before is not None:
            page, before = log.store.latest_entries("payments", before, most)
            assert len(page) <= most
            pages += page
            calls += 1
            assert calls < 200, "it comes to the beginning of the log"
        assert pages == payments_backwards
    middle = payments_backwards[10].position
    page, _ = log.store.latest_entries("payments", middle, 3)
    assert page == payments_backwards[11:14], "the position itself is not among them"
    assert log.store.latest_entries("payments", most=1)[0] == payments_backwards[:1]


def test_the_last_arrival_is_that_of_some_streams(log: Log):
    assert log.store.last_arrival(["payments"]) == at(39)
    assert log.store.last_arrival(["visits"]) == at(38.9)
    assert log.store.last_arrival(["visits", "payments.fraud", "nothing"]) == at(40)
    assert log.store.last_arrival([]) is None


def test_the_log_tells_about_how_many_entries_it_has(log: Log):
    entries = len(list(log.store.read()))
    assert entries / 2 <= log.store.count_entries() <= entries, "an event and its decision may lie in one message"


def test_a_history_is_the_log_as_columns(log: Log):
    history = log.store.history([payments, visits], [frauds, refunds])
    events = history.events["payments"]
    assert events.position.tolist() == log.positions("payments")
    assert events.time.tolist() == events.arrived.tolist() == [at(k) for k in range(40)]
    assert list(events.ids) == [f"p{k}" for k in range(40)]
    assert events.columns["card"].tolist() == [k % 3 for k in range(40)]
    assert events.columns["amount"].tolist() == [100 * k + 25 for k in range(40)]
    shops = [NULL if k % 5 == 0 else text_code(f"s{k % 2}") for k in range(40)]
    assert events.columns["shop"].tolist() == shops
    assert all(a.dtype == np.int64 for a in (events.position, events.time, events.arrived, *events.columns.values()))
    assert len(history.events["visits"]) == 40 and len(history.reports["payments.refund"].about) == 0


def test_a_report_counts_from_its_own_position_but_never_before_its_event(log: Log):
    reports = log.store.history([payments], [frauds]).reports["payments.fraud"]
    events = {e.position: e.id for e in log.entries if e.source == "payments"}
    assert [events[p] for p in reports.about.tolist()] == [*(f"p{k}" for k in range(0, 40, 4)), "p39"]
    assert reports.known.tolist()[:-1] == log.positions("payments.fraud")[1:]
    assert reports.known[-1] > reports.about[-1], "it came before its event, and counts after it"
    assert reports.columns["fraud"].tolist() == [*(int(k % 8 == 0) for k in range(0, 40, 4)), 1]
    assert reports.arrived.tolist() == [*(at(k + 2) for k in range(0, 40, 4)), at(40)]
    assert not reports.corrects.any()


def test_a_history_is_bounded_by_position_and_by_time_of_the_event(log: Log):
    until = log.store.entry("payments.fraud", "p20")
    assert until is not None
    history = log.store.history([payments], [frauds], until=until.position, since=at(5), before=at(21))
    assert list(history.events["payments"].ids) == [f"p{k}" for k in range(5, 21)]
    about = history.reports["payments.fraud"].about.tolist()
    assert about == [p for p, e in zip(log.positions("payments"), range(40), strict=True) if e in (8, 12, 16, 20)]
    earlier = log.store.history([payments], [frauds], until=until.position - 1)
    assert len(earlier.events["payments"]) == 21, "the event is before its report"
    assert len(earlier.reports["payments.fraud"].about) == 5
    whole = log.store.history([payments], [frauds], until=log.store.last_position())
    assert whole.events["payments"].ids == log.store.history([payments], [frauds]).events["payments"].ids


def test_a_report_whose_event_lies_beyond_the_bound_is_not_in_a_history(log: Log):
    """It is in the log before its event, and would point to an event that the reader does not have."""
    waited = log.store.entry("payments.fraud", "p39")
    event = log.store.entry("payments", "p39")
    assert waited and event and waited.position < event.position
    reports = log.store.history([payments], [frauds], until=event.position - 1).reports["payments.fraud"]
    assert event.position not in reports.about.tolist()


def test_pages_are_the_events_of_a_history(log: Log):
    whole = log.store.history([payments], []).events["payments"]
    positions = log.positions("payments")
    bounds = [{}, {"after": positions[3], "until": positions[30]}, {"since": at(5), "before": at(12)}]
    for bound, chosen in zip(bounds, (slice(0, 40), slice(4, 31), slice(5, 12)), strict=True):
        pages = list(log.store.pages(payments, **bound))
        assert [p for page in pages for p in page.position.tolist()] == positions[chosen]
        assert [id for page in pages for id in page.ids] == list(whole.ids)[chosen]
        for name, column in whole.columns.items():
            assert [v for page in pages for v in page.columns[name].tolist()] == column[chosen].tolist()


def test_an_event_is_visible_once_its_write_returned(tested: StoreUnderTest):
    """To the same object, to another one, and to another process."""
    store, other = tested.open(), tested.open()
    receipt = pay(store, "a", 0)
    assert store.last_position() == other.last_position() == receipt.position
    assert [e.position for e in other.read()] == [receipt.position]
    assert tested.elsewhere(all_ids).result() == ["a"]
    load(store, paid("b", 1), reported("a", True, 2))
    assert ids(other) == tested.elsewhere(all_ids).result() == ["a", "b", "a"]


def test_a_reader_may_write_while_it_reads_and_comes_to_an_end(tested: StoreUnderTest):
    """What is written after the first entry was read is for the next reader."""
    store = tested.open()
    load(store, *(paid(f"p{k}", k / 10) for k in range(50)))
    passed = 0
    for entry in store.read():
        pay(store, f"after {entry.id}", 9)
        passed += 1
    assert passed == 50 and len(ids(store)) == 100
    for page in store.pages(payments):
        passed += len(page)
        pay(store, f"page {passed}", 9)
    assert passed == 150


def test_a_closed_store_has_everything_when_it_is_opened_again(tested: StoreUnderTest):
    store = tested.open()
    pay(store, "a", 0)
    hear(store, "a", True, 1)
    before = list(store.read())
    store = tested.reopen()
    assert list(store.read()) == before
    assert pay(store, "b", 2).position > before[-1].position


def test_another_store_has_nothing_of_this_one(tested: StoreUnderTest):
    pay(tested.open(), "a", 0)
    other = tested.fresh().open()
    assert other.last_position() == 0 and list(other.read()) == []
    assert other.accept(payments, payment("a", 0, amount=3.0), arrived=START).new


def test_a_time_may_lie_before_any_of_the_log(store: Store):
    """The order of the log is that of the writes, not that of the times."""
    for k, day in enumerate((5, 3, 4)):
        store.accept(payments, payment(f"p{k}", day), arrived=at(5))
    events = store.history([payments], []).events["payments"]
    assert list(events.ids) == ["p0", "p1", "p2"] and (np.diff(events.time) < 0).any()
    assert (events.arrived == START + 5 * DAY).all()
