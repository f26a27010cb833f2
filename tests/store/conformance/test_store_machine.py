"""Random operations on a store and on its plain model: log, timelines and what each decision saw come out alike.

A run is twelve stories of thirty operations; with `MLPKG_LONG=1` it is two hundred of sixty.
"""

import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from batches import Sent
from cards import (
    at,
    bits,
    check_decisions,
    decide,
    decided,
    features,
    fraud,
    frauds,
    hour_of_day,
    load,
    payment,
    payments,
    profiles,
    refunds,
    visit,
    visits,
)
from elsewhere import promote
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from logged_timelines import Wanted, asks, same_as_the_log
from plain_store import Conflict, PlainDecision, PlainEvent, PlainOther, PlainReport, PlainStore
from stores import StoreUnderTest

import mlpkg as ml
from mlpkg.engine.columns import NULL, text_code
from mlpkg.store import Store, promotions_of
from mlpkg.times import DAY, iso

LONG = bool(os.environ.get("MLPKG_LONG"))
MANY = settings(
    max_examples=200 if LONG else 12,
    stateful_step_count=60 if LONG else 30,
    deadline=None,
    derandomize=not LONG,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
WANTED: list[Wanted] = [
    (payments, ("card",), ("amount", "shop")),
    (visits, ("card",), ("page",)),
    (profiles, ("card",), ("segment", "deleted")),
    (frauds, ("card",), ("about", "fraud")),
    (refunds, ("card",), ("about", "refund")),
    (decided, ("card",), ("about", "action")),
]
MORE: list[Wanted] = [(payments, ("shop", hour_of_day), ("amount",)), (frauds, ("card", "shop"), ("fraud", "amount"))]

IDS = st.integers(0, 14).map(lambda k: f"p{k}")
DAYS = st.integers(0, 60).map(lambda k: k / 2)  # ties are likely
LATE = st.sampled_from([0, 0, 0, 1, 2.5])
CARDS = st.integers(0, 2)
SHOPS = st.sampled_from(["tea", "toys", None])
AMOUNTS = st.integers(1, 9000)  # in cents
REPORTED = st.one_of(
    st.tuples(st.just("fraud"), st.booleans()), st.tuples(st.just("refund"), st.sampled_from([100, 250, 9000]))
)
ARRIVED = st.one_of(st.none(), DAYS)
Row = tuple[str, tuple[Any, ...]]  # the name of a method of `Machine` below, and its arguments


@st.composite
def rows_of_batches(draw: st.DrawFn) -> list[Row]:
    """Events and reports, in an order that may put a report before its event or a correction before the report."""
    event = st.tuples(st.just("payment"), st.tuples(IDS, DAYS, LATE, CARDS, SHOPS, AMOUNTS))
    other = st.tuples(st.just("other"), st.tuples(IDS, DAYS, CARDS, st.sampled_from(["visit", "segment", "gone"])))
    report = st.tuples(st.just("report"), st.tuples(IDS, REPORTED, st.booleans(), ARRIVED))
    return draw(st.lists(st.one_of(event, event, report, other), min_size=1, max_size=12))


class Machine(RuleBasedStateMachine):
    """The store, opened twice, and its model; each rule does the same to both."""

    def __init__(self, tested: StoreUnderTest) -> None:
        super().__init__()
        self.tested = tested
        self.stores = [self.tested.open(), self.tested.open()]
        self.plain = PlainStore()
        self.turn = self.dead = self.versions = self.derived = 0
        self.bodies: dict[tuple[str, str], Any] = {}  # of payments: the arguments of the first that was sent
        self.registered: list[Wanted] = []

    @property
    def store(self) -> Store:
        """The two take turns."""
        self.turn += 1
        return self.stores[self.turn % 2]

    # -- one row, as the store and as the model take it -------------------------------------------------------------

    def payment(self, id: str, day: float, late: float, card: int, shop: str | None, amount: int) -> Sent:
        values = {"card": card, "shop": shop, "amount": amount / 100}
        return payments, payment(id, day, **values), at(day + late)

    def other(self, id: str, day: float, card: int, kind: str) -> Sent:
        if kind == "visit":
            return visits, visit(id, day, card=card), at(day)
        rest = {"deleted": True} if kind == "gone" else {"segment": f"of {id}"}
        return profiles, {"id": id, "time": iso(at(day)), "card": card} | rest, at(day)

    def report(self, id: str, reported: tuple[str, Any], corrects: bool, day: float | None) -> Sent:
        outcome, truth = reported
        body = fraud(id, truth) if outcome == "fraud" else {"id": id, "refund": truth / 100}
        arrived = None if day is None else at(day)
        return frauds if outcome == "fraud" else refunds, body | ({"corrects": True} if corrects else {}), arrived

    def expect(self, what: str, args: tuple[Any, ...]) -> bool:
        """Do it to the model; whether it is new. Raise `Conflict` if it is refused."""
        if what == "payment":
            id, day, late, card, shop, amount = args
            values = {"card": card, "shop": shop, "amount": amount}
            return self.plain.accept("payments", id, at(day), at(day + late), values)
        if what == "report":
            id, (outcome, truth), corrects, day = args
            return self.plain.report(outcome, id, truth, corrects, None if day is None else at(day))
        id, day, card, kind = args
        if kind == "visit":
            return self.plain.accept("visits", id, at(day), at(day), {"card": card, "page": "help"})
        values = {"card": card, "segment": f"of {id}" if kind == "segment" else None, "deleted": kind == "gone"}
        return self.plain.accept("profiles", id, at(day), at(day), values)

    # -- rules -----------------------------------------------------------------------------------------------------

    @initialize(register_first=st.booleans())
    def begin(self, register_first: bool) -> None:
        if register_first:
            self.register()

    @precondition(lambda self: not self.registered)
    @rule()
    def register(self) -> None:
        """From here on events can be decided."""
        self.store.register("cards", features)
        self.store.register("whole", asks(*WANTED))
        self.registered = [*WANTED]

    @precondition(lambda self: len(self.registered) == len(WANTED))
    @rule()
    def register_more(self) -> None:
        self.store.register("more", asks(*MORE))
        self.registered += MORE

    @rule(args=st.tuples(IDS, DAYS, LATE, CARDS, SHOPS, AMOUNTS), again=st.booleans())
    def accept(self, args: tuple[Any, ...], again: bool) -> None:
        """An id that was used before comes with other content, or `again` as it was."""
        if again:
            args = self.bodies.get(("payments", args[0]), args)
        try:
            new = self.expect("payment", args)
        except Conflict:
            self.dead += 1
            with pytest.raises(ml.Rejected, match="other content"):
                stream, body, arrived = self.payment(*args)
                self.store.accept(stream, body, arrived=arrived)
            return
        self.bodies.setdefault(("payments", args[0]), args)
        stream, body, arrived = self.payment(*args)
        receipt = self.store.accept(stream, body, arrived=arrived)
        assert (receipt.id, receipt.new, receipt.waiting) == (args[0], new, False)

    @rule(args=st.tuples(IDS, REPORTED, st.booleans(), DAYS))
    def hear(self, args: tuple[Any, ...]) -> None:
        stream, body, arrived = self.report(*args)
        try:
            new = self.expect("report", args)
        except Conflict:
            self.dead += 1
            with pytest.raises(ml.Rejected, match="other content"):
                self.store.report(stream, body, arrived=arrived)
            return
        receipt = self.store.report(stream, body, arrived=arrived)
        assert (receipt.new, receipt.waiting) == (new, ("payments", args[0]) not in self.plain.events)

    @precondition(lambda self: self.bodies)
    @rule(reported=REPORTED, data=st.data())
    def correct_now(self, reported: tuple[str, Any], data: st.DataObject) -> None:
        """A correction that does not say when it arrived, so it arrives now."""
        _, id = data.draw(st.sampled_from(sorted(self.bodies)))
        clock = at(70)
        new = self.plain.correct_now(reported[0], id, reported[1], clock)
        stream, body, _ = self.report(id, reported, True, None)
        assert self.store.report(stream, body, clock=clock).new == new

    @rule(rows=rows_of_batches(), trusted=st.booleans())
    def load(self, rows: list[Row], trusted: bool) -> None:
        new = known = 0
        refused = []
        for i, (what, args) in enumerate(rows):
            try:
                is_new = self.expect(what, args)
            except Conflict:
                refused.append(i)
                continue
            new, known = new + is_new, known + (not is_new)
            if what == "payment":
                self.bodies.setdefault(("payments", args[0]), args)
        loaded = load(self.store, *(getattr(self, what)(*args) for what, args in rows), trusted=trusted)
        assert (sum(loaded.new.values()), loaded.known) == (new, known)
        assert sorted(row for row, _ in loaded.refused) == refused

    @precondition(lambda self: self.registered)
    @rule(args=st.tuples(IDS, DAYS, LATE, CARDS, SHOPS, AMOUNTS), again=st.booleans())
    def decide(self, args: tuple[Any, ...], again: bool) -> None:
        """A new event, one that is known and undecided, or one that was decided before."""
        if again:
            args = self.bodies.get(("payments", args[0]), args)
        id, day, late, card, shop, amount = args
        values = {"card": card, "shop": shop, "amount": amount / 100}
        try:
            self.expect("payment", args)
        except Conflict:
            with pytest.raises(ml.Rejected, match="other content"):
                decide(self.store, id, day, day + late, **values)
            return
        self.bodies.setdefault(("payments", id), args)
        event = self.plain.events["payments", id]
        seen = decide(self.store, id, day, day + late, **values)
        assert (seen.recorded is None) == (event.decision is None)
        if event.decision is None:
            action = "stop" if amount > 5000 else "go"
            event.decision = PlainDecision(event, len(self.plain.log), action, seen.features)
            self.plain.log.append(event.decision)

    @precondition(lambda self: self.registered)
    @rule(args=st.tuples(IDS, DAYS, CARDS))
    def fail(self, args: tuple[str, float, int]) -> None:
        """A decision whose policy fails leaves nothing."""
        id, day, card = args
        if ("payments", id) in self.plain.events:
            return
        row = payments.parse(payment(id, day, card=card))
        with pytest.raises(ZeroDivisionError), self.store.decision("cards", payments, row, at(day)) as decision:
            decision.record('{"score":0.5,"action":"go"}')
            raise ZeroDivisionError

    @rule()
    def change_model(self) -> None:
        assert promote(self.store, f"v{self.versions}") == self.versions
        self.versions += 1
        assert self.store.active_version("cards") == f"v{self.versions - 1}"
        self.plain.log.append(PlainOther(promotions_of("cards"), f"v{self.versions - 1}"))

    @rule(numbers=st.lists(st.integers(0, 9), max_size=3))
    def derive(self, numbers: list[int]) -> None:
        store = self.store
        until = store.last_position()
        entries = [(f"s{n}", at(0), until, "{}") for n in numbers]
        store.append_derived("scores.cards", entries, reader="shadow", until=until)
        assert self.store.consumer_offset("shadow") == until
        known = {entry.id for entry in self.plain.log if isinstance(entry, PlainOther)}
        new = [f"s{n}" for n in dict.fromkeys(numbers) if f"s{n}" not in known]
        self.plain.log += [PlainOther("scores.cards", id) for id in new]

    @rule()
    def reopen(self) -> None:
        self.stores = [self.tested.reopen(), self.tested.open()]

    @rule()
    def check_waiting(self) -> None:
        waiting = [(entry.source, entry.id) for entry in self.store.waiting()]
        assert waiting == [(f"payments.{report.outcome}", report.id) for report in self.plain.waiting()]

    # -- the end ---------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            self.check_log()
            self.check_waiting()
            self.check_timelines()
            self.check_features()
            assert len(self.store.dead_letters()) == self.dead
        finally:
            self.tested.close()

    def check_log(self) -> None:
        """Entry by entry; the model learns the positions."""
        entries = list(self.store.read())
        assert len(entries) == len(self.plain.log)
        for entry, plain in zip(entries, self.plain.log, strict=True):
            plain.position = entry.position
        for entry, plain in zip(entries, self.plain.log, strict=True):
            content = msgspec.json.decode(entry.body)
            if isinstance(plain, PlainEvent):
                expected: Any = (plain.source, plain.id, plain.time, plain.arrived, None)
                assert (content["card"], content.get("shop")) == (plain.values["card"], plain.values.get("shop"))
            elif isinstance(plain, PlainReport):
                expected = (f"payments.{plain.outcome}", plain.id, entry.time, entry.arrived, None)
                if plain.event:
                    expected = (*expected[:2], plain.arrived, plain.arrived, plain.event.position)
                truth = content[plain.outcome] * (100 if plain.outcome == "refund" else 1)
                assert (round(truth), content.get("corrects", False)) == (plain.truth, plain.corrects)
            elif isinstance(plain, PlainDecision):
                event = plain.event
                expected = (decided.stream, event.id, event.time, entry.arrived, event.position)
                assert content["action"] == plain.action
            else:
                expected = (plain.source, entry.id, entry.time, entry.arrived, entry.about)
                assert plain.id in entry.id or plain.id == content.get("version")
            assert (entry.source, entry.id, entry.time, entry.arrived, entry.about) == expected
        assert self.store.last_position() == (entries[-1].position if entries else 0)
        assert all(a.position < b.position for a, b in pairwise(entries))

    def check_timelines(self) -> None:
        """Those of every card, row by row."""
        for stream, keys, columns in self.registered:
            same_as_the_log(self.store, stream, keys, columns)
            if keys != ("card",):
                continue
            for card in range(3):
                held = self.store.timeline(stream.stream, "card", card)
                expected = self.plain.rows(stream.stream.rpartition("payments.")[2].partition(".")[0], card)
                assert held.time.tolist() == [time for time, *_ in expected]
                assert held.position.tolist() == [position for _, position, *_ in expected]
                if "about" in held.columns:
                    assert held.columns["about"].tolist() == [-about for _, _, about, _ in expected]
                for name in {*columns} - {"about"}:
                    assert held.columns[name].tolist() == [code(values[name]) for *_, values in expected]

    def check_features(self) -> None:
        """Served, recomputed from the log, and by the oracle: the same bits."""
        decisions = [entry for entry in self.plain.log if isinstance(entry, PlainDecision)]
        if self.registered:
            assert check_decisions(self.store) == len(decisions)
        world = self.plain.world()
        for decision in decisions:
            expected = self.plain.features(world, decision)
            served = dict(zip(expected, bits(v if v is not None else NULL for v in expected.values()), strict=True))
            assert decision.features == served, decision.event


def code(value: Any) -> int:
    return NULL if value is None else text_code(value) if isinstance(value, str) else int(value)


def test_random_operations_leave_what_their_plain_model_says(new_store: Callable[[], StoreUnderTest]):
    machine: Any = lambda: Machine(new_store())  # noqa: E731
    run_state_machine_as_test(machine, settings=MANY)


def test_the_model_and_the_use_case_are_of_one_mind():
    """The days of the machine lie within retention and lateness, and all features have an oracle."""
    plain = PlainStore()
    plain.accept("payments", "a", at(0), at(0), {"card": 1, "shop": None, "amount": 100})
    event = plain.events["payments", "a"]
    event.position = 7
    decision = PlainDecision(event, 1, "go", {})
    assert [*plain.features(plain.world(), decision)] == features.names
    assert payments.retention_us > 60 * DAY and payments.allowed_lateness_us >= 2.5 * DAY
