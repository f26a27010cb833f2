"""Decisions a second of one process of `mlpkg stream`, and of the embedded store in this process.

    python benchmarks/platform/stream.py [--full] [-o FILE]

Both decide new payments of random customers at random terminals on the same history, with the same model and the same settings.
The stream takes them from a topic of raw events that is full; Kafka (one broker, `acks=all`), Redis and PostgreSQL run on this
machine, and share its cores with the stream. A decision of the stream is committed and its offset too. The two take turns.
"""

import random
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent / "tests" / "support")]

from bench import ROOT, BenchmarkRow, Missing, arguments, report, row  # noqa: E402
from confluent_kafka import Producer  # noqa: E402
from handbook import handbook, load_history, make_model, payment  # noqa: E402
from local_servers import parts  # noqa: E402
from local_servers.kafka_server import Kafka  # noqa: E402
from local_servers.postgres_server import Postgres  # noqa: E402
from local_servers.redis_server import Redis  # noqa: E402

from mlpkg.decisions import Decider, StreamDecider  # noqa: E402
from mlpkg.models import promote  # noqa: E402
from mlpkg.settings import Settings  # noqa: E402
from mlpkg.store import Store, open_store, store_place  # noqa: E402
from mlpkg.store.steps import run_steps  # noqa: E402

TURNS = 3


def servers(folder: Path, stack: ExitStack) -> tuple[Kafka, dict[str, Any]]:
    """Start the servers of a store, which end with the block; return the broker and the settings."""
    kafka = Kafka(folder / "kafka", java=("-Xmx512m",))
    started = [kafka, Redis(folder / "redis"), Postgres(folder / "postgres")]
    settings: dict[str, Any] = {"store": "cluster", "namespace": "bench", "kafka_protocol": "SASL_PLAINTEXT"}
    for server in started:
        stack.callback(server.remove)
        settings |= server.start().settings()
    return kafka, settings


def prepare(store: Store, events: int) -> None:
    """Give a store the history and the active model."""
    case = handbook()
    store.register(case.name, case.features)
    load_history(case, store, events)
    promote(store, make_model(case, store.settings.state), by="a benchmark", why="to decide")


def embedded(store: Store, bodies: list[bytes]) -> float:
    """Decide payments in this process; return how many a second."""
    decider = Decider(handbook(), store)
    began = time.perf_counter()
    for body in bodies:
        decider.decide(body)
    return len(bodies) / (time.perf_counter() - began)


def streamed(store: Store, producer: Producer, bodies: list[bytes]) -> float:
    """Send payments to the raw topic, then decide them; return how many a second, from the first to the last batch."""
    case, times = handbook(), list[tuple[float, int]]()
    for body in bodies:
        producer.produce("bench.raw.transactions", body)
        producer.poll(0)
    producer.flush()
    place = store_place(store.settings)
    with closing(place.raw_events("stream", [case.on.stream])) as raw:
        stream = StreamDecider(case, store, raw)
        run_steps(stream, Event(), until_caught_up=True, progress=lambda n: times.append((time.perf_counter(), n)))
    if stream.counts != {"decided": len(bodies)}:
        raise SystemExit(f"not all were decided: {stream.counts}")
    batches = [(when, n) for when, n in times if n]
    return sum(n for _, n in batches[1:]) / (batches[-1][0] - batches[0][0])


def measure(options: Namespace, folder: Path) -> Iterator[BenchmarkRow]:
    number, rng, ids = 10_000 if options.full else 2_000, random.Random(7), count()

    def payments() -> list[bytes]:
        return [payment(f"tx-{next(ids)}", rng) for _ in range(number)]

    with ExitStack() as stack:
        kafka, settings = servers(folder, stack)
        small = stack.enter_context(closing(open_store(Settings(state=folder / "embedded"))))
        large = Settings(state=folder / "cluster", **settings)
        store_place(large).prepare(["transactions"])
        store = stack.enter_context(closing(open_store(large)))
        for each in (small, store):
            prepare(each, 50_000 if options.full else 10_000)
        producer = Producer(kafka.client_settings() | {"linger.ms": 5, "log_level": 0})
        ours, theirs = [], []
        for _ in range(TURNS):
            ours.append(streamed(store, producer, payments()))
            theirs.append(embedded(small, payments()))
    note = f"{number:,} decisions a turn; the servers share the cores"
    work = "mlpkg stream, one process, decisions a second"
    yield row(work, max(ours), "in this process on SQLite", max(theirs), "ours / theirs >= 0.5", "/s", note)


if __name__ == "__main__":
    options = arguments(__doc__ or "").parse_args()
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / "build") as folder:
        try:
            parts.java()
            measured = list(measure(options, Path(folder)))
        except (Missing, parts.Missing) as why:
            work = "mlpkg stream, one process, decisions a second"
            measured = [row(work, None, "in this process on SQLite", None, "ours / theirs >= 0.5", "/s", str(why))]
    report(measured, options.output)
