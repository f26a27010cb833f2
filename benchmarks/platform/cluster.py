"""What the benchmarks of a store on servers share: one Kafka broker, one Redis and one PostgreSQL, started for one benchmark."""

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "service"), str(HERE.parents[1] / "tests" / "support")]

from bench import ROOT, BenchmarkRow, Missing, arguments, environment, report, row  # noqa: E402
from confluent_kafka import Producer  # noqa: E402
from confluent_kafka.admin import NewTopic  # noqa: E402
from local_servers import parts  # noqa: E402
from local_servers.kafka_server import Kafka  # noqa: E402
from local_servers.postgres_server import Postgres  # noqa: E402
from local_servers.redis_server import Redis  # noqa: E402

from mlpkg.settings import Settings  # noqa: E402

__all__ = ["BenchmarkRow", "Cluster", "Missing", "environment", "main", "microseconds", "row"]

PARTITIONS = 4


class Cluster(contextlib.ExitStack):
    """The servers of one benchmark. Each has the settings it would have anywhere: Redis writes its commands to disk."""

    def __init__(self) -> None:
        super().__init__()
        folder = Path(tempfile.mkdtemp(prefix="mlpkg-bench-"))  # the user that PostgreSQL runs as can enter it
        folder.chmod(0o711)
        self.callback(shutil.rmtree, folder, ignore_errors=True)
        self.kafka = Kafka(folder / "kafka", java=("-Xmx512m",), options={"broker.session.timeout.ms": 30_000})
        self.redis, self.postgres = Redis(folder / "redis"), Postgres(folder / "postgres")
        try:
            for server in (self.kafka, self.redis, self.postgres):
                self.callback(server.remove)
                server.start()
        except parts.Missing as why:
            self.close()
            raise Missing(str(why)) from None

    def settings(self, state: Path, namespace: str = "bench") -> Settings:
        """The settings of an environment on these servers."""
        return Settings.model_validate({"state": state, **self.variables(namespace)})

    def variables(self, namespace: str = "bench") -> dict[str, str]:
        """The settings by name."""
        own = {"store": "cluster", "namespace": namespace, "kafka_protocol": "SASL_PLAINTEXT"}
        own["partitions"] = str(PARTITIONS)
        return own | self.kafka.settings() | self.redis.settings() | self.postgres.settings()

    def topic(self, name: str) -> str:
        """Make a topic."""
        self.kafka.admin.create_topics([NewTopic(name, PARTITIONS, 1)])[name].result()
        return name

    def producer(self, **options: Any) -> Producer:
        """A producer without mlpkg, that is as careful: every copy acknowledges, nothing is written twice."""
        careful = {"enable.idempotence": True, "acks": "all", "linger.ms": 0, "log_level": 0}
        return Producer(self.kafka.client_settings() | careful | options)


def microseconds(call: Callable[[Any], Any], arguments: Sequence[Any]) -> float:
    """The median microseconds of a call."""
    durations = []
    for argument in arguments:
        began = time.perf_counter_ns()
        call(argument)
        durations.append(time.perf_counter_ns() - began)
    return median(durations) / 1000


def main(doc: str, measure: Callable[[argparse.Namespace, Cluster], Iterator[BenchmarkRow]]) -> None:
    """Run a benchmark as a script."""
    options = arguments(doc).parse_args()
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / "build") as folder, Cluster() as cluster:
        options.folder = Path(folder)
        measured = list(measure(options, cluster))
    report(measured, options.output)
