"""One decision over HTTP while three models shadow, against none.

    python benchmarks/service/shadows.py [--full] [-o FILE]

Each shadow has 200 trees and about fourteen features, none of which the deciding model has. Two services take turns, one with
shadows and one without. A turn begins when the shadows have scored all earlier decisions, so that the service without shadows
never pays for them.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median

from served import BenchmarkRow, LoadResult, Server, Servers, handbook, main, make_model, payments, row

import mlpkg as ml
from mlpkg import UseCase
from mlpkg.models import registry
from mlpkg.rollout import shadow
from mlpkg.settings import Settings
from mlpkg.store import Store, open_store

WINDOWS = (["1h", "3d", "14d"], ["6h", "2d", "21d"], ["12h", "5d", "30d"])


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    rounds, alone, together = (20, 2000, 10_000) if options.full else (6, 500, 1500)
    with Servers(options.folder) as servers:
        none, three = servers.ours(), servers.ours()
        for server in (none, three):
            server.wait()
        assert three.state
        with closing(open_store(Settings(state=three.state))) as store:
            begin(store, three.state)
            singly: dict[str, list[LoadResult]] = {"none": [], "three": []}
            many: dict[str, list[LoadResult]] = {"none": [], "three": []}
            behind = [0.0]
            for number in range(rounds + 1):  # the first one warms up
                for connections, size, results in ((1, alone, singly), (16, together, many)):
                    for name, server in (("none", none), ("three", three))[:: 1 if number % 2 else -1]:
                        result = server.ask(payments(size), connections)
                        behind.append(caught_up(store, server, three))
                        if number:
                            results[name].append(result)
            scored = sum(1 for _ in shadow.scores("fraud", store))
        note = f"{scored} scores were recorded, at most {max(behind):.1f} s after the last decision of a turn"
        p50 = {name: median(a.p50 for a in results) for name, results in singly.items()}
        p99 = {name: median(a.p99 for a in results) for name, results in singly.items()}
        rate = {name: median(a.rate for a in results) for name, results in many.items()}
        work, peer = "one decision over HTTP while three models shadow", "none shadows"
        yield row(f"{work}, p50", p50["three"], peer, p50["none"], "ours / theirs <= 1.15", "µs", note)
        yield row(f"{work}, p99", p99["three"], peer, p99["none"], "stated", "µs")
        yield row(f"{work}, 16 at once, throughput", rate["three"], peer, rate["none"], "stated", "a second")


def begin(store: Store, state: Path) -> None:
    """Let three models shadow."""
    case = handbook()
    frauds = case.on.outcomes["fraud"]
    for windows in WINDOWS:
        customer = case.on.by("customer_id").agg(
            n_tx=ml.count(over=windows), avg_amount=ml.mean("amount", over=windows)
        )
        terminal = frauds.by("terminal_id", delay="7d").agg(
            n_tx=ml.count(over=windows), risk=ml.mean("fraud", over=windows, empty=0.0)
        )
        members = {"customer": customer, "terminal": terminal, "amount": ml.field("amount")}
        other = UseCase("fraud", ml.FeatureSet("fraud", on=case.on, **members), policy=case.policy)  # type: ignore[arg-type]
        registry.shadow(store, make_model(other, state), by="benchmark", why="models of the usual size")


def caught_up(store: Store, server: Server, three: Server) -> float:
    """Wait until everything is scored. Return the seconds that took."""
    began = time.monotonic()
    while server is three and shadow.follower_lag("fraud", store) != (len(WINDOWS), 0.0):
        time.sleep(0.01)
        if time.monotonic() - began > 60:
            raise SystemExit(f"the shadows do not catch up; see {three.log}")
    return time.monotonic() - began


if __name__ == "__main__":
    main(__doc__ or "", measure)
