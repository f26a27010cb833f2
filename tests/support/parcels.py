"""A shop whose outcomes are texts: why a parcel came back, which nobody presumes, and in which state it arrived, which silence decides."""

from typing import Literal

import mlpkg as ml


class Parcel(ml.Event):
    customer: int
    weight: ml.Money


parcels = ml.Source("parcels", Parcel, subject="customer", retention="90d", allowed_lateness="90d")
why = parcels.outcome("why", str)
state = parcels.outcome("state", Literal["fine", "dented", "lost"], default="fine", matures_after="2d")


def policy(score, event):
    return "insure" if score > 0.5 else "send"


features = ml.FeatureSet(
    "parcels",
    on=parcels,
    back=why.by("customer").agg(
        n=ml.count(over="30d"),
        kinds=ml.nunique("why", over="30d"),
        last=ml.last("why", over="30d"),
        late=ml.count(over="30d", where="why == 'late'"),
        other=ml.count(over="30d", where="why not in ('late', 'broken')"),
        streak=ml.streak("why == 'late'", over="30d"),
    ),
    arrived=state.by("customer").agg(
        n=ml.count(over="30d"),
        usual=ml.mode("state", over="30d"),
        last=ml.last("state", over="last 3"),
        fine=ml.share("state", "fine", over="30d"),
        bad=ml.count(over="30d", where="not state == 'fine'"),
        weight=ml.mean("weight", over="30d", where="state == 'dented'"),
    ),
    weight=ml.field("weight"),
)
case = ml.UseCase("parcels", features, policy=policy)
