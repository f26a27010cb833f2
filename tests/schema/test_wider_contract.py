"""A contract gets an optional field while workers of both versions run: the same body is the same event for both."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any

import pytest
from bank import put_live

import mlpkg as ml
from mlpkg.decisions import Decider, UseCase, verify
from mlpkg.settings import Settings
from mlpkg.times import iso, now

AT = iso(now())


class Order(ml.Event):
    buyer: int
    amount: ml.Money


class Wider(Order):
    """As `Order` will be; the new fields stand where they like."""

    note: str | None = None
    currency: str | None = "EUR"
    weight: Annotated[float | None, ml.Resolution(0.001)] = None
    buyer: int


class Place(ml.Event):
    place: int
    city: str


class WiderPlace(Place):
    country: str | None = None


def made(order: type[ml.Event], place: type[ml.Event]) -> UseCase:
    orders = ml.Source("orders", order)
    places = ml.Table("places", place, key="place")
    features = ml.FeatureSet(
        "shop",
        on=orders,
        buyer=orders.by("buyer").agg(n=ml.count(over="7d")),
        amount=ml.field("amount"),
    )
    case = ml.UseCase("shop", features, policy=lambda score, event: "take" if score > 0.5 else "leave")
    case.places = places  # type: ignore[attr-defined]
    return case


class Worker:
    """A process as far as the store can tell: a connection and a contract of its own."""

    def __init__(self, case: Any, state: Path):
        self.case = case
        self.store: Any = ml.open_store(Settings(state=state))
        if self.store.active_version("shop") is None:
            put_live(case, self.store)
        self.decider = Decider(case, self.store)

    def dead(self) -> int:
        return len(self.store.dead_letters())


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[dict[str, Worker]]:
    with ExitStack() as stack:
        started = {}
        for name, contracts in (("old", (Order, Place)), ("new", (Wider, WiderPlace))):
            started[name] = Worker(made(*contracts), tmp_path / "state")
            stack.enter_context(closing(started[name].store))
        yield started


ways = pytest.mark.parametrize(("first", "second"), [("old", "new"), ("new", "old")])
BODY = {"id": "o-1", "time": AT, "buyer": 3, "amount": 12.5}


@ways
def test_the_same_body_after_a_new_optional_field_is_the_recorded_answer(workers: Any, first: str, second: str):
    decided = workers[first].decider.decide(BODY)
    assert workers[second].decider.decide(BODY) == decided
    assert workers[first].decider.decide(BODY) == decided
    assert workers[second].dead() == 0
    result = verify(workers["new"].case, workers["new"].store)
    assert (result.decisions, result.mismatches) == (1, 0)


@ways
def test_an_id_alone_is_answered_by_a_worker_of_either_contract(workers: Any, first: str, second: str):
    decided = workers[first].decider.decide(BODY)
    assert workers[second].decider.decide({"id": "o-1"}) == decided
    assert workers[second].dead() == 0


@ways
def test_an_event_and_a_row_of_a_table_are_known_to_either_contract(workers: Any, first: str, second: str):
    row = {"id": "p-1", "time": AT, "place": 7, "city": "Oslo"}
    gone = {"id": "p-2", "time": AT, "place": 7, "deleted": True}
    for worker, new in ((workers[first], True), (workers[second], False)):
        assert worker.store.accept(worker.case.on, BODY).new is new
        assert worker.store.accept(worker.case.places, row).new is new
        assert worker.store.accept(worker.case.places, gone).new is new
    assert workers[second].dead() == 0


def test_a_null_that_is_said_equals_a_field_that_is_missing(workers: Any):
    decided = workers["old"].decider.decide(BODY)
    assert workers["new"].decider.decide(BODY | {"note": None, "weight": None}) == decided
    assert workers["new"].decider.decide(BODY | {"currency": "EUR"}) == decided


@pytest.mark.parametrize("more", [{"note": "late"}, {"currency": "USD"}, {"weight": 0.0}, {"amount": 12.51}])
def test_other_content_is_still_refused_and_buried(workers: Any, more: dict[str, Any]):
    workers["old"].decider.decide(BODY)
    with pytest.raises(ml.Rejected, match="other content") as why:
        workers["new"].decider.decide(BODY | more)
    assert (why.value.status, workers["new"].dead()) == (409, 1)
    with pytest.raises(ml.Rejected, match="other content"):
        workers["new"].decider.decide(BODY | {"id": "o-1", "time": iso(now() - 1_000_000)})


def test_what_a_new_worker_stored_is_not_the_same_without_it(workers: Any):
    workers["new"].decider.decide(BODY | {"note": "late"})
    with pytest.raises(ml.Rejected, match="other content"):
        workers["old"].decider.decide(BODY)
