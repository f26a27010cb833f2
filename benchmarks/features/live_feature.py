"""A new feature over a column that no timeline kept so far goes live while the service decides.

    python benchmarks/features/live_feature.py [--full] [--rows N] [-o FILE]

A service in other processes decides payments that a client sends without a pause. Another process promotes a model
that was trained before, and so registers a feature set with one more feature: the number of distinct terminals of a customer.
The time runs from the start of that process until the first decision with the new feature. No request may fail. Afterwards
every decision is computed again from the log and has to be the same to the bit.
"""

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from harness import HERE, BenchmarkRow, main, row

NEW = "shops_n_terminals_30d"
PATIENCE = 75  # seconds until the new feature is given up


class Load(threading.Thread):
    """A client that sends one payment after the other, and keeps the time and the error of each."""

    def __init__(self, port: int, customers: int, terminals: int):
        super().__init__(daemon=True)
        self.port, self.known, self.over = port, (customers, terminals), threading.Event()
        self.failed: list[str] = []
        self.seconds: list[float] = []
        self.news: float | None = None  # when a decision first had the new feature

    def run(self) -> None:
        from handbook import payment

        rng, count = random.Random(3), 0
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        while not self.over.is_set():
            count += 1
            began = time.perf_counter()
            try:
                connection.request(
                    "POST", "/v1/decide", payment(f"b-{count}", rng, *self.known), {"content-type": "application/json"}
                )
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200:
                    self.failed.append(f"{answer.status} {body[:200]!r}")
                elif self.news is None and NEW in json.loads(body)["features"]:
                    self.news = time.perf_counter()
            except (OSError, HTTPException) as error:
                self.failed.append(repr(error))
                connection.close()
            self.seconds.append(time.perf_counter() - began)


def grown(case: Any) -> Any:
    """A use case with one more feature, over a column that was not kept."""
    import mlpkg as ml

    shops = case.on.by("customer_id").agg(n_terminals=ml.nunique("terminal_id", over="30d"))
    features = ml.FeatureSet(case.name, on=case.on, **case.features.members, shops=shops)
    return ml.UseCase(case.name, features, policy=case.policy)


def go_live(state: Path, version: str) -> None:
    """Promote the model of the new feature set, as an operator would."""
    from mlpkg import models
    from mlpkg.settings import Settings
    from mlpkg.store import open_store

    settings = Settings.load(state=state)
    store = open_store(settings)
    models.promote(store, models.find(state, "fraud", version), by="benchmark", why="one more feature")
    store.close()


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    from handbook import handbook, load_history, make_model

    from mlpkg import decisions, models
    from mlpkg.serve.bento.package import build
    from mlpkg.serve.bento.run import start_server, stop_server, wait_until_up
    from mlpkg.settings import Settings
    from mlpkg.store import open_store

    port = 3310
    settings = Settings.load(state=options.folder / "state", port=port)
    case = decisions.use_case("fraud", settings)
    customers, terminals = options.rows // 350, options.rows // 175
    store = open_store(settings)
    book = handbook(case)
    store.register(case.name, book.features)
    load_history(case, store, options.rows, customers, terminals)
    model = make_model(book, settings.state)
    models.promote(store, model, by="benchmark", why="a model of the usual size")
    better = make_model(grown(book), settings.state)
    kept = store.timeline("transactions", "customer_id", 0).columns
    assert "terminal_id" not in kept, "the column is there already: nothing would be measured"
    store.close()
    server = start_server(build(case.name, settings, model.version), settings)
    load = Load(port, customers, terminals)
    try:
        wait_until_up(server, f"http://127.0.0.1:{port}")
        load.start()
        time.sleep(3)
        before = len(load.seconds)
        began = time.perf_counter()
        command = [sys.executable, __file__, "--go-live", str(settings.state), better.version]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        while load.news is None and time.perf_counter() - began < PATIENCE:
            time.sleep(0.05)
        during = load.seconds[before:]
        time.sleep(2)
        load.over.set()
        load.join()
    finally:
        stop_server(server)
    store = open_store(settings)
    verified = decisions.verify(case, store)
    store.close()
    if verified.mismatches or (load.news and len(verified.models) < 2):
        raise SystemExit(f"decided differently: {verified}")
    p50, p99 = np.percentile(np.array(during) * 1e3, [50, 99])
    remark = (
        f"meanwhile {len(during):,} requests, p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {max(during) * 1e3:.0f} ms"
    )
    remark += f"; {verified.decisions:,} decisions recomputed the same; first failure: {load.failed[:1] or 'none'}"
    work = f"a new feature over a column not kept, {options.rows:,} events in the log, service under load"
    live = PATIENCE if load.news is None else load.news - began
    if load.news is None:
        remark += f"; not live after {PATIENCE} s, when it was given up"
    yield row(f"{work}: live after", live, "", None, "ours <= 60", "s", remark)
    yield row(f"{work}: failed requests", len(load.failed), "", None, "ours <= 0", "requests", remark)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    if sys.argv[1:2] == ["--go-live"]:
        go_live(Path(sys.argv[2]), sys.argv[3])
    else:
        main(__doc__, measure, rows=(100_000, 1_754_155), best=1)
