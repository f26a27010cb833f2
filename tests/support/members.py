"""Visits of members, whose tiers lie in a table of a database."""

from typing import Annotated

from pydantic import Field

import mlpkg as ml


class Visit(ml.Event):
    member: int
    pages: Annotated[int, Field(ge=0, le=1000)] = 1


class Member(ml.Event):
    member: int
    tier: Annotated[int, Field(ge=0, le=9)]
    credit: ml.Money | None = None
    born: int | None = None  # seconds since 1970


visits = ml.Source("visits", Visit, subject="member")
bought = visits.outcome("bought", bool, default=False, matures_after="1d")
members = ml.Table("members", Member, key="member", database_columns={"member": "id"})
features = ml.FeatureSet(
    "visits",
    on=visits,
    known=members.latest("tier", "credit", "born"),
    changes=members.by("member").agg(n=ml.count(over="all")),
    pages=ml.field("pages"),
)


def policy(score, visit):
    return "offer" if score > 0.5 else "nothing"


case = ml.UseCase("visits", features, policy=policy)
