"""A use case whose label hangs on texts: what was bought, and where its buyer usually buys."""

import mlpkg as ml


class Purchase(ml.Event):
    buyer: int
    kind: str | None = None
    price: ml.Money


purchases = ml.Source("purchases", Purchase, keep="90d", lateness="3d")
returned = purchases.outcome("returned", bool, presume=False, after="1d")


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
