"""A shop that decides at each click whether to hand out a coupon: a use case of clicks, of what was shown before, and of items.

The clicks come from a published file of sessions, items and times; the users, prices, categories, purchases and all that was
shown are made up around them, and so are the clicks where the file is not there. A tenth of it arrives late, twice or out of order.
"""

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from click_functions import during_evening, fall, hour_of_day, price_band
from pydantic import Field

import mlpkg as ml
from mlpkg.times import DAY, HOUR, MINUTE, SECOND, iso


class Click(ml.Event):
    session: int
    user: str
    item: int
    category: str | None = None  # by which the visitor came to it; none from a search
    price: ml.Money


class Shown(ml.Event):
    session: int
    user: str
    item: int
    place: Annotated[int, Field(ge=1, le=20)]


class Item(ml.Event):
    item: int
    category: str
    price: ml.Money | None = None


clicks = ml.Source("clicks", Click, subject="user", retention="10d", allowed_lateness="1d")
exposures = ml.Source("exposures", Shown, subject="user", retention="10d", allowed_lateness="1d")
items = ml.Table("items", Item, key="item", allowed_lateness="1d")
bought = clicks.outcome("bought", bool, default=False, matures_after="1d")
paid = clicks.outcome("paid", ml.Money)
actions = clicks.decisions("coupons")


def policy(score, event):
    return "coupon" if score > 0.5 else "gift" if event.price < 10 else "nothing"


features = ml.FeatureSet(
    "coupons",
    on=clicks,
    evening=ml.on_demand(during_evening),
    category=ml.field("category"),
    session=clicks.by("session").agg(
        n=ml.count(over=["10m", "1h", "all"]),
        price=ml.mean("price", over=["1h", "last 5", "all"]),
        dearest=ml.max("price", over="last 5"),
        median=ml.median("price", over=["last 5", "all"]),
        items=ml.nunique("item", over=["last 5", "all"]),
        category=ml.mode("category", over=["last 5", "all"]),
        entered=ml.first("category", over="all"),
        came=ml.last("category", over=["10m", "last 5"], delay="5m"),
        before=ml.last_k("category", 3, over="all"),
        often=ml.top_k("category", 2, over="1h"),
        toys=ml.share("category", "toys", over=["last 5", "1h"]),
        idle=ml.time_since_last(over="all"),
        gap=ml.max_gap(over="all"),
        rank=ml.rank("price", over=["last 10", "all"]),
        again=ml.seen("item", over="all"),
        cheap=ml.streak("price < 20", over="all"),
        fall=ml.fold(fall, "price", over="last 5"),
    ),
    pair=clicks.by("session", "category").agg(
        n=ml.count(over=["1h", "last 5", "all"]),
        spent=ml.sum("price", over=["1h", "last 5"]),
        cheapest=ml.min_by("price", by="item", over="all"),
        items=ml.nunique("item", over="last 5"),
    ),
    hourly=clicks.by(hour_of_day, "category").agg(n=ml.count(over=["3d", "7d"]), users=ml.nunique("user", over="3d")),
    band=clicks.by("user", price_band).agg(n=ml.count(over=["1d", "all"]), category=ml.mode("category", over="last 5")),
    aisle=clicks.by("category").agg(
        n=ml.count(over=["6h", "1d", "7d"]),
        price=ml.mean("price", over=["6h", "7d"]),
        recent=ml.decayed_mean("price", half_life="6h", over="1d"),
        busy=ml.change(ml.count(), over="1h", against="1d"),
        dear=ml.ratio(ml.count(where="price > 50"), ml.count(), over=["1d", "last 50"]),
    ),
    item=clicks.by("item").agg(
        n=ml.count(over=["6h", "7d", "all"]),
        users=ml.nunique("user", over=["7d", "last 20"]),
        trend=ml.trend("price", over="7d"),
        low=ml.min("price", over="3d", empty=0.0),
        per_hour=ml.rate(over="1d"),
    ),
    offer=items.latest("category", "price"),
    offered=items.latest("price", delay="12h"),
    shown=exposures.by("session", "item").agg(n=ml.count(over="7d"), place=ml.min("place", over="7d")),
    shown_user=exposures.by("user", "item").agg(
        n=ml.count(over=["1h", "7d"]), since=ml.time_since_last(over="7d"), places=ml.histogram("place", (1, 3), over="7d")
    ),
    shown_session=exposures.by("session").agg(item=ml.seen("item", over="7d"), n=ml.count(over=["10m", "last 5"])),
    sold=bought.by("item", delay="1d").agg(n=ml.count(over="7d"), rate=ml.mean("bought", over=["3d", "7d"], empty=0.0)),
    buys=bought.by("user").agg(rate=ml.mean("bought", over=["7d", "last 5"]), category=ml.last("category", where="bought", over="all")),
    paid=paid.by("user").agg(total=ml.sum("paid", over="all"), latest=ml.last("paid", over="last 5"), since=ml.time_since_last(over="7d")),
    action=actions.by("session").agg(
        last=ml.last("action", over="all"),
        coupons=ml.count(over="all", where="action == 'coupon'"),
        kinds=ml.nunique("action", over="last 5"),
        score=ml.mean("score", over=["last 5", "all"]),
    ),
    action_item=actions.by("user", "item").agg(last=ml.last("action", over="7d"), coupons=ml.share("action", "coupon", over="7d")),
    dearer=ml.field("price") / ml.feature("session_price_all"),
    off=ml.feature("offer_price") - ml.field("price"),
    pull=(ml.feature("item_n_7d") + 1) / (ml.feature("shown_user_n_7d") + 1),
    price=ml.field("price"),
)  # fmt: skip
coupons = ml.UseCase("coupons", features, policy=policy)


# -- what happens --------------------------------------------------------------------------------------------------

Raw = tuple[int, int, int]  # session, item, microseconds
CATEGORIES = ("books", "garden", "music", "shoes", "spiele", "tea", "toys", "überseekoffer")


@dataclass(frozen=True)
class Sent:
    """Something that reaches the shop; a click may also come without being decided."""

    arrived: int
    stream: Any
    body: dict[str, Any]
    decides: bool = False


def read(path: Path, every: int = 1) -> list[Raw]:
    """The clicks of every so many sessions of the published file, in the order of time."""
    frame = pd.read_parquet(path)
    rows = zip(frame["SessionId"].tolist(), frame["ItemId"].tolist(), frame["Time"].tolist(), strict=True)
    views = [(session, item, round(time * 1000) * 1000) for session, item, time in rows if session % every == 0]
    return sorted(views, key=lambda raw: raw[2])


def simulate(sessions: int = 320, days: int = 14, seed: int = 0) -> list[Raw]:
    """Clicks of the same shape on a clock of minutes, over more days than anything is kept."""
    rng = random.Random(seed)
    start, views = 16_161 * DAY, []
    for session in range(1, sessions + 1):
        time = start + rng.randrange(days * DAY) // MINUTE * MINUTE
        item = 214_500_000 + int(rng.paretovariate(0.6)) % 200
        for _ in range(min(20, int(rng.paretovariate(0.7)))):
            views.append((session, item, time))
            time += rng.choice([0, 0, 1, 1, 2, 5, 10, 60]) * MINUTE
            item = item if rng.random() < 0.3 else 214_500_000 + int(rng.paretovariate(0.6)) % 200
    return sorted(views, key=lambda raw: raw[2])


def stream(raw: list[Raw], seed: int = 0) -> list[Sent]:
    """All that reaches the shop, in the order in which it does: items, what is shown, clicks, purchases and their corrections."""
    rng = random.Random(seed)
    start, end = raw[0][2], raw[-1][2]
    of_item = {item: rng.choice(CATEGORIES) for item in sorted({item for _, item, _ in raw})}
    sent: list[Sent] = []
    for item in of_item:
        sent += _life(item, of_item[item], start, end, rng)
    for k, (session, item, time) in enumerate(raw):
        who = {"session": session, "user": f"user {session % 211}", "item": item}
        for j in range(rng.choice([0, 1, 1, 2])):
            other = item if j == 0 else rng.choice(raw[max(0, k - 50) : k + 1])[1]
            before = time - rng.randrange(2 * MINUTE) // SECOND * SECOND
            body = {"id": f"s{k}-{j}", "time": iso(before), **who, "item": other, "place": rng.randrange(1, 21)}
            sent.append(Sent(before, exposures, body))
        category = None if rng.random() < 0.05 else of_item[item]
        body = {
            "id": f"c{k}",
            "time": iso(time),
            **who,
            "category": category,
            "price": rng.randrange(100, 10_000) / 100,
        }
        sent.append(Sent(time, clicks, body, True))
        sent += _purchase(body, time, rng)
    return _delivered(sent, rng)


def _life(item: int, category: str, start: int, end: int, rng: random.Random) -> list[Sent]:
    """What becomes of an item: it is there from the start or later, its price changes, it is deleted and may come back."""
    times = [start if rng.random() < 0.7 else rng.randrange(start, end)]
    times += sorted(rng.randrange(times[0], end + 1) for _ in range(rng.randrange(4)))
    sent = []
    for k, time in enumerate(times):
        time = time // SECOND * SECOND
        body: dict[str, Any] = {"id": f"i{item}-{k}", "time": iso(time), "item": item}
        if k and rng.random() < 0.3:
            body |= {"deleted": True}
        else:
            category = rng.choice(CATEGORIES) if rng.random() < 0.1 else category
            body |= {"category": category, "price": None if rng.random() < 0.1 else rng.randrange(100, 10_000) / 100}
        sent.append(Sent(time, items, body))
    return sent


def _purchase(click: dict[str, Any], time: int, rng: random.Random) -> list[Sent]:
    """What is said later of a click: one in four is a purchase, and of these one in four is sent back."""
    known_at = time + rng.randrange(2 * DAY)
    if rng.random() < 0.05:
        return [Sent(known_at, bought, {"id": click["id"], "bought": False})]
    if rng.random() > 0.25:
        return []
    sent = [Sent(known_at, bought, {"id": click["id"], "bought": True})]
    sent.append(Sent(known_at + HOUR, paid, {"id": click["id"], "paid": click["price"]}))
    if rng.random() < 0.25:
        back = known_at + 2 * HOUR + rng.randrange(2 * DAY)
        sent.append(Sent(back, bought, {"id": click["id"], "bought": False, "corrects": True}))
        sent.append(Sent(back, paid, {"id": click["id"], "paid": 0.0, "corrects": True}))
    return sent


def _delivered(sent: list[Sent], rng: random.Random) -> list[Sent]:
    """A tenth arrives late, twice, or out of order; of what arrives twice, the first may have been heard without a decision."""
    delivered = []
    for s in sent:
        how = rng.choice(["late", "twice", "out of order"]) if rng.random() < 0.1 else "at once"
        is_report = s.stream in (bought, paid)
        if how == "twice":
            heard = s.decides and rng.random() < 0.5
            delivered += [Sent(s.arrived, s.stream, s.body, s.decides and not heard)]
            delivered += [Sent(s.arrived + rng.randrange(3 * HOUR), s.stream, s.body, s.decides)]
        else:
            delay = {"late": rng.randrange(HOUR, DAY), "out of order": rng.randrange(5 * MINUTE)}.get(how, 0)
            delivered.append(Sent(s.arrived if is_report else s.arrived + delay, s.stream, s.body, s.decides))
    rng.shuffle(delivered)  # what arrives in the same microsecond comes in any order
    return sorted(delivered, key=lambda s: s.arrived)


def disordered(sent: list[Sent]) -> float:
    """Which share of the events arrives late, twice or out of order."""
    copies = Counter((s.stream.name, s.body["id"]) for s in sent if "time" in s.body)
    late = {(s.stream.name, s.body["id"]) for s in sent if "time" in s.body and iso(s.arrived) != s.body["time"]}
    return sum(n > 1 or event in late for event, n in copies.items()) / len(copies)
