"""Reports about events: late, twice, corrected, contradictory, or before their event. What counts does not depend on the order."""

import itertools
from typing import Any

import handbook
import msgspec
import pytest
from bank import START, Bank
from cards import (
    at,
    check_decisions,
    decide,
    features,
    fraud,
    frauds,
    hear,
    load,
    paid,
    pay,
    payment,
    payments,
    refunds,
    reported,
    visit,
    visits,
)
from elsewhere import pay_and_list_waiting
from logged_timelines import asks, same_as_the_log
from stores import StoreUnderTest

import mlpkg as ml
from mlpkg.decisions import verify
from mlpkg.store import Store
from mlpkg.times import DAY, now

Report = tuple[int, int, bool]  # truth, arrival, whether it corrects


def reports_of(store: Store) -> dict[str, list[Report]]:
    """The reports that the history has, by event, in the order of precedence."""
    history = store.history([payments], [frauds])
    events, reports = history.events["payments"], history.reports["payments.fraud"]
    ids = dict(zip(events.position.tolist(), events.ids, strict=True))
    columns = (reports.about, reports.columns["fraud"], reports.arrived, reports.corrects)
    found: dict[str, list[Report]] = {}
    for about, truth, arrived, corrects in zip(*(c.tolist() for c in columns), strict=True):
        found.setdefault(ids[about], []).append((truth, arrived, bool(corrects)))
    return found


def held(store: Store, card: int) -> list[int]:
    """The truths in the timeline of a card."""
    return store.timeline("payments.fraud", "card", card).columns["fraud"].tolist()


BY_CARD = asks((frauds, ("card",), ("about", "fraud")))


@pytest.fixture
def store(tested: StoreUnderTest) -> Store:
    """A new store with the timelines of frauds by card."""
    made = tested.open()
    made.register("cards", BY_CARD)
    return made


# -- one report ----------------------------------------------------------------------------------------------------


def test_a_report_is_about_its_event(store: Store):
    event = pay(store, "a", 0)
    receipt = hear(store, "a", True, 1)
    assert (receipt.id, receipt.new, receipt.waiting) == ("a", True, False) and receipt.position > event.position
    entry = store.entry("payments.fraud", "a")
    assert entry and (entry.position, entry.about, entry.arrived) == (receipt.position, event.position, at(1))
    assert held(store, 1) == [1] and store.waiting() == []


def test_a_report_sent_again_changes_nothing(store: Store):
    pay(store, "a", 0)
    first = hear(store, "a", True, 1)
    last = store.last_position()
    again = hear(store, "a", True, 30)
    assert (again.new, again.position, store.last_position()) == (False, first.position, last)
    assert reports_of(store) == {"a": [(1, at(1), False)]}


def test_a_contradicting_report_is_a_conflict_and_changes_nothing(store: Store):
    pay(store, "a", 0)
    hear(store, "a", True, 1)
    last = store.last_position()
    with pytest.raises(ml.Rejected) as refused:
        hear(store, "a", False, 2)
    assert (refused.value.status, refused.value.event, refused.value.source) == (409, "a", "payments.fraud")
    assert refused.value.dead and [letter.event for letter in store.dead_letters()] == ["a"]
    assert store.last_position() == last and reports_of(store) == {"a": [(1, at(1), False)]}


def test_a_report_about_nothing_or_of_nothing_is_refused_and_becomes_a_dead_letter(store: Store):
    pay(store, "a", 0)
    last = store.last_position()
    refused: dict[str, list[dict[str, Any]]] = {
        "Fraud.id": [{}, {"fraud": True}, {"id": "", "fraud": True}],
        "Fraud.fraud": [{"id": "a"}, *({"id": "a", "fraud": value} for value in (None, "yes", 1))],
        "Fraud.time": [{"id": "a", "fraud": True, "time": "2018-04-01T00:00:00Z"}],
    }
    for field, bodies in refused.items():
        for body in bodies:
            before = len(store.dead_letters())
            with pytest.raises(ml.Rejected) as why:
                store.report(frauds, body)
            assert (why.value.field, why.value.status, why.value.source) == (field, 422, "payments.fraud")
            assert len(store.dead_letters()) == before + 1
    assert store.last_position() == last and store.waiting() == []


def test_a_report_may_not_arrive_ahead_of_the_clock(store: Store):
    pay(store, "a", 0)
    with pytest.raises(ml.Rejected, match="ahead of the clock"):
        store.report(frauds, fraud("a"), arrived=at(9), clock=at(5))
    assert store.report(frauds, fraud("a"), arrived=at(5), clock=at(5)).new


def test_outcomes_of_one_source_are_apart(store: Store):
    pay(store, "a", 0)
    hear(store, "a", True, 1)
    assert store.report(refunds, {"id": "a", "refund": 3.0}, arrived=at(2)).new
    history = store.history([payments], [frauds, refunds])
    assert [history.reports[f"payments.{name}"].columns[name].tolist() for name in ("fraud", "refund")] == [[1], [300]]


# -- before the event ----------------------------------------------------------------------------------------------


def test_a_report_waits_for_its_event(store: Store):
    receipt = hear(store, "a", True, 0)
    assert receipt.new and receipt.waiting
    (waiting,) = store.waiting()
    assert (waiting.source, waiting.id, waiting.about) == ("payments.fraud", "a", None)
    assert (waiting.position, msgspec.json.decode(waiting.body)) == (receipt.position, {"fraud": True})
    assert held(store, 1) == [] and reports_of(store) == {}
    again = hear(store, "a", True, 0)
    assert (again.new, again.waiting, again.position) == (False, True, receipt.position)
    event = pay(store, "a", 1)
    assert store.waiting() == [] and held(store, 1) == [1]
    entry = store.entry("payments.fraud", "a")
    assert entry and (entry.about, entry.position, entry.arrived) == (event.position, receipt.position, at(0))


def test_a_waiting_report_may_not_be_contradicted(store: Store):
    hear(store, "a", True, 0)
    with pytest.raises(ml.Rejected, match="other content"):
        hear(store, "a", False, 0)
    assert len(store.waiting()) == 1


def test_a_waiting_report_survives_the_process(tested: StoreUnderTest, store: Store):
    hear(store, "a", True, 0)
    again = tested.reopen()
    assert [entry.id for entry in again.waiting()] == ["a"]
    assert tested.elsewhere(pay_and_list_waiting, "a", 1).result() == []
    assert again.waiting() == [] and held(again, 1) == [1]


def test_reports_wait_in_the_order_of_the_log(store: Store):
    for id in ("c", "a", "b"):
        hear(store, id, True, 1)
    store.report(refunds, {"id": "c", "refund": 1.0}, arrived=at(1))
    pay(store, "a", 1)
    waiting = [(entry.source, entry.id) for entry in store.waiting()]
    assert waiting == [("payments.fraud", "c"), ("payments.fraud", "b"), ("payments.refund", "c")]


def test_a_correction_may_wait_too(store: Store):
    hear(store, "a", True, 0)
    assert hear(store, "a", False, 1, corrects=True).waiting
    load(store, *(paid(id, 2) for id in ("a", "b")))
    assert held(store, 1) == [0] and store.waiting() == []
    assert reports_of(store) == {"a": [(1, at(0), False), (0, at(1), True)]}


def test_the_event_may_come_as_a_decision_or_with_a_batch(store: Store):
    """However it comes, the report takes effect with it."""
    for id in ("a", "b", "c"):
        hear(store, id, True, 0)
    pay(store, "a", 1)
    load(store, paid("b", 1))
    with store.decision("cards", payments, payments.parse(payment("c", 1)), at(1)):
        pass
    assert held(store, 1) == [1, 1, 1] and store.waiting() == []


# -- corrections ---------------------------------------------------------------------------------------------------


def test_a_correction_supersedes_what_was_reported(store: Store):
    """The timeline holds what is true now, the log every version."""
    for id in ("a", "b"):
        pay(store, id, 0)
    first = hear(store, "a", True, 1)
    second = hear(store, "a", False, 2, corrects=True)
    again = hear(store, "a", False, 2, corrects=True)
    assert not store.report(frauds, fraud("a", False, True)).new, "now it says what holds"
    assert (second.new, again.new, again.position) == (True, False, second.position)
    assert not store.report(frauds, fraud("a", True)).new, "the first one sent again is known"
    with pytest.raises(ml.Rejected, match="other content"):
        store.report(frauds, fraud("a", False))
    third = hear(store, "a", True, 4, corrects=True)
    rows = store.timeline("payments.fraud", "card", 1)
    assert (rows.columns["fraud"].tolist(), rows.position.tolist()) == ([1], [third.position])
    reports = store.history([payments], [frauds]).reports["payments.fraud"]
    assert reports.columns["fraud"].tolist() == [1, 0, 1]
    assert reports.known.tolist() == [first.position, second.position, third.position]
    assert [e.id for e in store.read(streams=["payments.fraud"])] == ["a"] * 3
    assert same_as_the_log(store, frauds, ("card",), ("fraud",)) == 1
    store.register("cards", asks((frauds, ("shop",), ("fraud",))))
    assert same_as_the_log(store, frauds, ("shop",), ("fraud",)) == 1


def test_a_report_after_its_correction_is_taken_and_undoes_nothing(store: Store):
    load(store, paid("a", 0))
    store.report(frauds, fraud("a", False, True))
    assert store.report(frauds, fraud("a", True)).new
    assert not store.report(frauds, fraud("a", True)).new
    with pytest.raises(ml.Rejected, match="other content"):
        store.report(frauds, fraud("a", False))
    assert held(store, 1) == [0]


def test_a_correction_sent_now_holds_also_where_the_clock_was_set_back(store: Store):
    ahead = now() + DAY  # the clock was a day ahead when this was said
    pay(store, "a", 0)
    for truth, corrects in ((True, False), (False, True)):
        store.report(frauds, fraud("a", truth, corrects), clock=ahead)
    store.report(frauds, fraud("a", True, True))
    assert held(store, 1) == [1]
    assert [arrived - ahead for _, arrived, _ in reports_of(store)["a"]] == [0, 1, 2]


# -- in any order, in batches --------------------------------------------------------------------------------------

ORDERS = list(itertools.permutations(range(4)))


def check_stories(store: Store, stories: list[list[Any]], at_once: bool, expected: list[Report]) -> None:
    """Load stories of four rows, each about a payment by a card of its own; all come out alike, and what is repeated is known."""
    rows = [row for story in stories for row in story]
    for batch in [rows] if at_once else [[story[k] for story in stories] for k in range(4)]:
        assert not load(store, *batch).refused
        assert load(store, *batch).known == len(batch), "what is loaded again is known"
    assert reports_of(store) == {f"p{n}": expected for n in range(len(stories))}
    assert [held(store, n) for n in range(len(stories))] == [[expected[-1][0]]] * len(stories)
    assert store.waiting() == []
    store.register("later", asks((frauds, ("shop", "card"), ("about", "fraud"))))
    assert same_as_the_log(store, frauds, ("shop", "card"), ("about", "fraud")) == len(stories)
    assert same_as_the_log(store, frauds, ("card",), ("about", "fraud")) == len(stories)


@pytest.mark.parametrize("at_once", [True, False])
def test_corrections_mean_the_same_in_whatever_order_they_are_loaded(store: Store, at_once: bool):
    """The event may be loaded last, first or in between, and a correction before the report that it corrects."""
    stories = []
    for n, order in enumerate(ORDERS):
        id = f"p{n}"
        reports = [reported(id, True, 3), reported(id, False, 5, True), reported(id, True, 6, True)]
        stories.append([[paid(id, 0, card=n), *reports][i] for i in order])
    check_stories(store, stories, at_once, [(1, at(3), False), (0, at(5), True), (1, at(6), True)])


def test_a_correction_that_does_not_say_when_it_arrived_repeats_none_with_an_arrival_of_its_own(store: Store):
    """Both have the same content; the one without an arrival counts from the maturity of the outcome on, after seven days."""
    stories = []
    for n, order in enumerate(ORDERS):
        id = f"p{n}"
        reports = [reported(id, True, 3), reported(id, False, 12, True), reported(id, False, None, True)]
        stories.append([[paid(id, 0, card=n), *reports][i] for i in order])
    check_stories(store, stories, False, [(1, at(3), False), (0, at(7), True), (0, at(12), True)])


@pytest.mark.parametrize("event_first", [True, False])
@pytest.mark.parametrize("by", ["load", "accept"])
def test_a_report_without_arrival_arrived_the_outcomes_delay_after_its_event(store: Store, event_first: bool, by: str):
    """Also where it waits for its event, which comes later in the log."""
    for what in ("event", "report") if event_first else ("report", "event"):
        if what == "report":
            load(store, reported("a", True, None))
        elif by == "load":
            load(store, paid("a", 0))
        else:
            pay(store, "a", 0)
        (waits,) = store.waiting() or [None]
        assert waits is None or 0 <= waits.time <= waits.arrived <= now(), "harmless until then"
    assert reports_of(store) == {"a": [(1, at(7), False)]} and held(store, 1) == [1]
    entry = store.entry("payments.fraud", "a")
    assert entry and (entry.time, entry.arrived) == (at(7), at(7))


def test_a_report_without_arrival_did_not_arrive_in_the_future(store: Store):
    yesterday = (now() - at(0)) / DAY - 1
    load(store, paid("a", yesterday), reported("a", True, None), reported("b", True, None))
    load(store, paid("b", yesterday))
    arrivals = [arrived for reports in reports_of(store).values() for _, arrived, _ in reports]
    assert len(arrivals) == 2 and all(at(yesterday) < arrived <= now() for arrived in arrivals)


@pytest.mark.parametrize("entry_between", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_report_that_waited_for_its_event_stands_before_the_next_entry_of_the_log(
    store: Store, entry_between: bool, at_once: bool
):
    """Both are about payments of the same time, and both count from the same position where no entry lies between."""
    store.register("refunds", asks((refunds, ("card",), ("about", "refund"))))
    waits, follows = ((refunds, {"id": id, "refund": amount}, at(1)) for id, amount in (("b", 2.0), ("a", 1.0)))
    between = [(visits, visit("v", 0), at(0))] if entry_between else []
    sent = [paid("a", 0), waits, paid("b", 0), *between, follows]
    for batch in [sent] if at_once else [[row] for row in sent]:
        assert not load(store, *batch).refused
    order = store.timeline("payments.refund", "card", 1).columns["about"].tolist()
    entries = [store.entry("payments", id) for id in "ba"]
    assert order == [entry.position for entry in entries if entry]
    store.register("refunds", asks((refunds, ("card",), ("amount", "refund"))))
    timeline = store.timeline("payments.refund", "card", 1)
    assert "amount" in timeline.columns and timeline.columns["about"].tolist() == order


def test_a_batch_may_hold_corrections(store: Store):
    load(store, *(paid(f"p{k}", 0, card=k) for k in range(5)))
    batch = [reported("p1", True, 1), reported("p2", True, 1), reported("p1", False, 2, True), reported("p3", True, 1)]
    loaded = load(store, *batch)
    assert (loaded.new, loaded.known, loaded.waiting) == ({"payments.fraud": 4}, 0, 0)
    assert same_as_the_log(store, frauds, ("card",), ("fraud",)) == 3
    assert load(store, *batch).known == 4
    assert held(store, 1) == [0]


# -- in decisions --------------------------------------------------------------------------------------------------


def test_a_late_report_corrects_what_was_presumed_from_then_on(bank: Bank):
    bank.pays("old", 0)
    before = bank.pays("a", 8)
    assert (before.features["terminal_n_tx_7d"], before.features["terminal_risk_7d"]) == (1, 0.0)
    bank.hears("old", True, 9)
    assert bank.pays("b", 10).features["terminal_risk_7d"] == 1.0
    assert bank.pays("a", 8) == before
    assert verify(bank.case, bank.store).mismatches == 0


def test_an_outcome_counts_from_its_place_in_the_log_not_from_the_time_it_names(bank: Bank):
    """Two payments of one moment, and the report between them: only the second can have known."""
    bank.pays("old", 0)
    first = bank.pays("a", 8)
    bank.hears("old", True, 8)
    second = bank.pays("b", 8)
    assert (first.features["terminal_risk_7d"], second.features["terminal_risk_7d"]) == (0.0, 1.0)
    assert verify(bank.case, bank.store).mismatches == 0


def test_a_report_never_counts_for_the_decision_on_its_own_event(early_bank: Bank):
    """Not if it waited, and not in a decision that is asked for again, or first asked for, after the report."""
    assert early_bank.hears("fast", True, 0).waiting
    assert early_bank.pays("fast", 1).features["known_n_30d"] == 0
    assert early_bank.pays("next", 1).features["known_risk_30d"] == 1.0, "the next entry of the log sees it"
    body = early_bank.payment("late", 1, terminal_id=8)
    early_bank.store.accept(handbook.transactions, body, arrived=START + DAY)
    early_bank.hears("late", True, 1)
    decision = early_bank.decider.decide(body, arrived=START + DAY)
    assert decision.features["known_n_30d"] == 0
    assert early_bank.decider.decide(body) == decision
    assert verify(early_bank.case, early_bank.store).mismatches == 0


def test_a_report_that_waited_is_in_no_tile_of_its_own_event(store: Store):
    """The card has so many refunds that a store may sum them up; the refund of the payment that is decided must not be among them."""
    store.register("cards", features)
    many = [f"p{k}" for k in range(6000)]
    load(store, *(paid(id, k / 200) for k, id in enumerate(many)))
    load(store, *((refunds, {"id": id, "refund": 1.0}, at(30)) for id in many))
    store.report(refunds, {"id": "own", "refund": 500.0}, arrived=at(30))
    own, following = (decide(store, id, 29.999) for id in ("own", "next"))
    counts = [float.fromhex(seen.features["refunds_n_30d"]) for seen in (own, following)]
    sums = [float.fromhex(seen.features["refunds_sum_30d"]) for seen in (own, following)]
    assert counts == [6000, 6001] and sums == [6000.0, 6500.0]
    assert check_decisions(store) == 2


def test_features_over_reports_are_those_of_the_whole_use_case(store: Store):
    """Registering the whole use case beside these timelines leaves them as they are."""
    pay(store, "a", 0)
    hear(store, "a", True, 1)
    store.register("cards", features)
    assert held(store, 1) == [1] and same_as_the_log(store, frauds, ("shop",), ("about", "fraud")) == 1
