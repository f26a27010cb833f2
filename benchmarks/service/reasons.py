"""Reason codes beside live traffic, against `pred_contrib` alone, and what they cost the decisions.

    python benchmarks/service/reasons.py [--full] [-o FILE]

Two services take turns, one whose decisions are explained in the background and one without reasons. The first one begins each of
its turns with so many decisions at once that the reader of reasons is behind for the whole turn: it works as fast as it can
while a payment is decided every few milliseconds. `pred_contrib` alone is one call for many recorded rows, in one thread.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import closing
from statistics import median

import numpy as np
import psutil
import reasoned
from served import BenchmarkRow, LoadResult, Server, Servers, main, payments, row

from mlpkg.reasons import explanations, reasons_lag
from mlpkg.reasons.changed_event import recorded_columns
from mlpkg.settings import Settings
from mlpkg.store import Store, decisions_of, open_store, reasons_of

RATE, CONNECTIONS = 100, 4  # decisions a second


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    rounds, waiting, turn = (6, 6000, 1500) if options.full else (3, 2500, 600)
    with Servers(options.folder) as servers:
        none, explained = servers.ours(), servers.ours(MLPKG_USE_CASES="fraud = reasoned:fraud")
        for server in (none, explained):
            server.wait()
        assert explained.state
        results: dict[str, list[LoadResult]] = {"none": [], "reasons": []}
        speeds: list[tuple[float, float, float]] = []
        with closing(open_store(Settings(state=explained.state))) as store:
            for number in range(rounds + 1):  # the first one warms up
                before = none.ask(payments(turn), CONNECTIONS, RATE)
                explained.ask(payments(waiting), 16)
                reader, begun = Reader(explained, store), time.perf_counter()
                during = explained.ask(payments(turn), CONNECTIONS, RATE)
                made = reader.speed(time.perf_counter() - begun)
                caught_up(store)
                if number:
                    results["none"].append(before)
                    results["reasons"].append(during)
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
        work, peer = "one decision over HTTP while reasons are given without a pause", "no reasons"
        yield row(f"{work}, p99", p99["reasons"], peer, p99["none"], "ours / theirs <= 1.2", "µs")
        yield row(f"{work}, p50", p50["reasons"], peer, p50["none"], "stated", "µs")


class Reader:
    """The process that explains, from now on."""

    def __init__(self, server: Server, store: Store):
        family = psutil.Process(server.process.pid).children(recursive=True)
        (self._process,) = (p for p in family if "mlpkg.serve.follower" in " ".join(p.cmdline()))
        self._store, self._begin, self._cpu = store, store.last_position(), self._seconds()

    def _seconds(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def speed(self, seconds: float) -> tuple[float, float]:
        """Return explanations a second, and for each second of CPU."""
        took = self._seconds() - self._cpu
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
    while reasons_lag(reasoned.fraud, store) > 0:
        time.sleep(0.05)
        if time.monotonic() - begun > 120:
            raise SystemExit("the reader of reasons does not catch up")


if __name__ == "__main__":
    main(__doc__ or "", measure)
