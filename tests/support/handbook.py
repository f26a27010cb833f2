"""The fourteen features of the Fraud Detection Handbook as a use case of their own, and one whose truth is asked for early.

They stand in a module because a model names the code of its functions.
"""

from importlib import import_module
from typing import Any

import mlpkg as ml
from mlpkg.times import DAY, HOUR


class Transaction(ml.Event):
    customer_id: int
    terminal_id: int
    amount: ml.Money


transactions = ml.Source("transactions", Transaction, subject="customer_id", retention="90d", allowed_lateness="3d")
frauds = transactions.outcome("fraud", bool, default=False, matures_after="7d")


def during_night(time):
    return time // HOUR % 24 < 7


def during_weekend(time):
    return (time // DAY + 3) % 7 >= 5  # the first of January 1970 was a Thursday


def policy(score, event, *, decline: float = 0.5, review: float = 200.0):
    return "decline" if score > decline else "review" if event.amount > review else "approve"


days = ["1d", "7d", "30d"]
customer = transactions.by("customer_id").agg(n_tx=ml.count(over=days), avg_amount=ml.mean("amount", over=days))
terminal = frauds.by("terminal_id", delay="7d").agg(
    n_tx=ml.count(over=days), risk=ml.mean("fraud", over=days, empty=0.0)
)
features = ml.FeatureSet(
    "fraud",
    on=transactions,
    during_weekend=ml.on_demand(during_weekend),
    during_night=ml.on_demand(during_night),
    customer=customer,
    terminal=terminal,
    amount=ml.field("amount"),
)
fraud = ml.UseCase("fraud", features, policy=policy)

# The truth about a payment counts as soon as it is known, which may be long before silence means that it was honest.
early_features = ml.FeatureSet(
    "early",
    on=transactions,
    known=frauds.by("terminal_id").agg(n=ml.count(over="30d"), risk=ml.mean("fraud", over="30d")),
    later=frauds.by("terminal_id", delay="1d").agg(n=ml.count(over="30d"), risk=ml.mean("fraud", over="30d")),
    amount=ml.field("amount"),
)
early = ml.UseCase("early", early_features, policy=policy)


def __getattr__(name: str) -> Any:
    """What files are read and payments simulated with, found when it is needed: it needs pandas, deciding does not."""
    if name not in ("read", "simulate"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("mlpkg.examples.fraud.simulator"), name)
