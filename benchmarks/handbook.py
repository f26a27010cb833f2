"""The decision that is measured: the fourteen features of the Fraud Detection Handbook and the amount, 200 trees, and a history.

Customers and terminals of the history have some tens to a hundred events each, up to now.
"""

import json
import random
from pathlib import Path

import numpy as np

import mlpkg as ml
from mlpkg import UseCase, models
from mlpkg.decisions import use_case
from mlpkg.examples.fraud.features import during_night, during_weekend
from mlpkg.models import Model, promote
from mlpkg.settings import Settings
from mlpkg.store import Batch, Store, open_store
from mlpkg.times import DAY, iso, now

EVENTS, CUSTOMERS, TERMINALS, DAYS = 50_000, 500, 1000, 40
TREES, LEAVES = 200, 31


def handbook(case: UseCase | None = None) -> UseCase:
    """A use case, by default that of card fraud, with the fourteen features of the handbook, and the amount."""
    case = case or use_case("fraud")
    days, source, frauds = ["1d", "7d", "30d"], case.on, case.on.outcomes["fraud"]
    customer = source.by("customer_id").agg(n_tx=ml.count(over=days), avg_amount=ml.mean("amount", over=days))
    terminal = frauds.by("terminal_id", delay="7d").agg(
        n_tx=ml.count(over=days), risk=ml.mean("fraud", over=days, empty=0.0)
    )
    present = {"amount": ml.field("amount")}
    present |= {f.__name__: ml.on_demand(f) for f in (during_night, during_weekend)}
    features = ml.FeatureSet("fraud", on=source, customer=customer, terminal=terminal, **present)
    return UseCase("fraud", features, policy=case.policy, reasons=case.reasons if case.reasons.actions else False)


def load_history(
    case: UseCase, store: Store, events: int = EVENTS, customers: int = CUSTOMERS, terminals: int = TERMINALS
) -> None:
    """Load forty days of payments up to now, and the outcomes of those that are older than a week."""
    rng = np.random.default_rng(7)
    end = now()
    times = np.sort(rng.integers(end - DAYS * DAY, end - DAY, events))
    values = {
        "customer_id": rng.integers(0, customers, events),
        "terminal_id": rng.integers(0, terminals, events),
        "amount": rng.gamma(2, 25, events).round(2),
    }
    source, outcome = case.on, case.on.outcomes["fraud"]
    each = zip(*(v.tolist() for v in values.values()), strict=True)
    bodies = [json.dumps(dict(zip(values, row, strict=True))) for row in each]
    reported = np.flatnonzero(times < end - 7 * DAY)
    truth = rng.random(len(reported)) < 0.01
    ids = [f"h-{i}" for i in range(events)]
    codes = np.column_stack([c.encode_many(values[c.name]) for c in source.columns])
    store.load(
        Batch(
            streams=[source, outcome],
            stream=np.repeat([0, 1], [events, len(reported)]),
            ids=ids + [ids[i] for i in reported.tolist()],
            time=np.concatenate([times, times[reported]]),
            arrived=np.concatenate([times, times[reported] + 7 * DAY]),
            bodies=bodies + [json.dumps({outcome.name: t}) for t in truth.tolist()],
            codes={source.stream: codes, outcome.stream: truth.astype(np.int64)[:, None]},
            rows=np.arange(events + len(reported)),
        )
    )


def make_model(case: UseCase, state: Path) -> Model:
    """Train a model of the usual size on noise: its scores do not matter here, its cost does."""
    import lightgbm as lgb  # takes a while, and a server of the use case does not need it

    rng = np.random.default_rng(1)
    names = case.features.names
    rows = rng.gamma(2, 25, (20_000, len(names)))
    label = (rows @ rng.normal(size=len(names)) > 0) ^ (rng.random(len(rows)) < 0.1)
    parameters = {"objective": "binary", "num_leaves": LEAVES, "verbose": -1, "num_threads": 2}
    booster = lgb.train(parameters, lgb.Dataset(rows, label.astype(int), feature_name=names), TREES)
    version = models.save(state, case.name, booster, case.features, metrics={}, lineage={}, policy={})
    return models.find(state, case.name, version)


def make_store(settings: Settings | Path, case: UseCase | None = None, events: int = EVENTS) -> Model:
    """Make a store with the history and an active model, embedded where `settings` are a folder. Return the model."""
    case, settings = case or handbook(), settings if isinstance(settings, Settings) else Settings(state=settings)
    store = open_store(settings)
    store.register(case.name, case.features)
    load_history(case, store, events)
    model = make_model(case, settings.state)
    promote(store, model, by="benchmark", why="a model of the usual size")
    store.close()
    return model


def payment(id: str, rng: random.Random, customers: int = CUSTOMERS, terminals: int = TERMINALS) -> bytes:
    """A new payment of a known customer at a known terminal."""
    event = {
        "id": id,
        "time": iso(now()),
        "customer_id": rng.randrange(customers),
        "terminal_id": rng.randrange(terminals),
        "amount": round(rng.gammavariate(2, 25), 2),
    }
    return json.dumps(event).encode()
