"""The use case of the suite: card payments, which may be reported as fraud or refunded, visits of a site, and profiles of cards.

Every kind of column, key and stream is in it: nullable texts, amounts, a table, an outcome with a default and one without, and
decisions as a stream. Times are days after `START`.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import numpy as np
from batches import Sent, batch_of

import mlpkg as ml
from mlpkg.engine.columns import NULL
from mlpkg.features import compute, evaluate
from mlpkg.schema import ValidatedEvent
from mlpkg.store import DecisionTransaction, Loaded, Receipt, Store
from mlpkg.times import DAY, HOUR, instant, iso

START = instant("2024-01-01")


class Payment(ml.Event):
    card: int
    shop: str | None = None
    amount: ml.Money


class Visit(ml.Event):
    card: int
    page: str | None = None


class Profile(ml.Event):
    card: int
    segment: str | None = None


payments = ml.Source("payments", Payment, retention="90d", allowed_lateness="3d")
visits = ml.Source("visits", Visit, retention="60d", allowed_lateness="3d")
profiles = ml.Table("profiles", Profile, key="card", allowed_lateness="3d")
frauds = payments.outcome("fraud", bool, default=False, matures_after="7d")
refunds = payments.outcome("refund", ml.Money)
decided = payments.decisions("cards")


def hour_of_day(time):
    return time // HOUR % 24


features = ml.FeatureSet(
    "cards",
    on=payments,
    card=payments.by("card").agg(
        n=ml.count(over=["1d", "30d"]), mean=ml.mean("amount", over="30d"), last=ml.last("shop", over="last 3")
    ),
    pair=payments.by("card", "shop").agg(since=ml.time_since_last(over="30d")),
    visits=visits.by("card").agg(n=ml.count(over="7d", where="page == 'help'")),
    profile=profiles.latest("segment"),
    risk=frauds.by("shop").agg(n=ml.count(over="30d"), mean=ml.mean("fraud", over="30d")),
    later=frauds.by("shop", delay="7d").agg(mean=ml.mean("fraud", over="30d")),
    refunds=refunds.by("card").agg(n=ml.count(over="30d"), sum=ml.sum("refund", over="30d")),
    acted=decided.by("card").agg(n=ml.count(over="30d"), action=ml.last("action", over="30d")),
)


def policy(score, event):
    return "stop" if event.amount > 50 else "go"


case = ml.UseCase("cards", features, policy=policy)


def at(day: float) -> int:
    """A moment in microseconds, to the second."""
    return START + round(day * DAY) // 1_000_000 * 1_000_000


def payment(id: str, day: float, **fields: Any) -> dict[str, Any]:
    return {"id": id, "time": iso(at(day)), "card": 1, "shop": "tea", "amount": 10.0} | fields


def visit(id: str, day: float, **fields: Any) -> dict[str, Any]:
    return {"id": id, "time": iso(at(day)), "card": 1, "page": "help"} | fields


def fraud(id: str, truth: bool = True, corrects: bool = False) -> dict[str, Any]:
    return {"id": id, "fraud": truth} | ({"corrects": True} if corrects else {})


def pay(store: Store, id: str, day: float, **fields: Any) -> Receipt:
    """Accept a payment that arrives at its time."""
    return store.accept(payments, payment(id, day, **fields), arrived=at(day))


def hear(store: Store, id: str, truth: bool, day: float, corrects: bool = False) -> Receipt:
    """Accept a report that arrives at a moment."""
    return store.report(frauds, fraud(id, truth, corrects), arrived=at(day))


def load(store: Store, *sent: Sent, trusted: bool = False) -> Loaded:
    """Load events and reports as one batch."""
    return store.load(batch_of(sent), trusted=trusted)


def paid(id: str, day: float, **fields: Any) -> Sent:
    """A payment of a batch, which arrived at its time."""
    return payments, payment(id, day, **fields), at(day)


def reported(id: str, truth: bool, day: float | None, corrects: bool = False) -> Sent:
    """A report of a batch; without a day it does not say when it arrived."""
    return frauds, fraud(id, truth, corrects), None if day is None else at(day)


def ids(store: Store, *streams: str) -> list[str]:
    """The ids in the log, or in some of its streams, in order."""
    return [entry.id for entry in store.read(streams=streams or None)]


# -- decisions without a model -------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What a decision saw: where its event lies, up to where it saw the log, and its features as text, bit by bit."""

    event_position: int
    log_position: int
    features: dict[str, str]
    recorded: str | None


def bits(values: Iterable[float | int]) -> list[str]:
    """Numbers as text, each bit in it; all that is missing is one."""
    return ["null" if v != v or v == NULL else float(v).hex() for v in values]


def decide(store: Store, id: str, day: float, arrived: float | None = None, **fields: Any) -> Seen:
    """Decide a payment, and record its features; one that was decided before stays as it is."""
    row = payments.parse(payment(id, day, **fields))
    with store.decision(case.name, payments, row, at(day if arrived is None else arrived)) as decision:
        return see(decision, row)


def see(decision: DecisionTransaction, row: ValidatedEvent) -> Seen:
    """Record what a decision about a payment sees, unless it was decided before."""
    if decision.recorded is not None:
        return Seen(decision.event_position, decision.log_position, {}, decision.recorded)
    place = decision.log_position, decision.event_position
    values = bits(evaluate(features, row.codes, row.time, *place, decision.read))
    seen = dict(zip(features.names, values, strict=True))
    action = "stop" if row.values["amount"] > 50 else "go"
    record = {"score": 0.5, "action": action, "features": seen, "as_of": decision.log_position}
    decision.record(msgspec.json.encode(record).decode())
    return Seen(decision.event_position, decision.log_position, seen, None)


def check_decisions(store: Store) -> int:
    """Every recorded decision saw what the log says that it saw, to the bit; how many there are."""
    records = list(store.read(streams=[decided.stream]))
    about = np.array([entry.about for entry in records], np.int64)
    bodies = [msgspec.json.decode(entry.body) for entry in records]
    seen_by_store = dict(zip(*(a.tolist() for a in store.decided(case.name)), strict=True))
    assert [seen_by_store[p] for p in about.tolist()] == [body["as_of"] for body in bodies]
    assert len(seen_by_store) == len(records), "each event is decided once"
    history = store.history(features.sources, features.outcomes)
    order = about.argsort()
    rows = history.events["payments"].position.searchsorted(about[order])
    assert history.events["payments"].position[rows].tolist() == about[order].tolist()
    until = np.array([bodies[i]["as_of"] for i in order.tolist()], np.int64)
    columns = {name: bits(c.tolist()) for name, c in compute(features, history, rows, until, threads=1).items()}
    for n, i in enumerate(order.tolist()):
        assert bodies[i]["features"] == {name: column[n] for name, column in columns.items()}, records[i].id
    return len(records)
