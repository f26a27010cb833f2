"""Feast's online read of fourteen features that are ready, from Redis.

    python feast_online.py FOLDER HOST:PORT PASSWORD ROWS

It runs in Feast's own environment. It stores features for so many customers, says that it is ready, and then, for each number
that it reads from standard input, reads the features of that many customers one after the other and prints the median
microseconds of a read.
"""

import random
import sys
import time
from datetime import UTC, datetime, timedelta
from statistics import median

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float64, Int64

NAMES = [f"feature_{number}" for number in range(14)]


def stored(folder: str, address: str, password: str, rows: int) -> FeatureStore:
    """A feature store whose online store is Redis, with features of so many customers."""
    config = RepoConfig(
        project="bench",
        registry=f"{folder}/registry.db",
        provider="local",
        online_store={"type": "redis", "connection_string": f"{address},password={password}"},
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    fields = [Field(name=name, dtype=Float64) for name in NAMES]
    now = datetime.now(UTC)
    values = {name: [random.random() for _ in range(rows)] for name in NAMES}
    frame = pd.DataFrame({"customer_id": range(rows), "event_timestamp": [now] * rows} | values)
    frame.to_parquet(f"{folder}/features.parquet")
    view = FeatureView(
        name="windows",
        entities=[customer],
        ttl=timedelta(days=30),
        schema=[Field(name="customer_id", dtype=Int64), *fields],
        source=FileSource(path=f"{folder}/features.parquet", timestamp_field="event_timestamp"),
    )
    store.apply([customer, view])
    store.write_to_online_store("windows", frame)
    return store


def main() -> None:
    folder, address, password, rows = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    store, features = stored(folder, address, password, rows), [f"windows:{name}" for name in NAMES]

    def read(customer: int) -> dict[str, list[float]]:
        return store.get_online_features(features=features, entity_rows=[{"customer_id": customer}]).to_dict()

    if any(read(0)[name][0] is None for name in NAMES):
        sys.exit("Feast has not stored the features")
    print("ready", flush=True)
    for line in sys.stdin:
        taken = []
        for _ in range(int(line)):
            began = time.perf_counter_ns()
            read(random.randrange(rows))
            taken.append(time.perf_counter_ns() - began)
        print(median(taken) / 1000, flush=True)


if __name__ == "__main__":
    main()
