"""Ranking 100 and 1,000 candidates: fourteen features of visitor, item and pair, 200 trees, every alternative recorded.

    python benchmarks/service/ranking.py [--full] [-o FILE]

A shop has clicks of 1,000 users on 1,500 items, and purchases. Every ranking is of a new visit and of items drawn at random.
There are three ways to ask: the decider in this process, the application called as ASGI without a server, and a uvicorn process
over HTTP. Afterwards all recorded rankings have to verify.
"""

import argparse
import asyncio
import itertools
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
from load import Connection, post
from served import BenchmarkRow, main, row

import mlpkg as ml
from mlpkg import models
from mlpkg.decisions import verify
from mlpkg.models import promote
from mlpkg.serve.app import Application
from mlpkg.settings import Settings
from mlpkg.store import Batch, Store
from mlpkg.times import DAY, iso, now

USERS, ITEMS, CLICKS, DAYS, TREES = 1000, 1500, 100_000, 30, 200
TURN = 25  # rankings in one way before the next way has its turn
MUST = {100: 3_000, 1_000: 15_000}  # microseconds, p50


class Visit(ml.Event):
    user: int
    item: int | None = None


class Click(ml.Event):
    user: int
    item: int
    price: ml.Money


visits, clicks = ml.Source("visits", Visit, subject="user"), ml.Source("clicks", Click, subject="user")
bought = clicks.outcome("bought", bool, default=False, matures_after="1d")
seen = {"n": ml.count(over=["1d", "7d", "30d"]), "price": ml.mean("price", over=["7d", "30d"])}
features = ml.FeatureSet(
    "offers",
    on=visits,
    user=clicks.by("user").agg(**seen),
    item=clicks.by("item").agg(**seen),
    pair=clicks.by("user", "item").agg(n=ml.count(over=["7d", "30d"]), since=ml.time_since_last(over="30d")),
    sold=bought.by("item", delay="1d").agg(rate=ml.mean("bought", over="30d", empty=0.0)),
)
offers = ml.UseCase("offers", features, policy=lambda score, event: f"item {event.item}", rank="item")


def load(store: Store) -> None:
    """Load a month of clicks up to now."""
    rng, end = np.random.default_rng(7), now()
    times = np.sort(rng.integers(end - DAYS * DAY, end, CLICKS))
    user, item = rng.integers(0, USERS, CLICKS), rng.integers(0, ITEMS, CLICKS)
    cents = rng.integers(100, 10_000, CLICKS)
    each = zip(user.tolist(), item.tolist(), (cents / 100).tolist(), strict=True)
    purchased = np.flatnonzero(rng.random(CLICKS) < 0.05)
    ids, rows = [f"c{i}" for i in range(CLICKS)], np.arange(CLICKS + len(purchased))
    bodies = [f'{{"user":{u},"item":{i},"price":{p!r}}}' for u, i, p in each] + ['{"bought":true}'] * len(purchased)
    codes = {"clicks": np.column_stack([user, item, cents]), bought.stream: np.ones((len(purchased), 1), np.int64)}
    stream = np.repeat([0, 1], [CLICKS, len(purchased)])
    ids += [ids[i] for i in purchased.tolist()]
    when = np.concatenate([times, times[purchased]])
    store.load(Batch([clicks, bought], stream, ids, when, when, bodies, codes, rows))


def promote_model(store: Store) -> None:
    """Promote a model of the usual size, trained on noise."""
    rng = np.random.default_rng(1)
    rows = rng.gamma(2, 25, (20_000, len(features.names)))
    label = (rows @ rng.normal(size=rows.shape[1]) > 0) ^ (rng.random(len(rows)) < 0.1)
    data = lgb.Dataset(rows, label.astype(int), feature_name=features.names)
    booster = lgb.train({"objective": "binary", "num_leaves": 31, "verbose": -1, "num_threads": 2}, data, TREES)
    state = store.settings.state
    version = models.save(state, offers.name, booster, features, metrics={}, lineage={}, policy={})
    promote(store, models.find(state, offers.name, version), by="benchmark", why="to measure it")


def visit(id: str, many: int, rng: random.Random) -> bytes:
    """Make a new visit of a known user, with `many` candidates."""
    event = {"id": id, "time": iso(now()), "user": rng.randrange(USERS), "candidates": rng.sample(range(ITEMS), many)}
    return json.dumps(event).encode()


def called(app: Application) -> Callable[[bytes], bytes]:
    """Return a function that calls the application without a server."""
    scope = {"type": "http", "method": "POST", "path": "/v1/rank", "query_string": b"", "client": ("127.0.0.1", 1)}
    scope["server"] = ("127.0.0.1", 3000)
    scope["headers"] = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    loop = asyncio.new_event_loop()

    def ask(body: bytes) -> bytes:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        loop.run_until_complete(app({**scope}, receive, send))
        if sent[0]["status"] != 200:
            raise SystemExit(f"answer: {sent[1]['body'].decode()}")
        return sent[1]["body"]

    return ask


def serve(state: Path) -> None:
    """Run uvicorn. The first line that it prints is its port."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        app = Application(offers, Settings(state=state, trust_loopback=True))
        config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listening])


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    settings = Settings(state=options.folder, trust_loopback=True)
    store = ml.open_store(settings)
    store.register(offers.name, features)
    load(store)
    promote_model(store)
    app = Application(offers, settings)
    app.start()
    command = [sys.executable, __file__, "--serve", str(options.folder)]
    took: dict[tuple[int, str], list[float]] = {}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        line = Connection(int(server.stdout.readline()))
        ways: dict[str, Callable[[bytes], Any]] = {
            "in process": lambda body: app.decider.rank(body),
            "as ASGI": called(app),
            "over HTTP": lambda body: line.ask(post("/v1/rank", body)),
        }
        rng, turns = random.Random(3), 40 if options.full else 10
        for turn in range(turns + 1):  # the first one warms up
            for many, (way, ask) in itertools.product(MUST, ways.items()):
                for k in range(TURN):
                    body = visit(f"{way}-{many}-{turn}-{k}", many, rng)
                    began = time.perf_counter()
                    ask(body)
                    if turn:
                        took.setdefault((many, way), []).append(time.perf_counter() - began)
    finally:
        server.terminate()
        server.wait()
    checked = verify(offers, store)
    if checked.mismatches or checked.decisions != (turns + 1) * TURN * len(MUST) * len(ways):
        raise SystemExit(f"verify: {checked}")
    app.close()
    store.close()
    for (many, way), seconds in took.items():
        p50, p99 = np.percentile(np.array(seconds) * 1e6, [50, 99])
        work = f"rank {many:,} candidates, 14 features, recorded, {way}, p50"
        yield row(work, float(p50), "", None, f"ours <= {MUST[many]}", "µs", f"p99 {p99:,.0f} µs")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]))
    else:
        main(__doc__ or "", measure)
