"""A shop that ranks items for its visitors: what was shown names the ranking and the place, and whether it was clicked is the outcome."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

import mlpkg as ml
from mlpkg.serve.app import Application
from mlpkg.settings import Settings


class Visit(ml.Event):
    user: str
    weekend: bool
    item: Annotated[int, Field(ge=0)] | None = None
    price: ml.Money | None = None


class Click(ml.Event):
    user: str
    item: int
    category: str
    price: ml.Money


class Shown(ml.Event):
    user: str
    item: int
    ranking: str
    place: Annotated[int, Field(ge=1)]


visits = ml.Source("visits", Visit, subject="user")
clicks = ml.Source("clicks", Click, subject="user")
shown = ml.Source("shown", Shown, subject="user")
clicked = shown.outcome("clicked", bool, default=False, matures_after="1h")


def cents(price):
    return (price * 100) % 100


def band(price):
    return (price // 20).astype(int)


features = ml.FeatureSet(
    "offers",
    on=visits,
    user=clicks.by("user").agg(n=ml.count(over=["1d", "7d"]), price=ml.median("price", over="7d"), often=ml.mode("category", over="7d")),
    item=clicks.by("item").agg(n=ml.count(over=["1d", "7d"]), users=ml.nunique("user", over="7d"), price=ml.mean("price", over="last 5")),
    pair=clicks.by("user", "item").agg(n=ml.count(over="7d"), since=ml.time_since_last(over="7d")),
    band=clicks.by(band).agg(n=ml.count(over="7d")),
    seen=shown.by("user", "item").agg(n=ml.count(over="1d"), place=ml.min("place", over="1d")),
    rate=clicked.by("item", delay="1h").agg(clicked=ml.mean("clicked", over="7d", empty=0.0)),
    visits=visits.by("user").agg(n=ml.count(over="1d")),
    ends=ml.on_demand(cents),
    price=ml.field("price"),
    weekend=ml.field("weekend"),
    dearer=ml.field("price") - ml.feature("user_price_7d"),
)  # fmt: skip


def policy(score, event):
    return f"item {event.item}" if score > 0.01 else "nothing"


def popular(event):
    return [{"item": item, "price": 5.0 + item} for item in range(8)]


offers = ml.UseCase(
    "offers",
    features,
    policy=policy,
    rank=("item", "price"),
    candidates=popular,
    fallback="as ever",
    max_candidates=200,
)


def application() -> Application:
    return Application(offers, Settings(state=Path(os.environ["MLPKG_STATE"]), trust_loopback=True))
