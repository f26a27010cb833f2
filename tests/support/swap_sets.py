"""Feature sets of models that take turns."""

import mlpkg as ml
from mlpkg.examples.fraud.features import customer, during_night, terminal, transactions

amount = ml.field("amount")


SETS = [  # more than a worker keeps loaded
    {"amount": amount},
    {"customer": customer, "amount": amount},
    {"terminal": terminal, "amount": amount},
    {"amount": amount, "night": ml.on_demand(during_night), "customer": customer, "terminal": terminal},
    {"recent": transactions.by("customer_id").agg(n=ml.count(over=["1h", "3h"]), last=ml.last("amount", over="90d"))},
    {"sum": transactions.by("terminal_id").agg(paid=ml.sum("amount", over="14d")), "amount": amount},
]
