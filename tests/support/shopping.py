"""A use case whose label hangs on texts: what was bought, and where its buyer usually buys."""

import mlpkg as ml


class Purchase(ml.Event):
    buyer: int
    kind: str | None = None
    price: ml.Money


purchases = ml.Source("purchases", Purchase, retention="90d", allowed_lateness="3d")
returned = purchases.outcome("returned", bool, default=False, matures_after="1d")


def policy(score, event):
    return "warn" if score > 0.5 else "pass"


features = ml.FeatureSet(
    "shopping",
    on=purchases,
    kind=ml.field("kind"),
    buyer=purchases.by("buyer").agg(usual=ml.mode("kind", over="7d"), n=ml.count(over="7d")),
    price=ml.field("price"),
)
shopping = ml.UseCase("shopping", features, policy=policy)
