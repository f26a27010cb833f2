"""Reason codes beside live traffic, against `pred_contrib` alone, and what they cost the decisions.

    python benchmarks/service/reasons.py [--full] [-o FILE]

Two services take turns, one whose decisions are explained in the background and one without reasons; a payment is decided every few
milliseconds, and the reader of reasons keeps up. Then the first one decides very many payments at once, so that its reader is
behind and works as fast as it can, and gets the same traffic again. `pred_contrib` alone is one call for many recorded rows, in
one thread.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import closing
from statistics import median

import numpy as np
import psutil
from served import BenchmarkRow, LoadResult, Server, Servers, main, payments, row

from mlpkg.reasons import explanations
from mlpkg.reasons.changed_event import recorded_columns
from mlpkg.settings import Settings
from mlpkg.store import Store, decisions_of, open_store, reasons_of

RATE, CONNECTIONS = 40, 4  # decisions a second, with which the reader keeps up on a busy machine, too


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    rounds, waiting, turn = (8, 3000, 1200) if options.full else (4, 1000, 400)
    with Servers(options.folder) as servers:
        none, explained = servers.ours(), servers.ours(MLPKG_USE_CASES="fraud = reasoned:fraud")
        for server in (none, explained):
            server.wait()
        assert explained.state
        results: dict[str, list[LoadResult]] = {"none": [], "reasons": [], "behind": []}
        speeds: list[tuple[float, float, float]] = []
        cpu: dict[str, list[float]] = {"none": [], "reasons": []}
        with closing(open_store(Settings(state=explained.state))) as store:
            for number in range(rounds + 1):  # the first one warms up
                turns = (("none", none), ("reasons", explained))[:: 1 if number % 2 else -1]
                steady, took = {}, {}
                for name, server in turns:
                    begun = worker_seconds(server)
                    steady[name] = server.ask(payments(turn), CONNECTIONS, RATE)
                    took[name] = (worker_seconds(server) - begun) / turn * 1e6
                caught_up(store)
                explained.ask(payments(waiting), 16)
                reader, begun = Reader(explained, store), time.perf_counter()
                behind = explained.ask(payments(turn), CONNECTIONS, RATE)
                made = reader.speed(time.perf_counter() - begun)
                caught_up(store)
                if number:
                    for name, result in (*steady.items(), ("behind", behind)):
                        results[name].append(result)
                    for name, seconds in took.items():
                        cpu[name].append(seconds)
                    speeds.append((*made, contributions_alone(servers, store)))
            actions = [e.action for _, e in explanations("fraud", store)]
        declined = sum(action == "decline" for action in actions) / len(actions)
        note = f"{len(actions)} explanations, of which {declined:.0%} with the search for another amount"
        wall, own, alone = (median(values) for values in zip(*speeds, strict=True))
        p50 = {name: median(a.p50 for a in each) for name, each in results.items()}
        p99 = {name: median(a.p99 for a in each) for name, each in results.items()}
        work, peer = "explanations beside live traffic", "pred_contrib alone"
        yield row(f"{work}, for each second of CPU", own, peer, alone, "ours / theirs >= 0.5", "a second", note)
        yield row(f"{work}, by the clock", wall, peer, alone, "stated", "a second")
        work, peer = "one decision over HTTP while reasons are given", "no reasons"
        yield row(f"{work}, p99", p99["reasons"], peer, p99["none"], "ours / theirs <= 1.2", "µs")
        yield row(f"{work}, p50", p50["reasons"], peer, p50["none"], "stated", "µs")
        yield row(f"{work}, CPU of the worker", median(cpu["reasons"]), peer, median(cpu["none"]), "stated", "µs")
        yield row("the same while their reader is behind, p99", p99["behind"], peer, p99["none"], "stated", "µs")
        yield row("the same while their reader is behind, p50", p50["behind"], peer, p50["none"], "stated", "µs")


def follows(process: psutil.Process) -> bool:
    """Whether a process is the one that explains."""
    return "mlpkg.serve.follower" in " ".join(process.cmdline())


def cpu_seconds(process: psutil.Process) -> float:
    """Return the seconds of CPU that a process has taken."""
    times = process.cpu_times()
    return times.user + times.system


def worker_seconds(server: Server) -> float:
    """Return the seconds of CPU that the processes of a server have taken, without the one that explains."""
    own = psutil.Process(server.process.pid)
    return sum(cpu_seconds(p) for p in (own, *own.children(recursive=True)) if not follows(p))


class Reader:
    """The process that explains, from now on."""

    def __init__(self, server: Server, store: Store):
        (self._process,) = filter(follows, psutil.Process(server.process.pid).children(recursive=True))
        self._store, self._begin, self._cpu = store, store.last_position(), cpu_seconds(self._process)

    def speed(self, seconds: float) -> tuple[float, float]:
        """Return explanations a second, and for each second of CPU."""
        took = cpu_seconds(self._process) - self._cpu
        made = sum(1 for _ in self._store.read(self._begin, streams=[reasons_of("fraud")]))
        return made / seconds, made / took


def contributions_alone(servers: Servers, store: Store, rows: int = 300) -> float:
    """Return the rows for which `pred_contrib` is computed in a second of CPU, in one thread and one call."""
    records, _ = store.latest_entries(decisions_of("fraud"), None, rows)
    features = [json.loads(record.body)["features"] for record in records]
    model = servers.model
    columns = recorded_columns(model.features, features)
    matrix = np.column_stack(list(columns.values()))
    begun = time.process_time()
    model.predictor.booster.predict(matrix, pred_contrib=True, num_threads=1)  # type: ignore[attr-defined]
    return len(features) / (time.process_time() - begun)


def caught_up(store: Store) -> None:
    """Wait until everything is explained."""
    begun = time.monotonic()
    (newest,), _ = store.latest_entries(decisions_of("fraud"), None, 1)
    while store.consumer_offset(reasons_of("fraud")) < newest.position:
        time.sleep(0.05)
        if time.monotonic() - begun > 120:
            raise SystemExit("the reader of reasons does not catch up")


if __name__ == "__main__":
    main(__doc__ or "", measure)
