"""Events that are accepted or loaded: once, as a whole or not at all; what is refused becomes a dead letter."""

import threading
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from batches import Sent, batch_of
from cards import (
    Payment,
    at,
    decided,
    features,
    frauds,
    ids,
    load,
    paid,
    pay,
    payment,
    payments,
    profiles,
    refunds,
    reported,
    visit,
    visits,
)
from elsewhere import all_ids
from logged_timelines import same_as_the_log
from stores import StoreUnderTest

import mlpkg as ml
from mlpkg.schema import ClockDiffers, Rejected
from mlpkg.store import Loaded, Refusal, Store
from mlpkg.times import DAY, HOUR, iso, now


def numbers(loaded: Loaded) -> tuple[int, int, int]:
    """How many rows of a batch were new, known, and reports that wait."""
    return sum(loaded.new.values()), loaded.known, loaded.waiting


def refusals(loaded: Loaded) -> list[tuple[int, str, int]]:
    return [(row, why.field, why.status) for row, why in loaded.refused]


# -- accept --------------------------------------------------------------------------------------------------------


def test_an_event_sent_twice_counts_once(store: Store):
    first = pay(store, "a", 0)
    log = list(store.read())
    again = store.accept(payments, payment("a", 0), arrived=at(2))
    assert (first.id, first.new, first.waiting) == ("a", True, False)
    assert (again.new, again.position) == (False, first.position)
    assert list(store.read()) == log, "the first arrival stays"


def test_an_event_may_be_text_bytes_or_a_mapping(store: Store):
    body = payment("a", 0)
    text = msgspec.json.encode(dict(reversed(body.items()))).decode()
    receipts = [store.accept(payments, form, arrived=at(0)) for form in (body, text, text.encode())]
    assert [receipt.new for receipt in receipts] == [True, False, False]
    entry = store.entry("payments", "a")
    assert entry and msgspec.json.decode(entry.body) == {"card": 1, "shop": "tea", "amount": 10.0}


def test_a_missing_field_says_the_same_as_null(store: Store):
    """A sender with an older contract repeats an event of a newer one, and the other way round."""
    body = payment("a", 0, shop=None)
    del body["shop"]
    assert store.accept(payments, body, arrived=at(0)).new

    class Tipped(Payment):
        tip: float | None = None

    newer = ml.Source("payments", Tipped, retention="90d", allowed_lateness="3d")
    assert not store.accept(payments, body | {"shop": None}, arrived=at(0)).new
    assert not store.accept(newer, body, arrived=at(0)).new
    assert not store.accept(newer, body | {"tip": None}, arrived=at(0)).new
    with pytest.raises(ml.Rejected, match="other content"):
        store.accept(newer, body | {"tip": 1.0}, arrived=at(0))


def test_other_content_under_an_id_is_refused_and_becomes_a_dead_letter(store: Store):
    pay(store, "a", 0)
    last = store.last_position()
    for day, changed in ((0, {"amount": 11.0}), (0, {"shop": None}), (1, {})):
        with pytest.raises(ml.Rejected, match="other content") as refused:
            store.accept(payments, payment("a", day, **changed), arrived=at(1))
        why = refused.value
        assert (why.status, why.event, why.source, why.dead) == (409, "a", "payments", True)
    assert store.last_position() == last
    letters = store.dead_letters()
    assert [(letter.source, letter.event, letter.field) for letter in letters] == [("payments", "a", "id")] * 3


def test_an_id_is_unique_in_its_stream(store: Store):
    assert pay(store, "a", 0).new
    assert store.accept(visits, visit("a", 0), arrived=at(0)).new
    assert store.accept(profiles, {"id": "a", "time": iso(at(0)), "card": 1}, arrived=at(0)).new
    assert [entry.source for entry in store.read()] == ["payments", "visits", "profiles"]
    for id in ("A", "a ", "a\x1f", "ä", "日本", "0", "a" * 200):
        try:
            assert pay(store, id, 0).new
        except ml.Rejected:
            continue  # the contract refuses it
        entry = store.entry("payments", id)
        assert entry and entry.id == id


def test_an_event_arrives_now_unless_something_else_is_said(store: Store):
    before = now()
    body = payment("a", 0) | {"time": iso(before - HOUR)}
    store.accept(payments, body)
    entry = store.entry("payments", "a")
    assert entry and before <= entry.arrived <= now()
    assert not store.accept(payments, body).new
    store.accept(payments, payment("b", 0), clock=at(1))
    entry = store.entry("payments", "b")
    assert entry and entry.arrived == at(1), "now is what the clock says"


def test_a_new_event_is_checked_against_the_clock_and_a_known_one_is_not(store: Store):
    """Three days after its time an event may arrive, and five minutes ahead of the clock."""
    for arrived, clock in ((at(4), at(4)), (at(-1), at(4)), (at(3), at(1))):
        with pytest.raises(ml.Rejected):
            store.accept(payments, payment("a", 0), arrived=arrived, clock=clock)
    assert store.last_position() == 0
    assert store.accept(payments, payment("a", 0), arrived=at(3), clock=at(3)).new
    assert not store.accept(payments, payment("a", 0), arrived=at(9), clock=at(9)).new


def test_a_wrong_event_becomes_a_dead_letter_and_what_is_no_json_does_not(store: Store):
    for body in (payment("a", 0, amount="x"), {"id": "b"}, payment("c", 0, odd=1), []):
        with pytest.raises(ml.Rejected) as refused:
            store.accept(payments, body, arrived=at(0))  # type: ignore[arg-type]
        assert refused.value.dead and refused.value.status == 422
    for text in ("", '{"id": "a"', b"\xff", "nothing"):
        with pytest.raises(ml.Rejected) as refused:
            store.accept(payments, text, arrived=at(0))
        assert not refused.value.dead and refused.value.status == 400
    assert len(store.dead_letters()) == 4 and store.last_position() == 0


# -- load ----------------------------------------------------------------------------------------------------------


def mixed() -> list[Sent]:
    """Events of three sources and reports of two outcomes, in no particular order; one report is about an event that never comes."""
    return [
        reported("b", True, 5),
        paid("a", 0),
        (visits, visit("v", 0.5), at(0.5)),
        reported("a", False, 3),
        paid("b", 1, shop=None),
        (refunds, {"id": "a", "refund": 2.5}, at(4)),
        (profiles, {"id": "x", "time": iso(at(0)), "card": 1, "segment": "new"}, at(1)),
        reported("nobody", True, 5),
        (profiles, {"id": "y", "time": iso(at(2)), "card": 1, "deleted": True}, at(2)),
    ]


def test_a_batch_goes_in_as_it_stands(store: Store):
    store.register("cards", features)
    loaded = load(store, *mixed())
    counts = {"payments": 2, "visits": 1, "profiles": 2, "payments.fraud": 3, "payments.refund": 1}
    assert (loaded.new, loaded.known, loaded.waiting, loaded.refused) == (counts, 0, 1, [])
    expected = [(stream.stream, body["id"], arrived) for stream, body, arrived in mixed()]
    assert [(e.source, e.id, e.arrived) for e in store.read()] == expected
    assert [entry.id for entry in store.waiting()] == ["nobody"]
    logged = {(e.source, e.id): e for e in store.read()}
    for id in ("a", "b"):
        assert logged["payments.fraud", id].about == logged["payments", id].position
    for stream, keys, columns, rows in (
        (payments, ("card",), ("amount", "shop"), 2),
        (payments, ("card", "shop"), (), 1),
        (profiles, ("card",), ("segment", "deleted"), 2),
        (frauds, ("shop",), ("fraud",), 1),
    ):
        assert same_as_the_log(store, stream, keys, columns) == rows


def test_a_batch_loaded_again_changes_nothing(tested: StoreUnderTest):
    for reopened in (False, True):
        store = tested.reopen() if reopened else tested.open()
        new, known, _ = numbers(load(store, *mixed()))
        assert (new, known) == ((0, 9) if reopened else (9, 0))
        assert len(ids(store)) == 9
    half = mixed()[:4]
    other = tested.fresh().open()
    load(other, *half)
    assert numbers(load(other, *mixed()))[:2] == (5, 4)
    assert sorted(ids(other)) == sorted(ids(store))


def test_the_first_of_an_id_counts_and_other_content_is_refused(store: Store):
    pay(store, "old", 0)
    rows = [paid("old", 0), paid("old", 0, amount=3.0), paid("a", 1), paid("a", 1), paid("a", 1, card=2), paid("a", 2)]
    loaded = load(store, *rows, paid("b", 1))
    assert numbers(loaded)[:2] == (2, 2)
    assert sorted(refusals(loaded)) == [(1, "id", 409), (4, "id", 409), (5, "id", 409)]
    assert ids(store) == ["old", "a", "b"] and store.dead_letters() == [], "the caller stores the dead letters"
    assert load(store, reported("a", True, 2), reported("a", False, 2)).refused[0][0] == 1


def test_a_report_in_the_row_of_a_refused_event_is_refused_with_it(store: Store):
    """A file may have an event and its label in one row."""
    pay(store, "a", 0)
    batch = batch_of([paid("a", 0, amount=3.0), reported("a", True, 1), paid("b", 0), reported("b", True, 1)])
    loaded = store.load(replace(batch, rows=np.array([7, 7, 8, 8])))
    assert numbers(loaded) == (2, 0, 0) and refusals(loaded) == [(7, "id", 409)]
    assert ids(store, "payments.fraud") == ["b"]


def test_arrivals_of_a_batch_are_checked_unless_it_is_trusted(store: Store):
    ahead = (now() - at(0)) / DAY + 1
    rows = [(*paid("late", 0)[:2], at(9)), paid("ahead", ahead), paid("fine", 0), reported("fine", True, ahead)]
    loaded = load(store, *rows)
    assert numbers(loaded)[0] == 1 and sorted(row for row, _ in loaded.refused) == [0, 1, 3]
    assert ids(store) == ["fine"]
    loaded = load(store, *rows, trusted=True)
    assert numbers(loaded)[:2] == (3, 1) and loaded.refused == []
    again = load(store, *rows)
    assert numbers(again)[:2] == (0, 4) and again.refused == [], "what is known is not checked again"


def test_a_batch_whose_ids_or_bodies_are_no_texts_is_refused_as_a_whole(store: Store):
    batch = batch_of([paid("a", 0), paid("b", 0)])
    wrong: Any
    for wrong in (replace(batch, ids=["a", 7]), replace(batch, bodies=[batch.bodies[0], b"{}"])):
        with pytest.raises(TypeError):
            store.load(wrong)
    assert store.last_position() == 0


def test_a_batch_without_rows_changes_nothing(store: Store):
    none = np.zeros(0, np.int64)
    empty = replace(batch_of([paid("a", 0)]), stream=none, ids=[], time=none, arrived=none, bodies=[], rows=none)
    loaded = store.load(replace(empty, codes={"payments": np.zeros((0, 3), np.int64)}))
    assert numbers(loaded) == (0, 0, 0) and store.last_position() == 0


@pytest.mark.parametrize("count", [400, 2000])
def test_a_batch_is_seen_as_a_whole_or_not_at_all(tested: StoreUnderTest, count: int):
    """Of a batch that takes long, a store on servers may show the first part, but no hole."""
    store, reader = tested.open(), tested.open()
    batch = batch_of([paid(f"p{k}", k / 100) for k in range(count)])
    done, views = threading.Event(), list[list[str]]()

    def look() -> None:
        while not done.is_set():
            views.append([entry.id for entry in reader.read(until=reader.last_position())])

    thread = threading.Thread(target=look)
    thread.start()
    store.load(batch)
    done.set()
    thread.join()
    assert all(view == batch.ids[: len(view)] for view in views)
    if count == 400 or not tested.kind.servers:
        assert {len(view) for view in views} <= {0, count}
    assert tested.elsewhere(all_ids).result() == batch.ids


def test_a_batch_and_single_events_know_each_other(store: Store):
    store.register("cards", features)
    pay(store, "a", 0)
    row = payments.parse(payment("b", 1))
    with store.decision("cards", payments, row, at(1)) as decision:
        decision.record('{"score":0.5,"action":"go"}')
    load(store, paid("c", 2), reported("a", True, 3))
    assert numbers(load(store, *(paid(id, k) for k, id in enumerate("abc")))) == (0, 3, 0)
    assert not pay(store, "c", 2).new
    assert not store.report(frauds, {"id": "a", "fraud": True}).new
    with store.decision("cards", payments, row, at(1)) as decision:
        assert decision.recorded is not None
    assert ids(store) == ["a", "b", "b", "c", "a"]
    assert same_as_the_log(store, payments, ("card",), ("amount",)) == 3
    assert same_as_the_log(store, decided, ("card",), ("action",)) == 1


# -- dead letters --------------------------------------------------------------------------------------------------


def test_a_dead_letter_has_the_event_and_the_reason(tested: StoreUnderTest):
    store = tested.open()
    before = tested.settings.now()
    why = Rejected("amount", -1, "is below 0", event="a")
    store.add_dead_letter("payments", {"id": "a", "amount": -1}, why, row=4)
    assert why.dead
    for opening in (tested.open, tested.reopen):
        (letter,) = opening().dead_letters()
        assert (letter.source, letter.row, letter.event, letter.field) == ("payments", 4, "a", "amount")
        assert (letter.value, letter.reason) == ("-1", "is below 0")
        assert msgspec.json.decode(letter.body) == {"id": "a", "amount": -1}
        assert before <= letter.at <= tested.settings.now()


def test_dead_letters_have_an_order(store: Store):
    refused = [
        Refusal("payments", f'{{"id":"r{k}"}}', Rejected("amount", k, "is wrong", event=f"r{k}")) for k in range(9)
    ]
    store.add_dead_letters(refused[:5])
    for refusal in refused[5:]:
        store.add_dead_letter(*refusal)
    assert [letter.event for letter in store.dead_letters()] == [f"r{k}" for k in range(9)]
    assert store.latest_dead_letters(3) == store.dead_letters()[:-4:-1]
    assert store.latest_dead_letters(99) == store.dead_letters()[::-1]
    assert store.latest_dead_letters(0) == []
    assert store.last_position() == 0, "they are not in the log"


def test_dead_letters_are_stored_together(store: Store):
    """If one cannot be made, none is stored."""

    def broken() -> Any:
        yield Refusal("payments", "{}", Rejected("amount", 1, "is wrong", event="a"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.add_dead_letters(broken())
    store.add_dead_letters([])
    assert store.dead_letters() == []


def test_what_is_no_json_is_no_dead_letter(store: Store):
    store.add_dead_letter("payments", "nothing", Rejected("", None, "is not JSON", status=400))
    assert store.dead_letters() == []


def test_a_sender_with_a_wrong_clock_leaves_one_dead_letter(store: Store):
    """It would repeat its event until the clocks agree."""
    why = ClockDiffers("time", "lies ahead of the clock", time=9, clock=1, event="a", source="payments")
    for _ in range(3):
        store.add_dead_letter("payments", {"id": "a"}, why)
    for _ in range(2):
        store.add_dead_letter("payments", {"id": "b"}, Rejected("amount", 1, "is wrong", event="b"))
    assert [letter.event for letter in store.dead_letters()] == ["a", "b", "b"]


def test_a_token_is_removed_from_a_dead_letter(store: Store):
    token = f"mlpkg_0123456789ab_{'x' * 43}"
    store.add_dead_letter("payments", {"id": "a", "note": token}, Rejected("note", token, "is unknown", event="a"))
    (letter,) = store.dead_letters()
    assert token not in str(letter) and letter.event == "a"
