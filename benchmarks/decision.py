"""One decision in this process, durable to the death of the process: the handbook's fourteen features and 200 trees.

    python benchmarks/decision.py [--customers 1000] [--days 60] [--decisions 3000] [--state FOLDER] [--json]

Without --state a store of simulated payments is built in a temporary folder; with it, a copy of that folder's store is
used and nothing in it is changed. Every decision is about a new payment of a random customer at a random terminal.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import lightgbm as lgb
import numpy as np

import mlpkg as ml
from mlpkg import UseCase, models
from mlpkg.decisions import Decider, promote, use_case
from mlpkg.fraud.features import during_night, during_weekend
from mlpkg.lab.fraud import simulate
from mlpkg.lab.ingest import ingest_file
from mlpkg.platform import Platform
from mlpkg.platform import open as open_platform
from mlpkg.settings import Settings
from mlpkg.times import DAY, iso

TREES, LEAVES = 200, 16


def handbook(case: UseCase) -> UseCase:
    """The use case with the fourteen features of the handbook, and the amount."""
    days, source, frauds = ["1d", "7d", "30d"], case.on, case.on.outcomes["fraud"]
    customer = source.by("customer_id").agg(n_tx=ml.count(over=days), avg_amount=ml.mean("amount", over=days))
    terminal = frauds.by("terminal_id", delay="7d").agg(
        n_tx=ml.count(over=days), risk=ml.mean("fraud", over=days, empty=0.0)
    )
    present = {"amount": ml.field("amount")}
    present |= {f.__name__: ml.request(f) for f in (during_night, during_weekend)}
    return UseCase(
        "fraud", ml.FeatureSet("fraud", on=source, customer=customer, terminal=terminal, **present), policy=case.policy
    )


def filled(case: UseCase, settings: Settings, state: Path | None, customers: int, days: int) -> Platform:
    """A platform with a history: simulated, or a copy of another store."""
    settings.state.mkdir(parents=True, exist_ok=True)
    if state is not None:
        for file in state.glob(f"{settings.store.name}*"):
            shutil.copyfile(file, settings.state / file.name)
        return open_platform(settings)
    platform = open_platform(settings)
    payments = settings.state / "payments.parquet"
    simulate(customers, 2 * customers, days).to_parquet(payments)
    ingest_file(case, payments, platform)
    return platform


def make_live(case: UseCase, platform: Platform) -> None:
    """A model on noise: what it says does not matter here, what it costs does."""
    rng = np.random.default_rng(0)
    rows = rng.uniform(0, 100, (20_000, len(case.features.names)))
    labels = (rows[:, 0] + rng.normal(0, 10, len(rows)) > 60).astype(int)
    data = lgb.Dataset(rows, labels, feature_name=case.features.names)
    booster = lgb.train({"objective": "binary", "verbose": -1, "num_leaves": LEAVES, "num_threads": 1}, data, TREES)
    state = platform.settings.state
    version = models.save(state, case.name, booster, case.features, metrics={}, lineage={}, policy={})
    promote(platform, models.find(state, case.name, version), by="benchmark", why="to measure it")


def measure(case: UseCase, platform: Platform, decisions: int) -> np.ndarray:
    """The time of each decision, in microseconds."""
    decider = Decider(case, platform)
    events = platform.history([case.on], []).events[case.on.name]
    last, keys = int(events.time.max()), {name: np.unique(events.columns[name]) for name in case.features.keys}
    del events
    rng = np.random.default_rng(1)
    bodies = []
    for k in range(decisions + decisions // 10):
        about = {name: int(rng.choice(known)) for name, known in keys.items()}
        event = {"id": f"bench-{k}", "time": iso(last + k * 1000), **about, "amount": round(rng.uniform(1, 200), 2)}
        bodies.append(json.dumps(event).encode())
    taken = np.empty(len(bodies))
    for k, body in enumerate(bodies):
        began = time.perf_counter_ns()
        decider.decide(body, arrived=last + DAY)
        taken[k] = (time.perf_counter_ns() - began) / 1000
    return taken[decisions // 10 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--customers", type=int, default=1000)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--decisions", type=int, default=3000)
    parser.add_argument("--state", type=Path, help="a folder that holds a store to copy")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    case = handbook(use_case("fraud"))
    with tempfile.TemporaryDirectory() as folder:
        platform = filled(case, Settings(state=Path(folder)), given.state, given.customers, given.days)
        platform.register(case.name, case.features)
        make_live(case, platform)
        taken = measure(case, platform, given.decisions)
        found = {
            "decisions": len(taken),
            "events": platform.last_position(),
            "features": len(case.features.names),
            "p50_us": round(float(np.median(taken)), 1),
            "p99_us": round(float(np.percentile(taken, 99)), 1),
            "least_us": round(float(taken.min()), 1),
        }
        platform.close()
    if given.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name:>10}  {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
