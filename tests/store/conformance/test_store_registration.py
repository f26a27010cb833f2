"""Timelines are built from the log for whoever registers a use case, and hold what the log says from then on."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cards import (
    Payment,
    at,
    check_decisions,
    decide,
    decided,
    features,
    frauds,
    hear,
    hour_of_day,
    ids,
    load,
    paid,
    pay,
    payment,
    payments,
    profiles,
    visits,
)
from logged_timelines import Wanted, asks, same_as_the_log
from stores import StoreUnderTest

import mlpkg as ml
from mlpkg.engine.columns import text_code
from mlpkg.errors import MlpkgError
from mlpkg.store import Store
from mlpkg.times import iso

WANTED: list[Wanted] = [
    (payments, ("card",), ("amount", "shop")),
    (payments, ("shop",), ("amount",)),
    (payments, ("card", "shop"), ("amount",)),
    (payments, ("shop", hour_of_day), ("amount",)),
    (visits, ("card",), ("page",)),
    (profiles, ("card",), ("segment", "deleted")),
    (frauds, ("card",), ("amount", "fraud", "about")),
    (decided, ("card",), ("about", "score", "action", "amount")),
]


def story(store: Store, first: int, last: int) -> None:
    """Payments of three cards and two shops, one after the other in each way there is, with late ones, ties, reports and corrections."""
    for k in range(first, last):
        fields: dict[str, Any] = {"card": k % 3, "shop": None if k % 6 == 5 else f"s{k % 2}", "amount": k + 0.5}
        day = k / 8 - (k % 4 == 3)
        if k % 3 == 0:
            decide(store, f"p{k}", day, arrived=day + 1, **fields)
        elif k % 3 == 1:
            store.accept(payments, payment(f"p{k}", day, **fields), arrived=at(day + 1))
        else:
            load(store, paid(f"p{k}", day, **fields), paid(f"q{k}", day, **fields))
        if k % 8 in (0, 5):
            hear(store, f"p{k + 3 * (k % 8 == 0)}", k % 16 == 0, k / 8)
        if k % 16 == 12:
            hear(store, f"p{k - 9}", False, k / 8, corrects=True)
        store.accept(visits, {"id": f"v{k}", "time": iso(at(day)), "card": k % 3, "page": None}, arrived=at(day))
        profile = {"deleted": True} if k % 7 == 6 else {"segment": f"t{k % 4}"}
        store.accept(profiles, {"id": f"x{k}", "time": iso(at(day)), "card": k % 3} | profile, arrived=at(day))


def check_all(store: Store) -> list[int]:
    return [same_as_the_log(store, *wanted) for wanted in WANTED]


def test_timelines_are_the_same_whether_the_log_or_the_register_came_first(tested: StoreUnderTest):
    before, after = tested.open(), tested.fresh().open()
    for store in (before, after):
        store.register("cards", features)
    before.register("more", asks(*WANTED))
    for store in (before, after):
        story(store, 0, 48)
    after.register("more", asks(*WANTED))
    rows = check_all(before)
    assert check_all(after) == rows and all(rows)
    for store in (before, after):
        story(store, 48, 64)
        assert check_decisions(store) == 22
    assert check_all(after) == check_all(before) > rows


def test_a_use_case_that_is_registered_again_changes_nothing(tested: StoreUnderTest):
    store = tested.open()
    store.register("cards", features)
    story(store, 0, 12)
    log, contracts = list(store.read()), store.contracts("payments")
    for opening in (tested.open, tested.open, tested.reopen):
        opened = opening()
        opened.register("cards", features)
        assert list(opened.read()) == log and opened.contracts("payments") == contracts
        assert same_as_the_log(opened, payments, ("card",), ("amount", "shop")) == 16
    story(tested.open(), 12, 14)


def test_a_timeline_that_nobody_registered_is_an_error(store: Store):
    store.register("cards", features)
    for stream, key in (("payments", "amount"), ("nothing", "card"), ("payments", "nothing")):
        with pytest.raises(MlpkgError) as error:
            store.timeline(stream, key, 1)
        assert error.value.hint
    row = payments.parse(payment("a", 0))
    with pytest.raises(MlpkgError), store.decision("cards", payments, row, at(0)) as decision:
        decision.read("payments", "amount", 1, 0)
    assert list(store.read()) == []


def test_a_timeline_gets_the_columns_that_a_later_use_case_needs(store: Store):
    """Those that it had stay."""
    store.register("narrow", asks((payments, ("card",), ("amount",))))
    pay(store, "a", 0, amount=3.0)
    store.register("wide", asks((payments, ("card",), ("shop",))))
    pay(store, "b", 1, amount=4.0)
    rows = store.timeline("payments", "card", 1)
    assert rows.columns["amount"].tolist() == [300, 400]
    assert rows.columns["shop"].tolist() == [text_code("tea")] * 2
    store.register("narrow", asks((payments, ("card",), ("amount",))))
    assert same_as_the_log(store, payments, ("card",), ("amount", "shop")) == 2


def test_a_use_case_sees_events_that_were_there_before_its_sources_were_registered(store: Store):
    pay(store, "a", 0)
    hear(store, "a", True, 1)
    store.register("cards", features)
    seen = decide(store, "b", 2)
    assert (seen.features["card_n_30d"], seen.features["risk_n_30d"]) == ((2.0).hex(), (1.0).hex())
    assert check_decisions(store) == 1


# -- rows ----------------------------------------------------------------------------------------------------------


def test_rows_are_ordered_by_time_and_then_by_position(store: Store):
    """However they come: late ones, and several of one moment."""
    store.register("cards", asks((payments, ("card",), ("amount",))))
    days = [3, 1, 3, 2, 1, 1, 3, 2.5, 0.5]
    for k, day in enumerate(days[:6]):
        store.accept(payments, payment(f"p{k}", day, amount=k + 1), arrived=at(3))
    load(store, *((payments, payment(f"p{k}", day, amount=k + 1), at(3)) for k, day in enumerate(days) if k > 5))
    rows = store.timeline("payments", "card", 1)
    order = sorted(range(len(days)), key=lambda k: (days[k], k))
    assert rows.columns["amount"].tolist() == [100 * (k + 1) for k in order]
    assert rows.time.tolist() == [at(days[k]) for k in order]
    positions = [store.entry("payments", f"p{k}") for k in order]
    assert rows.position.tolist() == [entry.position for entry in positions if entry]


def test_of_two_reports_of_one_position_the_one_about_the_later_event_stands_first(store: Store):
    """Several that waited for events of one moment: each row is about its event, and time, position and event order them."""
    store.register("cards", asks((frauds, ("card",), ("about", "fraud"))))
    for k in range(4):
        hear(store, f"p{k}", k % 2 == 0, 1)
    load(store, *(paid(f"p{k}", 1) for k in (2, 0, 3, 1)))
    rows = store.timeline("payments.fraud", "card", 1)
    keys = list(zip(rows.time.tolist(), rows.position.tolist(), (-rows.columns["about"]).tolist(), strict=True))
    assert keys == sorted(keys) and len(keys) == 4
    assert same_as_the_log(store, frauds, ("card",), ("about", "fraud")) == 4


def test_a_read_since_a_moment_has_all_later_rows(store: Store):
    store.register("cards", asks((payments, ("card",), ("amount",))))
    load(store, *(paid(f"p{k}", k // 3 / 10, amount=k + 1) for k in range(600)))
    amounts = [100 * (k + 1) for k in range(600)]
    for day in (-1, *(k / 2 for k in range(40)), 0.1, 10.05, 19.9, 30):
        since = at(day)
        rows = store.timeline("payments", "card", 1, since)
        later = rows.columns["amount"][rows.time > since].tolist()
        assert later == [amount for k, amount in enumerate(amounts) if at(k // 3 / 10) > since]
        assert rows.time.tolist() == sorted(rows.time.tolist())
    assert store.timeline("payments", "card", 1).columns["amount"].tolist() == amounts
    assert len(store.timeline("payments", "card", 2)) == 0


def test_several_entities_lie_end_to_end(store: Store):
    store.register("cards", asks((payments, ("card",), ("amount",))))
    for k in range(10):
        pay(store, f"p{k}", k, card=k % 4, amount=k + 1)
    values = [3, 9, 0, 3, -(2**62)]
    rows = store.timelines("payments", "card", values)
    pieces = [rows.columns["amount"][a:b].tolist() for a, b in itertools.pairwise(rows.starts.tolist())]
    assert pieces == [[400, 800], [], [100, 500, 900], [400, 800], []]
    rows = store.timelines("payments", "card", values, at(5))
    for value, (a, b) in zip(values, itertools.pairwise(rows.starts.tolist()), strict=True):
        later = rows.time[a:b] > at(5)
        assert rows.columns["amount"][a:b][later].tolist() == [100 * (k + 1) for k in range(6, 10) if k % 4 == value]


def test_a_row_without_a_key_is_in_no_timeline(store: Store):
    store.register("cards", asks((payments, ("shop",), ("amount",)), (payments, ("card", "shop"), ("amount",))))
    pay(store, "a", 0, shop=None)
    load(store, *(paid(f"p{k}", k, shop=None if k == 5 else f"s{k % 3}") for k in range(9)))
    pay(store, "b", 9)
    for keys in (("shop",), ("card", "shop")):
        assert same_as_the_log(store, payments, keys, ("amount",)) == 9
    store.register("later", asks((payments, ("shop", hour_of_day), ())))
    assert same_as_the_log(store, payments, ("shop", hour_of_day), ()) == 9


def test_decisions_are_a_stream_to_define_features_over(store: Store):
    wanted = (decided, ("card",), ("about", "score", "action", "amount"))
    store.register("cards", asks(wanted))
    for k in range(20):
        with store.decision("cards", payments, payments.parse(payment(f"p{k}", k, card=k % 3)), at(k)) as decision:
            decision.record(f'{{"score":{k / 10},"action":"{"stop" if k % 2 else "go"}"}}')
    assert same_as_the_log(store, *wanted) == 20
    store.register("cards", asks((decided, ("shop",), ("action",))))
    assert same_as_the_log(store, decided, ("shop",), ("action",)) == 20


# -- contracts -----------------------------------------------------------------------------------------------------


class WithCountry(Payment):
    country: str | None = None


class WithoutShop(ml.Event):
    card: int
    amount: ml.Money


def of_contract(contract: type[ml.Event], **options: Any) -> Any:
    """What a feature set without features says of payments by another contract."""
    source = ml.Source("payments", contract, retention="90d", allowed_lateness="3d", **options)
    source.outcomes.update(payments.outcomes)
    return SimpleNamespace(sources=[source], streams=[])


def test_every_version_of_a_contract_is_kept(tested: StoreUnderTest):
    store = tested.open()
    assert store.contracts("payments") == []
    store.register("cards", features)
    for _ in range(2):
        store.register("cards", of_contract(WithCountry))
    for opening in (tested.open, tested.reopen):
        opened = opening()
        versions = opened.contracts("payments")
        assert [v["version"] for v in versions] == [1, 2] and versions[0]["changes"] == []
        assert "country" in " ".join(versions[1]["changes"]) and versions[0]["at"] <= versions[1]["at"]
        assert versions[0]["spec"] != versions[1]["spec"]
        assert len(opened.contracts("payments.fraud")) == len(opened.contracts("visits")) == 1
        assert opened.contracts("nothing") == []


def test_a_contract_that_would_lose_a_field_is_refused_and_nothing_changes(store: Store):
    store.register("cards", features)
    pay(store, "a", 0)
    before = store.contracts("payments")
    with pytest.raises(MlpkgError, match="lost its field 'shop'"):
        store.register("other", of_contract(WithoutShop))
    assert store.contracts("payments") == before and ids(store) == ["a"]
    assert same_as_the_log(store, payments, ("card",), ("amount", "shop")) == 1


def test_events_of_a_newer_contract_go_into_the_timelines(store: Store):
    """Rows from before have no value in the new column."""
    store.register("cards", asks((payments, ("card",), ("amount",))))
    pay(store, "a", 0)
    newer = of_contract(WithCountry).sources[0]
    store.register("more", asks((newer, ("card",), ("country",))))
    store.accept(newer, payment("b", 1, country="at"), arrived=at(1))
    pay(store, "c", 2)
    rows = store.timeline("payments", "card", 1)
    code = text_code("at")
    assert [bool(c == code) for c in rows.columns["country"]] == [False, True, False]
    assert rows.columns["amount"].tolist() == [1000] * 3
    events = store.history([newer], []).events["payments"]
    assert np.array_equal(events.columns["country"], rows.columns["country"])
