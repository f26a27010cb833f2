"""The handbook's use case with reasons: every decision is explained in the background, and another amount may help."""

import handbook

import mlpkg as ml
from mlpkg.serve.app import Application
from mlpkg.settings import Settings

WORDS = {"amount": "amount of this payment", "customer_avg_amount_7d": "average payment of this customer in a week"}

fraud = ml.UseCase(
    "fraud",
    handbook.features,
    policy=handbook.policy,
    reasons=ml.Reasons(True, {"decline": ["amount", "customer_n_tx_1d"]}, WORDS),
)


def application() -> Application:
    return Application("fraud", Settings.load())
