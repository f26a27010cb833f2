"""Events a second into the log and the timelines in Redis, beside Quix Streams and a bare consumer; memory over many events.

    python benchmarks/platform/aggregator.py [--full] [-o FILE]

Payments lie in a topic as an application has written them: JSON, by customer. One process of mlpkg consumes them, validates
them, and loads them into its store: a message in its log, a known id and a row of the customer's timeline for each. Quix Streams
consumes the same topic and keeps one window of one day a customer, in RocksDB. The bare consumer validates nothing; it writes an
id and a row of the same sizes to Redis, a thousand in one round trip. All take turns with one process each.

The memory is that of a process that accepts many more events.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import redis
from cluster import BenchmarkRow, Cluster, Missing, environment, main, row
from confluent_kafka import Consumer
from handbook import CUSTOMERS, TERMINALS, handbook

from mlpkg.schema import Source
from mlpkg.store import Batch, Store, open_store
from mlpkg.times import DAY, iso, now

TOGETHER = 5000  # events of one batch
HERE = Path(__file__).resolve().parent


def produce(cluster: Cluster, topic: str, events: int) -> None:
    """Write payments into a topic, in the order of their times."""
    rng, producer = np.random.default_rng(7), cluster.producer(**{"linger.ms": 5})
    end = now() - DAY
    times = np.sort(rng.integers(end - 30 * DAY, end, events)).tolist()
    customers, terminals = rng.integers(0, CUSTOMERS, events).tolist(), rng.integers(0, TERMINALS, events).tolist()
    amounts = rng.gamma(2, 25, events).round(2).tolist()
    for number, (when, customer, terminal, amount) in enumerate(zip(times, customers, terminals, amounts, strict=True)):
        body = {"id": f"e-{number}", "time": iso(when), "customer_id": customer, "terminal_id": terminal}
        producer.produce(topic, json.dumps(body | {"amount": amount}), str(customer), timestamp=when // 1000)
        producer.poll(0)
    producer.flush()


def consumed(cluster: Cluster, topic: str, events: int) -> Iterator[list[bytes]]:
    """Yield the bodies of a topic, some thousands at a time."""
    options = {"group.id": f"bench-{time.time_ns()}", "auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer = Consumer(cluster.kafka.client_settings() | options | {"log_level": 0})
    consumer.subscribe([topic])
    left = events
    while left:
        messages = [m for m in consumer.consume(min(TOGETHER, left), 5) if m.error() is None]
        left -= len(messages)
        yield [m.value() or b"" for m in messages]
    consumer.close()


def a_second(batches: Iterator[list[bytes]], work: Any, events: int) -> float:
    """Events a second, from the first batch on."""
    first, began = next(batches), time.perf_counter()
    work(first)
    for batch in batches:
        work(batch)
    return events / (time.perf_counter() - began)


def batch_of(source: Source, bodies: list[bytes], prefix: str) -> Batch:
    """Validate bodies; each turn has ids of its own."""
    rows = [source.parse(body) for body in bodies]
    times = np.array([row.time for row in rows], np.int64)
    return Batch(
        streams=[source],
        stream=np.zeros(len(rows), np.int64),
        ids=[prefix + row.id for row in rows],
        time=times,
        arrived=times,
        bodies=[row.body for row in rows],
        codes={source.stream: np.array([row.codes for row in rows], np.int64)},
        rows=np.arange(len(rows)),
    )


def load(store: Store, source: Source, prefix: str, bodies: list[bytes]) -> None:
    """Validate and load events."""
    loaded = store.load(batch_of(source, bodies, prefix))
    if sum(loaded.new.values()) != len(bodies):
        raise SystemExit(f"only {loaded.new} of {len(bodies)} events were loaded")


def bare(client: Any, prefix: str, bodies: list[bytes]) -> None:
    """Write an id and a row for each message."""
    for begin in range(0, len(bodies), 1000):
        pipeline = client.pipeline(transaction=False)
        for body in bodies[begin : begin + 1000]:
            event = json.loads(body)
            pipeline.hset(f"{prefix}:ids", event["id"], b"x" * 54)
            pipeline.zadd(f"{prefix}:{event['customer_id']}", {event["id"].ljust(40): begin})
        pipeline.execute()


def quix(cluster: Cluster, topic: str, events: int, folder: Path) -> float:
    """Events a second of Quix Streams."""
    command = [environment("quix"), HERE / "quix_window.py", json.dumps(cluster.kafka.client_settings()), topic]
    done = subprocess.run([*command, str(events), folder], capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"Quix Streams: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return float(done.stdout.strip().splitlines()[-1])


def measure(options: argparse.Namespace, cluster: Cluster) -> Iterator[BenchmarkRow]:
    events, turns = (100_000, 3) if options.full else (20_000, 2)
    topic, case = cluster.topic("payments"), handbook()
    produce(cluster, topic, events)
    settings = cluster.settings(options.folder / "state")
    store, client = open_store(settings), redis.Redis.from_url(settings.redis)
    store.register(case.name, case.features)
    rates: dict[str, list[float]] = {"ours": [], "quix": [], "bare": []}
    note = ""
    for number in range(turns):
        begun = (consumed(cluster, topic, events) for _ in range(2))
        rates["ours"].append(a_second(next(begun), lambda b, n=number: load(store, case.on, f"{n}-", b), events))
        rates["bare"].append(a_second(next(begun), lambda b, n=number: bare(client, f"bare-{n}", b), events))
        try:
            rates["quix"].append(quix(cluster, topic, events, options.folder / f"quix-{number}"))
        except Missing as why:
            note = str(why)
    best = {name: max(each, default=None) for name, each in rates.items()}
    work = f"{events:,} events of a topic into the log and Redis, one process"
    yield row(work, best["ours"], "Quix Streams, one window", best["quix"], "ours / theirs >= 3", "events/s", note)
    peer, must = "bare consumer, pipelined writes", "ours / theirs >= 0.333"
    yield row(work, best["ours"], peer, best["bare"], must, "events/s")
    yield memory(store, case.on, 1_000_000 if options.full else 60_000)
    store.close()


def memory(store: Store, source: Source, events: int) -> BenchmarkRow:
    """The resident memory of this process while it loads many events."""
    process, parts, samples = psutil.Process(), 6, []
    rng, end = np.random.default_rng(8), now() - DAY
    for part in range(parts):
        for begin in range(0, events // parts, TOGETHER):
            bodies = [
                json.dumps(
                    {
                        "id": f"m-{part}-{begin + k}",
                        "time": iso(end),
                        "customer_id": int(rng.integers(CUSTOMERS)),
                        "terminal_id": int(rng.integers(TERMINALS)),
                        "amount": 5.0,
                    }
                ).encode()
                for k in range(min(TOGETHER, events // parts - begin))
            ]
            load(store, source, "", bodies)
        samples.append(process.memory_info().rss / 2**20)
    note = f"half-way {median(samples):.0f} MB"
    work = f"memory of a process that loads {events:,} events more"
    return row(work, samples[-1], "after a sixth of them", samples[0], "ours / theirs <= 1.05", "MB", note)


if __name__ == "__main__":
    main(__doc__ or "", measure)
