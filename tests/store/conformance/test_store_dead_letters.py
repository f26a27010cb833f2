"""Dead letters that are sent again: each counts once, and none is lost."""

from typing import Any

import pytest
from cards import at, case, features, fraud, frauds, ids, pay, payment, payments
from elsewhere import retry_all
from stores import StoreUnderTest

from mlpkg.engine.columns import text_code
from mlpkg.errors import MlpkgError
from mlpkg.schema import Rejected
from mlpkg.store import DeadLetter, Store


@pytest.fixture
def store(tested: StoreUnderTest) -> Store:
    store = tested.open()
    store.register(case.name, features)
    return store


def refused(store: Store, id: str, day: float, **fields: Any) -> DeadLetter:
    """The letter of a payment that is refused."""
    with pytest.raises(Rejected):
        pay(store, id, day, **fields)
    return store.latest_dead_letters(1)[0]


def test_a_mended_event_is_in_the_log_and_its_letter_stays(store: Store, tested: StoreUnderTest):
    letter, other = refused(store, "a", 1, amount="much"), refused(store, "b", 1, amount=-1)
    receipt = store.retry_dead_letter(letter.number, payments, payment("a", 1), arrived=at(2), clock=at(2))
    (entry,) = store.read()
    assert receipt.new and (entry.position, entry.id, entry.arrived) == (receipt.position, "a", at(2))
    assert len(store.timeline("payments", "card", 1)) == 1

    store = tested.reopen()
    assert store.dead_letters() == [other] == store.latest_dead_letters(9)
    (done,) = store.dead_letters(retried=True)
    assert (done.number, done.body, done.position, done.retried) == (letter.number, letter.body, entry.position, at(2))
    assert store.dead_letter(letter.number) == done and store.count_dead_letters() == {"payments": 1}


def test_a_letter_that_is_retried_twice_counts_once(store: Store):
    letter = refused(store, "a", 1, amount="much")
    first = store.retry_dead_letter(letter.number, payments, payment("a", 1), arrived=at(1))
    # also with another id, and with a body that would be refused
    for body in (payment("a", 1), payment("a2", 1), payment("a", 1, amount="much")):
        again = store.retry_dead_letter(letter.number, payments, body, arrived=at(1))
        assert (again.new, again.position, again.id) == (False, first.position, "a")
    assert ids(store) == ["a"] and len(store.dead_letters(retried=True)) == 1


def test_an_event_that_is_refused_again_stays_with_the_new_reason(store: Store):
    letter = refused(store, "a", 1, amount="much")
    with pytest.raises(Rejected, match="below 0"):
        store.retry_dead_letter(letter.number, payments, payment("a", 1, amount=-1), arrived=at(1))
    (still,) = store.dead_letters()
    assert (still.number, still.body, still.at) == (letter.number, letter.body, letter.at)
    assert (still.value, still.reason) == ("-1", "is below 0") and ids(store) == []


def test_an_event_that_arrives_too_late_is_refused_again(store: Store):
    letter = refused(store, "a", 1, amount="much")
    with pytest.raises(Rejected, match="more than 3d before"):
        store.retry_dead_letter(letter.number, payments, payment("a", 1), clock=at(9))
    assert "more than 3d" in store.dead_letters()[0].reason and ids(store) == []


def test_an_id_that_was_used_meanwhile(store: Store):
    """The same event is known, another one is in the way."""
    letters = [refused(store, "a", 1, amount="much"), refused(store, "b", 1, amount="much")]
    known = pay(store, "a", 1)
    pay(store, "b", 1, amount=3.0)
    receipt = store.retry_dead_letter(letters[0].number, payments, payment("a", 1), arrived=at(1))
    assert (receipt.new, receipt.position) == (False, known.position)
    with pytest.raises(Rejected, match="other content"):
        store.retry_dead_letter(letters[1].number, payments, payment("b", 1), arrived=at(1))
    assert [(d.event, d.reason) for d in store.dead_letters()] == [("b", "was used before for other content")]
    assert ids(store) == ["a", "b"]


def test_a_report_is_retried_and_a_correction_counts_once(store: Store):
    pay(store, "a", 1)
    with pytest.raises(Rejected):
        store.report(frauds, {"id": "a", "fraud": "no", "corrects": True}, arrived=at(2))
    (letter,) = store.dead_letters("payments.fraud")
    mended = fraud("a", False, corrects=True)
    first = store.retry_dead_letter(letter.number, frauds, mended, clock=at(2))
    store.report(frauds, fraud("a", True, corrects=True), clock=at(3))
    again = store.retry_dead_letter(letter.number, frauds, mended, clock=at(4))
    assert (first.new, again.new, again.position) == (True, False, first.position)
    held = store.timeline("payments.fraud", "shop", text_code("tea")).columns["fraud"].tolist()
    assert held == [1], "the later correction holds"


def test_a_letter_of_another_source_or_of_none_is_not_retried(store: Store):
    letter = refused(store, "a", 1, amount="much")
    for number, stream in ((letter.number, frauds), (letter.number + 1, payments)):
        with pytest.raises(MlpkgError, match="has no dead letter"):
            store.retry_dead_letter(number, stream, payment("a", 1), arrived=at(1))
    assert store.dead_letters() == [letter] and ids(store) == []


def test_letters_come_in_pages_and_by_source(store: Store):
    for k in range(5):
        refused(store, f"p{k}", 1, amount="much")
        with pytest.raises(Rejected):
            store.report(frauds, {"id": f"p{k}"}, arrived=at(1))
    numbers = [letter.number for letter in store.dead_letters()]
    assert numbers == sorted(set(numbers)) and store.count_dead_letters() == {"payments": 5, "payments.fraud": 5}
    page = store.dead_letters("payments", most=2)
    rest = store.dead_letters("payments", after=page[-1].number, most=9)
    assert [letter.event for letter in page + rest] == [f"p{k}" for k in range(5)]
    assert [letter.event for letter in store.latest_dead_letters(2, "payments.fraud")] == ["p4", "p3"]
    assert store.dead_letters("visits") == []


def test_two_people_that_retry_at_once_count_once(store: Store, tested: StoreUnderTest):
    for k in range(100):
        refused(store, f"a{k}", 1, amount="much")
    # each gives the events ids of its own, so that only the mark of the letter keeps them apart
    new = sum(future.result() for future in [tested.elsewhere(retry_all, name) for name in ("x", "y")])
    assert new == 100 and len(ids(store)) == 100 and store.dead_letters() == []
    assert len(store.timeline("payments", "card", 1)) == 100
    assert {letter.position for letter in store.dead_letters(retried=True)} == {e.position for e in store.read()}
