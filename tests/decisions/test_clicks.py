"""The engine beyond payments: a shop's clicks are decided one by one, recomputed by `mlpkg verify`, and by an oracle that knows
only what was sent.
"""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import clicks as shop
import oracle
import pandas as pd
import pytest
from bank import put_live
from clicks import Sent
from command import Command
from oracle import UNITS, Ask, Condition, Event, Moment, Near, Stream, Twice, World, agrees, bits, text_code
from paths import ROOT
from project import Project

import mlpkg as ml
from mlpkg import lab
from mlpkg.decisions import Decider, Decision
from mlpkg.settings import Settings

pytestmark = pytest.mark.slow

REAL = ROOT.parent / "shared" / "data" / "clicks_train.parquet"
LONG = bool(os.environ.get("MLPKG_LONG"))
DAY = UNITS["d"]
SHARE = 1 if LONG else 3  # the short form plays a third of the clicks, so a third of everything has to be there

# -- what the oracle is asked, written down without a look at the definitions ---------------------------------------


def hour(time: int) -> int:
    return datetime.fromtimestamp(time // 1_000_000, UTC).hour


def evening(click: Event) -> float:
    return float(hour(click.time) in range(18, 24))


def band(cents: int) -> int:
    return cents // 2000


def fall(prices: list[float]) -> float:
    return sorted(prices)[-1] - prices[-1]


PRICE, CATEGORY = ("price",), ("category",)
COUPON = Condition("", lambda r: r["action"] == "coupon")
SESSION: dict[str, Any] = {"stream": "clicks", "by": ("session",)}
PAIR: dict[str, Any] = {"stream": "clicks", "by": ("session", "category")}
HOURLY: dict[str, Any] = {"stream": "clicks", "by": (Twice(shop.hour_of_day, hour), "category")}
BAND: dict[str, Any] = {"stream": "clicks", "by": ("user", Twice(shop.price_band, band))}
AISLE: dict[str, Any] = {"stream": "clicks", "by": ("category",)}
ITEM: dict[str, Any] = {"stream": "clicks", "by": ("item",)}
OFFER: dict[str, Any] = {"stream": "items", "by": ("item",), "over": ("all",)}
SHOWN: dict[str, Any] = {"stream": "exposures", "by": ("session", "item")}
SHOWN_USER: dict[str, Any] = {"stream": "exposures", "by": ("user", "item")}
SHOWN_SESSION: dict[str, Any] = {"stream": "exposures", "by": ("session",)}
SOLD: dict[str, Any] = {"stream": "bought", "by": ("item",), "late": "1d"}
BUYS: dict[str, Any] = {"stream": "bought", "by": ("user",)}
PAID: dict[str, Any] = {"stream": "paid", "by": ("user",)}
ACTION: dict[str, Any] = {"stream": "actions", "by": ("session",)}
ACTION_ITEM: dict[str, Any] = {"stream": "actions", "by": ("user", "item")}

ASKS = {
    "session_n": Ask("count", over=("10m", "1h", "all"), **SESSION),
    "session_price": Ask("mean", PRICE, over=("1h", "last 5", "all"), **SESSION),
    "session_dearest": Ask("max", PRICE, over=("last 5",), **SESSION),
    "session_median": Ask("median", PRICE, over=("last 5", "all"), **SESSION),
    "session_items": Ask("nunique", ("item",), over=("last 5", "all"), **SESSION),
    "session_category": Ask("mode", CATEGORY, over=("last 5", "all"), **SESSION),
    "session_entered": Ask("first", CATEGORY, over=("all",), **SESSION),
    "session_came": Ask("last", CATEGORY, over=("10m", "last 5"), delay="5m", **SESSION),
    "session_before": Ask("last_k", CATEGORY, {"k": 3}, over=("all",), **SESSION),
    "session_often": Ask("top_k", CATEGORY, {"k": 2}, over=("1h",), **SESSION),
    "session_toys": Ask("share", ("category", "toys"), over=("last 5", "1h"), **SESSION),
    "session_idle": Ask("time_since_last", over=("all",), **SESSION),
    "session_gap": Ask("max_gap", over=("all",), **SESSION),
    "session_rank": Ask("rank", PRICE, over=("last 10", "all"), **SESSION),
    "session_again": Ask("seen", ("item",), over=("all",), **SESSION),
    "session_cheap": Ask("streak", (Condition("", lambda r: r["price"] < 2000),), over=("all",), **SESSION),
    "session_fall": Ask("fold", (Twice(shop.fall, fall), "price"), over=("last 5",), **SESSION),
    "pair_n": Ask("count", over=("1h", "last 5", "all"), **PAIR),
    "pair_spent": Ask("sum", PRICE, over=("1h", "last 5"), **PAIR),
    "pair_cheapest": Ask("min_by", PRICE, {"by": "item"}, over=("all",), **PAIR),
    "pair_items": Ask("nunique", ("item",), over=("last 5",), **PAIR),
    "hourly_n": Ask("count", over=("3d", "7d"), **HOURLY),
    "hourly_users": Ask("nunique", ("user",), over=("3d",), **HOURLY),
    "band_n": Ask("count", over=("1d", "all"), **BAND),
    "band_category": Ask("mode", CATEGORY, over=("last 5",), **BAND),
    "aisle_n": Ask("count", over=("6h", "1d", "7d"), **AISLE),
    "aisle_price": Ask("mean", PRICE, over=("6h", "7d"), **AISLE),
    "aisle_recent": Ask("decayed_mean", PRICE, {"half_life": "6h"}, over=("1d",), **AISLE),
    "aisle_busy": Ask("change", (Ask("count"),), {"against": "1d"}, over=("1h",), **AISLE),
    "aisle_dear": Ask(
        "ratio",
        (Ask("count", where=Condition("", lambda r: r["price"] > 5000)), Ask("count")),
        over=("1d", "last 50"),
        **AISLE,
    ),
    "item_n": Ask("count", over=("6h", "7d", "all"), **ITEM),
    "item_users": Ask("nunique", ("user",), over=("7d", "last 20"), **ITEM),
    "item_trend": Ask("trend", PRICE, over=("7d",), **ITEM),
    "item_low": Ask("min", PRICE, over=("3d",), empty=0.0, **ITEM),
    "item_per_hour": Ask("rate", over=("1d",), **ITEM),
    "offer_category": Ask("latest", CATEGORY, **OFFER),
    "offer_price": Ask("latest", PRICE, **OFFER),
    "offered_price": Ask("latest", PRICE, late="12h", **OFFER),
    "shown_n": Ask("count", over=("7d",), **SHOWN),
    "shown_place": Ask("min", ("place",), over=("7d",), **SHOWN),
    "shown_user_n": Ask("count", over=("1h", "7d"), **SHOWN_USER),
    "shown_user_since": Ask("time_since_last", over=("7d",), **SHOWN_USER),
    "shown_user_places": Ask("histogram", ("place",), {"edges": (1, 3)}, over=("7d",), **SHOWN_USER),
    "shown_session_item": Ask("seen", ("item",), over=("7d",), **SHOWN_SESSION),
    "shown_session_n": Ask("count", over=("10m", "last 5"), **SHOWN_SESSION),
    "sold_n": Ask("count", over=("7d",), **SOLD),
    "sold_rate": Ask("mean", ("bought",), over=("3d", "7d"), empty=0.0, **SOLD),
    "buys_rate": Ask("mean", ("bought",), over=("7d", "last 5"), **BUYS),
    "buys_category": Ask("last", CATEGORY, where=Condition("", lambda r: r["bought"]), over=("all",), **BUYS),
    "paid_total": Ask("sum", ("paid",), over=("all",), **PAID),
    "paid_latest": Ask("last", ("paid",), over=("last 5",), **PAID),
    "paid_since": Ask("time_since_last", over=("7d",), **PAID),
    "action_last": Ask("last", ("action",), over=("all",), **ACTION),
    "action_coupons": Ask("count", over=("all",), where=COUPON, **ACTION),
    "action_kinds": Ask("nunique", ("action",), over=("last 5",), **ACTION),
    "action_score": Ask("mean", ("score",), over=("last 5", "all"), **ACTION),
    "action_item_last": Ask("last", ("action",), over=("7d",), **ACTION_ITEM),
    "action_item_coupons": Ask("share", ("action", "coupon"), over=("7d",), **ACTION_ITEM),
}  # fmt: skip


def without_windows(click: Event, values: dict[str, Any]) -> dict[str, Any]:
    """What is said of the click itself, and the formulas."""
    price, mean, offer = click.values["price"] / 100, values["session_price_all"], values["offer_price"]
    category = click.values["category"]
    return {
        "evening": evening(click),
        "category": None if category is None else text_code(category),
        "price": price,
        "dearer": price / mean if mean else None,
        "off": None if offer is None else offer - price,
        "pull": (values["item_n_7d"] + 1) / (values["shown_user_n_7d"] + 1),
    }


# -- what was sent, and what was answered ----------------------------------------------------------------------------

INT, TEXT, CENTS = oracle.Field("int"), oracle.Field("text"), oracle.Field("number", 100)
OF_CLICKS = {"session": INT, "user": TEXT, "item": INT, "category": TEXT, "price": CENTS}
FACTS = {"bought": oracle.Field("bool"), "paid": CENTS}


def steps(body: dict[str, Any]) -> dict[str, Any]:
    """The values of an event, amounts as whole cents."""
    values = {k: v for k, v in body.items() if k not in ("id", "time", "corrects")}
    return values | {k: round(values[k] * 100) for k in ("price", "paid") if values.get(k) is not None}


def micros(text: str) -> int:
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@dataclass
class Played:
    """A stream that went through a store, and all that came back: where each entry stands, and each decision."""

    sent: list[Sent]
    state: Path
    events: dict[str, dict[str, Event]] = field(default_factory=lambda: {"clicks": {}, "exposures": {}, "items": {}})
    reports: dict[str, dict[str, list[Any]]] = field(default_factory=lambda: {"bought": {}, "paid": {}, "actions": {}})
    decisions: dict[str, Decision] = field(default_factory=dict)

    def play(self) -> None:
        """Hear the first tenth, then decide every click."""
        with closing(ml.open_store(Settings(state=self.state))) as store:
            store.register("coupons", shop.features)
            first = len(self.sent) // 10
            for s in self.sent[:first]:
                self.hear(store, s)
            put_live(shop.coupons, store)
            decider = Decider(shop.coupons, store)
            for s in self.sent[first:]:
                if s.decides:
                    self.decide(decider, s)
                else:
                    self.hear(store, s)

    def hear(self, store: Any, s: Sent) -> None:
        name, id, values = s.stream.name, s.body["id"], steps(s.body)
        if name in self.events:
            position = store.accept(s.stream, s.body, arrived=s.arrived).position
            self.stands(name, s, position)
            return
        position = store.report(s.stream, s.body, arrived=s.arrived).position
        versions = self.reports[name].setdefault(id, [])
        if not versions or ("corrects" in s.body and all(p != position for p, _ in versions)):
            versions.append((position, values))

    def decide(self, decider: Decider, s: Sent) -> None:
        decision = decider.decide(s.body, arrived=s.arrived)
        if s.body["id"] in self.decisions:
            assert decision == self.decisions[s.body["id"]]
            return
        position = decision.as_of[1]
        self.decisions[s.body["id"]] = decision
        self.stands("clicks", s, position)
        assert decision.score is not None
        score = round(decision.score * 1_000_000)
        self.reports["actions"][s.body["id"]] = [(position + 1, {"score": score, "action": decision.action})]

    def stands(self, name: str, s: Sent, position: int) -> None:
        """An event stands where it stood first."""
        gone = {"category": None, "price": None, "deleted": False} if name == "items" else {}
        self.events[name].setdefault(s.body["id"], Event(position, micros(s.body["time"]), gone | steps(s.body)))

    @cached_property
    def world(self) -> World:
        """What happened, for the oracle."""
        keep, position = 10 * DAY, {id: e.position for id, e in self.events["clicks"].items()}
        streams = {
            "clicks": Stream(OF_CLICKS, keep),
            "exposures": Stream({"session": INT, "user": TEXT, "item": INT, "place": INT}, keep),
            "items": Stream({"item": INT, "category": TEXT, "price": CENTS}, 3650 * DAY),
            "bought": Stream(OF_CLICKS | FACTS, keep, "clicks", {"bought": False}, DAY),
            "paid": Stream(OF_CLICKS | FACTS, keep, "clicks"),
            "actions": Stream(
                {**OF_CLICKS, "score": oracle.Field("number", 1_000_000), "action": TEXT}, keep, "clicks"
            ),
        }
        for name, events in self.events.items():
            streams[name].events = sorted(events.values(), key=lambda e: e.position)
        for name, outcomes in self.reports.items():
            streams[name].reports = {position[id]: versions for id, versions in outcomes.items()}
        return World(streams)

    @cached_property
    def training_set(self) -> pd.DataFrame:
        """In the order of the log, as the oracle goes by positions: what arrived in one second is ordered by them."""
        with closing(ml.open_store(Settings(state=self.state))) as store:
            times = [e.time for e in self.events["clicks"].values()]
            frame = lab.training_set(
                shop.features,
                min(times),
                max(times) + 1,
                outcome="bought",
                use_case=shop.coupons,
                history="as_logged",
                store=store,
            )
        codes = frame[shop.features.categories]
        return frame.assign(**codes.astype(object).where(codes.notna(), None))

    def moment(self, id: str) -> Moment:
        """An event is seen as its decision saw it, or as of its own position."""
        event = self.events["clicks"][id]
        seen = self.decisions[id].as_of[1] if id in self.decisions else event.position
        return Moment(event.time, seen, event.position, event.values)

    def expected(self, id: str) -> dict[str, Any]:
        """What the oracle says of one click."""
        moment, values = self.moment(id), {}
        for name, ask in ASKS.items():
            for end, value in self.world.answer(ask, moment).items():
                values[name if ask.verb == "latest" else f"{name}_{end}"] = value
        return values | without_windows(self.events["clicks"][id], values)

    def label(self, id: str) -> bool:
        """What is known of a click by now."""
        return self.reports["bought"].get(id, [(0, {"bought": False})])[-1][1]["bought"]


@pytest.fixture
def settings_of_the_shop(project: Project) -> None:
    """A project that names a use case of its own, in a module that is no part of mlpkg."""
    (project.folder / "settings.ini").write_text("[DEFAULT]\nuse_cases =\n    coupons = clicks:coupons\n")


@pytest.fixture(scope="module", params=["simulated", "real"])
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Two weeks of simulated clicks; and, where they are, some of the real sessions of a week."""
    if request.param == "real" and not REAL.is_file():
        pytest.skip(f"the real clicks are not here: {os.path.relpath(REAL, ROOT)}")
    raw = shop.read(REAL, every=16 if LONG else 97) if request.param == "real" else shop.simulate(700 if LONG else 130)
    made = Played(shop.stream(raw), tmp_path_factory.mktemp(request.param) / "state")
    made.play()
    yield made


# -- what has to hold ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("settings_of_the_shop")
def test_verify_finds_no_mismatch_among_the_decisions_of_the_shop(played: Played, cli: Command):
    """As its users would ask: the command, on a use case that only the settings name."""
    answer = cli("verify", "coupons", "--json", state=played.state)
    assert answer.status == 0, answer.out + answer.err
    assert (answer.json["decisions"], answer.json["mismatches"]) == (len(played.decisions), 0)
    assert len(played.decisions) > 1_000 // SHARE


def test_the_training_set_of_the_shop_is_what_the_oracle_finds(played: Played):
    """Every feature of every click, to the bit; and the label."""
    frame = played.training_set
    assert frame["id"].tolist() == sorted(played.events["clicks"], key=lambda id: played.events["clicks"][id].position)
    columns = {name: frame[name].tolist() for name in shop.features.names}
    wrong, exact = [], True
    for i, id in enumerate(frame["id"]):
        expected = played.expected(id)
        assert expected.keys() == columns.keys()
        exact &= not any(isinstance(value, Near) for value in expected.values())
        wrong += [
            f"{id} {name}: {columns[name][i]!r}, the oracle says {value!r}"
            for name, value in expected.items()
            if not agrees(columns[name][i], value)
        ]
    assert wrong == [] and exact
    assert frame["label"].tolist() == [played.label(id) for id in frame["id"]]


def test_the_features_that_were_served_are_those_of_the_training_set(played: Played):
    frame = played.training_set.set_index("id").loc[list(played.decisions)]
    served = pd.DataFrame([d.features for d in played.decisions.values()], dtype=object)
    assert served.columns.tolist() == shop.features.names
    wrong = {
        name: n
        for name in shop.features.names
        if (n := sum(bits(a) != bits(b) for a, b in zip(served[name].tolist(), frame[name].tolist(), strict=True)))
    }
    assert wrong == {}


def test_the_stream_of_the_shop_is_as_hard_as_it_is_meant_to_be(played: Played):
    """A tenth is late, doubled or out of order; items change and go while clicks are decided; what was said is corrected."""
    assert 0.08 < shop.disordered(played.sent) < 0.12
    assert len(played.sent) > len(played.events["clicks"]) + len(played.events["exposures"]) > 3_000 // SHARE
    late = [id for id, d in played.decisions.items() if d.as_of[1] > played.events["clicks"][id].position]
    assert len(late) > 10 // SHARE, "heard first, decided afterwards"
    corrected = [id for id, versions in played.reports["bought"].items() if len(versions) > 1]
    assert len(corrected) > 50 // SHARE
    frame = played.training_set
    for name in ("session_category_last_5", "offer_category", "offer_price", "action_last_all", "paid_total_all"):
        shown = [bits(value) for value in frame[name].tolist()]
        assert shown.count("null") > 10 // SHARE and len(set(shown)) > 2, name
    assert sum(n > 1 for n in frame["shown_n_7d"].tolist()) > 20 // SHARE and set(
        frame["shown_session_item_7d_before"]
    ) == {
        0,
        1,
    }
    assert len({d.action for d in played.decisions.values()}) == 3


@pytest.mark.usefixtures("settings_of_the_shop")
def test_what_people_read_of_the_shop_is_in_words(played: Played, project: Project, cli: Command):
    """Actions and categories by name, conditions in the catalogue, and a training set with the label that is asked for."""
    id = next(iter(played.decisions))
    session = played.events["clicks"][id].values["session"]
    answer = cli("timeline", "coupons", f"session={session}", "--json", "-n", 0, state=played.state)
    held = {t["stream"]: t["latest"] for t in answer.json["timelines"]}
    assert {r["id"]: r["action"] for r in held["decisions.coupons"]}[id] == played.decisions[id].action
    assert {r["id"]: r["category"] for r in held["clicks"]}[id] == played.events["clicks"][id].values["category"]
    assert "count where price > 50 divided by count over clicks" in cli("catalog", "coupons", state=played.state).out
    span = ("--from", "2014-04-02", "--to", "2014-04-04", "-o", "days.parquet")
    cli("training-set", "coupons", *span, state=played.state).said_one_line("several outcomes", "bought, paid")
    assert cli("training-set", "coupons", *span, "--outcome", "paid", state=played.state).status == 0
    days = pd.read_parquet(project.folder / "days.parquet")
    known = {id: versions[-1][1]["paid"] / 100 for id, versions in played.reports["paid"].items()}
    shown = {id: label for id, label in zip(days["id"].tolist(), days["label"].tolist(), strict=True) if label == label}
    assert shown == {id: known[id] for id in days["id"].tolist() if id in known} != {}
