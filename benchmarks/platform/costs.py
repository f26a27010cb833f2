"""What a decision on servers takes: processor time of each part, bytes in Kafka, memory in Redis.

    python benchmarks/platform/costs.py [--full] [-o FILE]

A process decides one event after the other, without HTTP, on one Kafka broker and one Redis. Processor time is what the
operating system counted for the process of a part. No work is shared by several decisions, so it is the most that one takes.
Bytes are those that the files of the broker and the memory of Redis have grown by. `docs/scaling.md` plans with these figures.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "service"), str(HERE.parents[1] / "tests" / "support")]

import psutil  # noqa: E402
import psycopg  # noqa: E402
import redis  # noqa: E402
from bench import BenchmarkRow, row  # noqa: E402
from handbook import handbook, load_history, make_model  # noqa: E402
from local_servers.kafka_server import Kafka  # noqa: E402
from local_servers.postgres_server import Postgres  # noqa: E402
from local_servers.redis_server import Redis  # noqa: E402
from served import main, payments  # noqa: E402

from mlpkg.decisions import Decider  # noqa: E402
from mlpkg.models import promote  # noqa: E402
from mlpkg.settings import Settings  # noqa: E402
from mlpkg.store import open_store  # noqa: E402


def start_servers(stack: contextlib.ExitStack) -> dict[str, Any]:
    """Start the servers; they are removed with the stack."""
    folder = Path(tempfile.mkdtemp(prefix="mlpkg-bench-"))  # the user that PostgreSQL runs as can enter it
    folder.chmod(0o711)
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    made = {"Kafka": Kafka(folder / "kafka", java=("-Xmx512m",)), "Redis": Redis(folder / "redis")}
    made["PostgreSQL"] = Postgres(folder / "postgres")
    for server in made.values():
        stack.callback(server.remove)
        server.start()
    return made


def make_environment(settings: Settings, events: int) -> None:
    """Load a history into the store on servers, and promote a model."""
    case, store = handbook(), open_store(settings)
    store.register(case.name, case.features)
    load_history(case, store, events)
    promote(store, make_model(case, settings.state), by="benchmark", why="a model of the usual size")
    store.close()


def processor_seconds(pid: int) -> float:
    """The processor time of a process."""
    return sum(psutil.Process(pid).cpu_times()[:2])


def decide_all(decider: Decider, count: int) -> None:
    """Decide so many payments, one after the other."""
    for body in payments(count):
        decider.decide(body)


def bytes_under(folder: Path) -> int:
    """What the log segments of a broker hold."""
    return sum(path.stat().st_size for path in folder.rglob("bench.*/*.log"))


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    count = 10_000 if options.full else 3_000
    with contextlib.ExitStack() as stack:
        servers = start_servers(stack)
        named = {name: value for server in servers.values() for name, value in server.settings().items()}
        named |= {"store": "cluster", "namespace": "bench", "kafka_protocol": "SASL_PLAINTEXT", "partitions": 4}
        settings = Settings.model_validate({"state": options.folder / "made"} | named)
        make_environment(settings, 5 * count)
        client = redis.Redis.from_url(settings.redis)
        broker = servers["Kafka"].brokers[0]
        pids = {"the worker": os.getpid(), "Kafka": broker.pid, "Redis": servers["Redis"].pid}
        store = open_store(settings)
        decider = Decider(handbook(), store)
        decide_all(decider, count // 5)  # Java compiles what runs often

        def state() -> dict[str, float]:
            used = {name: processor_seconds(pid) for name, pid in pids.items()}
            return used | {"log": bytes_under(broker.folder), "memory": client.info("memory")["used_memory_dataset"]}

        with psycopg.connect(servers["PostgreSQL"].url) as connection:
            query = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            (connections,) = connection.execute(query).fetchone() or (0,)
        before = state()
        decide_all(decider, count)
        grown = {name: value - before[name] for name, value in state().items()}
        store.close()
    each = {name: value / count for name, value in grown.items()}
    figures = {f"processor time of {name} for a decision on servers": (each[name] * 1e6, "µs") for name in pids}
    figures["event and decision in Kafka, one copy"] = each["log"], "bytes"
    figures["event in Redis, with one row and an id"] = each["memory"], "bytes"
    figures["connections of a worker to PostgreSQL"] = connections, ""
    for work, (value, unit) in figures.items():
        yield row(work, value, "", None, "ours >= 0", unit)


if __name__ == "__main__":
    main(__doc__ or "", measure)
