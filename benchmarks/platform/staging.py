"""Production's latency while staging mirrors it, against none that does.

    python benchmarks/platform/staging.py [--full] [-o FILE]

Kafka, Redis for each environment, and PostgreSQL run on this machine, and so does `mlpkg mirror` of staging, as a process of its own
with users of its own. One worker of production decides a payment every 25 ms. Turns with the mirror and without it, which is stopped
meanwhile, alternate in one run; a turn begins when the mirror is at the end of the log.

Staging has machines of its own, and this machine has to stand in for them: the mirror and staging's Redis run with `SCHED_IDLE`, so they
get the processor only while nobody else wants it. What staging asks of the servers that it shares, Kafka and PostgreSQL, takes its time
from production as it would anywhere.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path
from statistics import median, quantiles

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent / "tests" / "support"), str(HERE.parent)]

import handbook  # noqa: E402
import psutil  # noqa: E402
from bank import Bank  # noqa: E402
from bench import ROOT, BenchmarkRow, arguments, report, row  # noqa: E402
from environments import Environments, allow_reading, on_servers  # noqa: E402
from local_servers.kafka_server import Kafka  # noqa: E402
from local_servers.postgres_server import Postgres  # noqa: E402
from local_servers.redis_server import Redis  # noqa: E402

from mlpkg.models import adopt, find, promote  # noqa: E402
from mlpkg.rollout.mirror import compare_logs, mirror_offsets  # noqa: E402
from mlpkg.store import open_read_only, open_store  # noqa: E402

PACE = 0.025  # seconds from one payment to the next


def yield_processor(pid: int = 0) -> None:
    """Let a process, by default this one, have the processor only while nobody else wants it."""
    os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


def processor_seconds(pids: Sequence[int]) -> float:
    """The processor time of processes."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


class Turns:
    """A worker of production, and a mirror that can be stopped."""

    def __init__(self, environments: Environments, bank: Bank, mirror: "subprocess.Popen[bytes]", stack: ExitStack):
        self.bank, self.mirror, self.count = bank, mirror, 0
        self.log = stack.enter_context(closing(open_read_only(environments.mirrored)))
        self.staging = stack.enter_context(closing(open_store(environments.staging)))
        self.behind: list[float] = []
        self.shares: dict[bool, list[float]] = {True: [], False: []}  # of the processor that production took, by turn
        self.servers: Sequence[int] = ()  # of production

    def catch_up(self) -> float:
        """Wait until the mirror is at the end of the log, and return how many seconds that took."""
        began, until = time.monotonic(), self.log.newest_position()
        while mirror_offsets(self.log, self.staging).reached < until - 1:  # the last one is known to be so later
            self.bank.pays(f"tick-{self.count}", 100.0)
            self.count += 1
            time.sleep(0.2)
            if time.monotonic() - began > 120:
                raise SystemExit("the mirror does not come to the end of the log")
        return time.monotonic() - began

    def turn(self, number: int, mirrored: bool) -> list[float]:
        """Decide payments at a steady pace; return the seconds of each."""
        self.behind.append(self.catch_up())
        if not mirrored:
            os.kill(self.mirror.pid, signal.SIGSTOP)
        seconds, start, used = [], time.perf_counter(), time.process_time() + processor_seconds(self.servers)
        for k in range(number):
            time.sleep(max(0.0, start + k * PACE - time.perf_counter()))
            began = time.perf_counter()
            self.bank.pays(
                f"tx-{self.count}", self.count / 1000, customer_id=self.count % 50, terminal_id=self.count % 20
            )
            seconds.append(time.perf_counter() - began)
            self.count += 1
        used = time.process_time() + processor_seconds(self.servers) - used
        self.shares[mirrored].append(used / (time.perf_counter() - start) / (os.cpu_count() or 1))
        if not mirrored:
            os.kill(self.mirror.pid, signal.SIGCONT)
        return seconds


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    rounds, number = (20, 500) if options.full else (8, 120)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlpkg-staging-")))
        folder.chmod(0o711)
        servers = [
            Kafka(folder / "kafka"),
            Redis(folder / "redis"),
            Redis(folder / "redis-2"),
            Postgres(folder / "postgres"),
        ]
        for server in servers:
            stack.callback(server.remove)
            server.start()
        kafka, redis, staging_redis, postgres = servers
        url = postgres.make_database("bench")
        environments = stack.enter_context(
            on_servers(folder / "project", kafka, redis, staging_redis, url, "fraud = handbook:fraud")
        )
        bank = Bank(handbook.fraud, environments.production)
        stack.callback(bank.store.close)
        allow_reading(environments, kafka, url)
        with closing(open_store(environments.staging)) as staging:
            staging.register("fraud", handbook.features)
            model = find(environments.production.state, "fraud", bank.version)
            promote(staging, adopt(environments.staging.state, model.folder), by="a benchmark", why="as in production")
        path = os.pathsep.join([str(ROOT / "tests" / "support"), str(ROOT)])
        variables = os.environ | environments.variables | {"PYTHONPATH": path}
        command = [sys.executable, "-m", "mlpkg.cli", "mirror", "--since", "2000-01-01"]
        mirror = subprocess.Popen(
            command,
            cwd=environments.folder,
            env=variables,
            stderr=subprocess.DEVNULL,
            preexec_fn=yield_processor,
        )
        yield_processor(staging_redis.pid or 0)
        stack.callback(mirror.wait)
        stack.callback(mirror.kill)
        turns = Turns(environments, bank, mirror, stack)
        turns.servers = [kafka.brokers[0].pid, redis.pid]
        turns.turn(number, mirrored=True)  # warms up
        own = [mirror.pid, staging_redis.pid or 0]
        spent, before = processor_seconds(own), turns.count
        seconds: dict[bool, list[list[float]]] = {True: [], False: []}
        for k in range(rounds):
            for mirrored in (True, False)[:: 1 if k % 2 else -1]:
                seconds[mirrored].append(turns.turn(number, mirrored))
        turns.catch_up()
        compared = compare_logs("fraud", turns.log, turns.staging)
        work, peer = "one decision on servers while staging mirrors production", "no mirror"
        note = f"{compared.decisions} decisions compared, {compared.different} differ, {compared.missing} missing; "
        note += f"at the end of the log {max(turns.behind[1:]):.1f} s after a turn at most; "
        shares = {mirrored: f"{100 * median(of_turns):.0f} %" for mirrored, of_turns in turns.shares.items()}
        note += f"production's worker, Kafka and Redis take {shares[True]} of the processor, {shares[False]} without; "
        spent = (processor_seconds(own) - spent) / (turns.count - before)
        note += f"staging's mirror and Redis {1e6 * spent:.0f} µs a decision"
        p50 = {mirrored: 1e6 * median(map(median, turns_of)) for mirrored, turns_of in seconds.items()}
        p99 = {m: 1e6 * quantiles(chain.from_iterable(turns_of), n=100)[98] for m, turns_of in seconds.items()}
        yield row(f"{work}, p50", p50[True], peer, p50[False], "ours / theirs <= 1.05", "µs", note)
        yield row(f"{work}, p99", p99[True], peer, p99[False], "ours / theirs <= 1.05", "µs")


if __name__ == "__main__":
    options = arguments(__doc__ or "", "more and longer turns").parse_args()
    report([*measure(options)], options.output)
