"""A decision is one transaction: it sees its own event and all before it, and nothing later; it happens once, as a whole or not at all."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from typing import Any, NamedTuple

import handbook
import msgspec
import numpy as np
import pytest
from bank import START, Bank
from cards import (
    at,
    check_decisions,
    decide,
    decided,
    features,
    hear,
    ids,
    load,
    paid,
    pay,
    payment,
    payments,
    see,
    visit,
    visits,
)
from elsewhere import all_ids, decide_one
from logged_timelines import asks, same_as_the_log
from stores import StoreUnderTest

import mlpkg as ml
from mlpkg.decisions import Decider, Decision, verify
from mlpkg.engine.columns import NULL, text_code
from mlpkg.engine.tiles import KNOWN, MAX, MIN, SUM, Tiles
from mlpkg.engine.timeline import Timeline, as_timeline
from mlpkg.store import DecisionTransaction, Store
from mlpkg.times import DAY, HOUR


@pytest.fixture
def store(tested: StoreUnderTest) -> Store:
    """A new store with the timelines of the use case."""
    made = tested.open()
    made.register("cards", features)
    return made


def rows_of(decision: DecisionTransaction, card: int = 1, since: int = 0) -> Timeline:
    """The rows of a card that a decision reads, later than `since`."""
    rows = as_timeline(decision.read("payments", "card", card, since))
    later = np.flatnonzero(rows.time > since)
    return rows.take(later, np.array([0, len(later)]))


def entered(store: Store, id: str, day: float, **fields: Any) -> Any:
    """The transaction of a payment that arrives at its time."""
    return store.decision("cards", payments, payments.parse(payment(id, day, **fields)), at(day))


# -- what a decision sees ------------------------------------------------------------------------------------------


def test_a_decision_sees_its_own_event_and_all_before_it(store: Store):
    for k in range(3):
        pay(store, f"p{k}", k, amount=k + 1)
    pay(store, "another", 2, card=2)
    with entered(store, "own", 3, amount=4) as decision:
        rows = rows_of(decision)
        assert rows.columns["amount"].tolist() == [100, 200, 300, 400]
        assert rows.position[-1] == decision.event_position == decision.log_position
        assert decision.recorded is None
        assert rows_of(decision, card=2).columns["amount"].tolist() == [1000]
        assert len(rows_of(decision, card=3)) == 0
        position = decision.record('{"score":0.5,"action":"go"}')
    assert decision.event_position < position == store.last_position()


def test_a_decision_is_an_entry_about_its_event(store: Store):
    seen = decide(store, "a", 1, arrived=1.5)
    entry, event = store.entry(decided.stream, "a"), store.entry("payments", "a")
    assert entry and event and entry.about == event.position == seen.event_position < entry.position
    assert (entry.source, entry.id, entry.time, entry.arrived) == (decided.stream, "a", at(1), at(1.5))
    assert msgspec.json.decode(entry.body)["features"] == seen.features
    assert [a.tolist() for a in store.decided("cards")] == [[event.position], [seen.log_position]]
    assert ids(store) == ["a", "a"], "nothing else was written"


def test_what_comes_later_is_not_seen(store: Store):
    """Neither a later payment of an earlier time, nor a report about it."""
    pay(store, "old", 1)
    first = decide(store, "a", 2)
    pay(store, "late", 1.5)
    hear(store, "old", True, 2)
    second = decide(store, "b", 2)
    assert [s.features["card_n_30d"] for s in (first, second)] == [(2.0).hex(), (4.0).hex()]
    assert [s.features["risk_n_30d"] for s in (first, second)] == [(0.0).hex(), (1.0).hex()]
    assert check_decisions(store) == 2


def test_a_decision_sees_the_decisions_before_it(store: Store):
    seen = [decide(store, f"p{k}", k, amount=20 * k) for k in range(5)]
    assert [float.fromhex(s.features["acted_n_30d"]) for s in seen] == [0, 1, 2, 3, 4]
    actions = [s.features["acted_action_30d"] for s in seen]
    codes = [float(text_code(action)).hex() for action in ("go", "stop")]
    assert actions == ["null", codes[0], codes[0], codes[0], codes[1]]
    assert check_decisions(store) == 5


def test_a_decision_in_another_process_sees_what_was_decided_here(tested: StoreUnderTest, store: Store):
    seen = [decide(store, "a", 1), tested.elsewhere(decide_one, "b", 2).result(), decide(store, "c", 3)]
    assert [float.fromhex(s.features["card_n_30d"]) for s in seen] == [1, 2, 3]
    assert tested.elsewhere(decide_one, "a", 1).result().recorded is not None
    assert check_decisions(store) == 3


def test_an_entity_without_a_key_has_an_empty_timeline(store: Store):
    with entered(store, "a", 1) as decision:
        rows = as_timeline(decision.read("payments", "card", NULL, 0))
        assert len(rows) == 0 and {"amount", "shop"} <= {*rows.columns}
    seen = decide(store, "b", 2, shop=None)
    assert seen.features["pair_since_30d"] == "null" and check_decisions(store) == 1


def test_several_entities_are_read_end_to_end(store: Store):
    for k in range(9):
        pay(store, f"p{k}", k, card=k % 3)
    with entered(store, "own", 9, card=1) as decision:
        rows = decision.read_many("payments", "card", [2, 7, 1, 2], -(2**62))
        pieces = [rows.time[a:b].tolist() for a, b in pairwise(rows.starts.tolist())]
        assert pieces == [[at(k) for k in (2, 5, 8)], [], [at(k) for k in (1, 4, 7, 9)], [at(k) for k in (2, 5, 8)]]


# -- once ----------------------------------------------------------------------------------------------------------


def test_the_same_event_again_has_the_recorded_decision(store: Store):
    """However much later, and whatever was written meanwhile; nothing more is stored."""
    first = decide(store, "a", 1)
    entry = store.entry(decided.stream, "a")
    decide(store, "b", 2)
    log = list(store.read())
    again = decide(store, "a", 1, arrived=30)
    assert entry and again.recorded == entry.body and again.event_position == first.event_position
    assert again.log_position >= entry.position, "it sees its decision, too"
    assert list(store.read()) == log and check_decisions(store) == 2


def test_an_event_that_is_known_but_undecided_is_decided_once(store: Store):
    """It stays where it is in the log; the decision sees the log up to now."""
    event = pay(store, "a", 1)
    pay(store, "b", 1)
    hear(store, "b", True, 1)
    last = store.last_position()
    seen = decide(store, "a", 1)
    assert (seen.event_position, seen.recorded) == (event.position, None) and seen.log_position >= last
    assert [seen.features[f"{name}_n_30d"] for name in ("card", "risk")] == [(2.0).hex(), (1.0).hex()]
    assert decide(store, "a", 1).recorded is not None and check_decisions(store) == 1


def test_a_decision_that_was_not_recorded_leaves_its_event(store: Store):
    with entered(store, "a", 1):
        pass
    assert ids(store) == ["a"] and [len(a) for a in store.decided("cards")] == [0, 0]
    assert decide(store, "a", 1).recorded is None and check_decisions(store) == 1


def test_use_cases_decide_one_event_each_for_itself(store: Store):
    decide(store, "a", 1)
    store.register("other", asks((payments, ("card",), ("amount",))))
    row = payments.parse(payment("a", 1))
    for recorded in (None, '{"action":"none"}'):
        with store.decision("other", payments, row, at(1)) as decision:
            assert decision.recorded == recorded
            if recorded is None:
                decision.record('{"action":"none"}')
    assert [entry.source for entry in store.read()] == ["payments", "decisions.cards", "decisions.other"]
    assert store.decided("other")[0].tolist() == store.decided("cards")[0].tolist()


# -- as a whole or not at all --------------------------------------------------------------------------------------


def test_an_error_in_the_block_leaves_nothing(store: Store):
    """Neither event nor row nor record; a report that waited for the event goes on waiting."""
    decide(store, "a", 1)
    hear(store, "b", True, 2)
    log, waiting = list(store.read()), store.waiting()
    for is_recorded in (False, True):
        with pytest.raises(ZeroDivisionError), entered(store, "b", 2) as decision:
            rows = rows_of(decision)
            assert len(rows) == 2
            if is_recorded:
                decision.record('{"score":0.5,"action":"go"}')
            raise ZeroDivisionError
        assert list(store.read()) == log and store.waiting() == waiting and store.dead_letters() == []
        assert store.entry("payments", "b") is None and len(store.timeline("payments", "card", 1)) == 1
    assert decide(store, "b", 2).features["card_n_30d"] == (2.0).hex()
    assert check_decisions(store) == 2


def test_nobody_sees_a_decision_before_it_ends(tested: StoreUnderTest, store: Store):
    pay(store, "old", 0)
    other = tested.open()
    last = other.last_position()
    with entered(store, "a", 1) as decision:
        assert decision.event_position > last
        decision.record('{"score":0.5,"action":"go"}')
        assert ids(other) == ["old"]
        assert len(other.timeline("payments", "card", 1)) == 1
        assert tested.elsewhere(all_ids).result() == ["old"]
    assert other.last_position() == store.last_position() > last and ids(other) == ["old", "a", "a"]


def test_an_event_with_other_content_is_refused(store: Store):
    """The caller stores the dead letter."""
    decide(store, "a", 1)
    log = list(store.read())
    for changed in ({"amount": 11.0}, {"shop": None}, {"card": 2}):
        with pytest.raises(ml.Rejected, match="other content") as refused:
            decide(store, "a", 1, **changed)
        assert (refused.value.status, refused.value.event, refused.value.source) == (409, "a", "payments")
    with pytest.raises(ml.Rejected, match="other content"):
        decide(store, "a", 2)
    assert list(store.read()) == log and store.dead_letters() == []
    assert decide(store, "a", 1).recorded is not None, "the store goes on"


def test_a_new_event_is_checked_against_the_clock_and_a_known_one_is_not(store: Store):
    row = payments.parse(payment("a", 1))
    for arrived, clock in ((at(9), at(9)), (at(1), at(-9))):
        with pytest.raises(ml.Rejected), store.decision("cards", payments, row, arrived, clock):
            pass
    assert store.last_position() == 0 and store.dead_letters() == []
    decide(store, "a", 1)
    with store.decision("cards", payments, row, at(9), at(9)) as decision:
        assert decision.recorded is not None


@contextmanager
def line_of(store: Store, *sent: tuple[str, int]) -> Iterator[list[tuple[Any, Any]]]:
    """Decisions about payments of some ids and cards, in this order, with the payments."""
    rows = [payments.parse(payment(id, 1, card=card)) for id, card in sent]
    with store.decisions("cards", payments, [(row, row.time) for row in rows], at(2)) as line:
        yield [*zip(line, rows, strict=True)]


@pytest.mark.parametrize("is_deferred", [False, True])
def test_decisions_in_a_line_see_those_before_them(store: Store, is_deferred: bool):
    """Of one card or of several; also one that was decided before, and one that comes twice."""
    decide(store, "a3", 1)
    settle = (store.defer_fsync() if is_deferred else None) or (lambda: None)
    sent = [
        ("a0", 1),
        ("b0", 2),
        ("a1", 1),
        ("a2", 1),
        ("c0", 3),
        ("b1", 2),
        ("c0", 3),
        *((f"a{k}", 1) for k in range(4, 30)),
    ]
    seen = []
    with line_of(store, *sent) as line:
        for transaction, row in line:
            with transaction as decision:
                seen.append(see(decision, row))
    settle()
    assert [one.recorded is not None for one in seen] == [id == "c0" and n == 6 for n, (id, _) in enumerate(sent)]
    assert [e.id for e in store.read(streams=["payments"])] == ["a3", *dict.fromkeys(id for id, _ in sent)]
    assert check_decisions(store) == len(sent)


@pytest.mark.parametrize("is_deferred", [False, True])
def test_decisions_behind_one_that_fails_do_not_see_it(store: Store, is_deferred: bool):
    """An error leaves nothing of it; one that was not recorded leaves its event; one that is refused leaves nothing."""
    settle = (store.defer_fsync() if is_deferred else None) or (lambda: None)
    sent = [(f"a{k}", 1) for k in range(12)]
    with line_of(store, *sent) as line:
        for n, (transaction, row) in enumerate(line):
            with suppress(ZeroDivisionError), transaction as decision:
                if n == 3:
                    rows_of(decision)
                    raise ZeroDivisionError
                if n != 6:
                    see(decision, row)
    settle()
    assert ids(store, "payments") == [f"a{k}" for k in range(12) if k != 3]
    assert ids(store, decided.stream) == [f"a{k}" for k in range(12) if k not in (3, 6)]
    assert check_decisions(store) == 10


def test_decisions_in_a_line_that_nobody_makes_leave_nothing(tested: StoreUnderTest, store: Store):
    """As when the one who makes them fails; another process need not wait for them."""
    with suppress(ZeroDivisionError), line_of(store, *((f"a{k}", 1) for k in range(5))) as line:
        transaction, row = line[0]
        with transaction as decision:
            see(decision, row)
        raise ZeroDivisionError
    assert ids(store, "payments") == ["a0"]
    other = tested.open()
    other.register("cards", features)
    assert decide(other, "a1", 1).features["card_n_30d"] == (2.0).hex() and check_decisions(other) == 2


def test_the_active_version_is_that_of_the_transaction(store: Store):
    with entered(store, "a", 1) as decision:
        assert decision.active_version() is None
    change: Any = {"change": "promote", "version": "v1", "active": "v1", "by": "ada", "why": ""}
    store.change_model("cards", lambda before: change)
    with entered(store, "b", 1) as decision:
        assert decision.active_version() == "v1"


def test_an_error_of_the_policy_is_none_of_the_store(store: Store):
    with entered(store, "a", 1) as decision:
        assert not decision.broken(ZeroDivisionError()) and not decision.broken(ml.Rejected("amount", 1, "is wrong"))


# -- timelines with edges ------------------------------------------------------------------------------------------


class Long(NamedTuple):
    """A store with a card that has many payments, and their times and amounts as the log has them."""

    store: Store
    time: np.ndarray
    amount: np.ndarray


@pytest.fixture(scope="module")
def long(new_store: Callable[[], StoreUnderTest]) -> Iterator[Long]:
    tested = new_store()
    store = tested.open()
    store.register("cards", asks((payments, ("card",), ("amount",))))
    rows = [paid(f"p{k}", (k * 7 % 6000) / 75, amount=k % 997 / 4) for k in range(6000)]
    assert not load(store, *rows).refused
    events = store.history([payments], []).events["payments"]
    order = np.lexsort((events.position, events.time))
    yield Long(store, events.time[order], events.columns["amount"][order])
    tested.close()


def meaning(rows: Any, edges: np.ndarray, name: str) -> list[tuple[int, ...]]:
    """Count, known values, sum, minimum and maximum of a column between two edges, and after the last; whatever form the rows have."""
    rows = as_timeline(rows)
    gap = edges.searchsorted(rows.time)
    out = []
    for g in range(1, len(edges) + 1):
        chosen = gap == g
        if isinstance(rows, Tiles):
            tiles = rows.columns[name][chosen]
            counts = int(rows.rows[chosen].sum()), int(tiles[:, KNOWN].sum()), int(tiles[:, SUM].sum())
            low, high = tiles[:, MIN], tiles[:, MAX]
        else:
            low = high = rows.columns[name][chosen]
            counts = len(low), int((low != NULL).sum()), int(low.sum())
        out.append((*counts, *((int(low.min()), int(high.max())) if counts[0] else ())))
    return out


@pytest.mark.parametrize("days", [(0, 1), (3, 30, 75), (50, 79, 79.9), (-5, 0), (-50, 10, 10.5, 79, 200)])
def test_a_timeline_with_edges_means_the_same_as_its_rows(long: Long, days: tuple[float, ...]):
    """The store may sum rows up between two edges, or may not."""
    edges = np.array([at(day) for day in days])
    rows = Timeline(long.time, long.time, {"amount": long.amount}, np.array([0, len(long.time)]))
    expected = meaning(rows, edges, "amount")
    own = payments.parse(payment("own", 80, card=2))
    with pytest.raises(InterruptedError), long.store.decision("cards", payments, own, at(80)) as decision:
        since = int(edges[0])
        read = decision.read("payments", "card", 1, since, edges - since)
        assert meaning(read, edges, "amount") == expected
        assert meaning(decision.read("payments", "card", 1, since), edges, "amount") == expected
        raise InterruptedError  # so that the store stays as it is
    assert sum(counts[0] for counts in expected) > 0


def test_a_long_timeline_decides_like_the_log(store: Store):
    """Enough rows for tiles, late rows and reports among them."""
    load(store, *(paid(f"p{k}", k / 100, shop=f"s{k % 2}", amount=k % 50 + 0.25) for k in range(3000)))
    for k in range(20):
        hear(store, f"p{100 * k}", k % 3 == 0, 31)
        pay(store, f"late{k}", 28 + k / 10, amount=k + 0.5)
        decide(store, f"own{k}", 30 + k / 10, shop=f"s{k % 2}", amount=3 * k)
        store.accept(visits, visit(f"v{k}", 30 + k / 10), arrived=at(30 + k / 10))
    assert check_decisions(store) == 20
    assert same_as_the_log(store, payments, ("card",), ("amount",)) == 3040


# -- the whole path ------------------------------------------------------------------------------------------------


def test_the_decision_of_a_use_case_is_repeated_as_it_was(bank: Bank):
    """Also when the model, the clock and the timelines have moved on."""
    first = bank.pays("tx-1", 1)
    bank.pays("tx-2", 2)
    change: Any = {"change": "promote", "version": "other", "active": "other", "by": "ada", "why": ""}
    bank.store.change_model("fraud", lambda before: change)
    size = bank.size
    assert bank.pays("tx-1", 1) == first
    again = bank.decider.decide(bank.payment("tx-1", 1), arrived=START + 30 * DAY)
    assert again.as_of == first.as_of and bank.size == size
    event = bank.store.entry("transactions", "tx-1")
    assert first.as_of == (START + DAY, event.position)


def test_what_is_refused_by_a_decider_becomes_a_dead_letter(bank: Bank):
    bank.pays("tx-1", 1)
    with pytest.raises(ml.Rejected):
        bank.pays("tx-1", 1, amount=99.0)
    with pytest.raises(ml.Rejected):
        bank.decider.decide({"id": "tx-2"})
    assert [(letter.event, letter.source) for letter in bank.store.dead_letters()] == [
        ("tx-1", "transactions"),
        ("tx-2", "transactions"),
    ]


def test_a_decider_decides_each_as_if_it_came_alone(bank: Bank):
    """What is refused becomes a dead letter, a policy that fails is an error, and what follows has seen neither."""

    def policy(score: float, event: Any) -> str:
        return str(1 // (event.amount != 13.0))

    case = ml.UseCase("fraud", handbook.features, policy=policy)
    fields = [{}, {}, {"amount": -1.0}, {}, {"amount": 13.0}, {}, {}]
    bodies = [bank.payment(f"tx-{k}", k / 4, **more) for k, more in enumerate(fields)] + [
        {"id": "tx-1"},
        {"id": "tx-9"},
    ]
    sent = [(msgspec.json.encode(body), START + 2 * DAY) for body in bodies]
    results = [*Decider(case, bank.store).decide_each(sent)]
    kinds = [type(result).__name__ for result in results]
    fine, refused = "Decision", "Rejected"
    assert kinds == [fine, fine, refused, fine, "ZeroDivisionError", fine, fine, fine, refused]
    counts = [result.features["customer_n_tx_7d"] for result in results if isinstance(result, Decision)]
    assert counts == [1, 2, 3, 4, 5, 2] and results[7] == results[1]
    assert ids(bank.store, "transactions") == [f"tx-{k}" for k in (0, 1, 3, 5, 6)]
    assert [letter.event for letter in bank.store.dead_letters()] == ["tx-2", "tx-9"]
    assert verify(case, bank.store).mismatches == 0


def test_everything_that_was_decided_can_be_verified(tested: StoreUnderTest):
    """Payments of some customers and terminals over two months, decided, accepted or loaded, with reports and corrections."""
    made = Bank(handbook.fraud, tested.settings)
    with closing(made.store):
        rng = np.random.default_rng(3)
        for k in range(250):
            day, amount = k / 4, float(rng.integers(1, 300))
            body = {"customer_id": int(rng.integers(4)), "terminal_id": int(rng.integers(3)), "amount": amount}
            if k % 3:
                made.pays(f"tx-{k}", day, **body)
            else:
                late = made.payment(f"tx-{k}", day, **body)
                made.store.accept(handbook.transactions, late, arrived=START + int(day * DAY) + 20 * HOUR)
            if k % 5 == 0:
                made.hears(f"tx-{int(rng.integers(k + 4))}", True, day)
            if k % 40 == 39:
                corrected = json.dumps({"id": f"tx-{k - 20}", "fraud": False, "corrects": True})
                made.store.report(handbook.frauds, corrected, arrived=START + int(day * DAY))
        result = verify(handbook.fraud, made.store)
        assert (result.decisions, result.mismatches) == (166, 0)
