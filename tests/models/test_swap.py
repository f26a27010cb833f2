"""Models with different features take turns while clients send payments: nobody notices, and each record is of one model.

Four thousand requests, or a hundred thousand (`make test-swap`).
"""

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from bank import booster
from serving import CUSTOMERS, LOST, TERMINALS, Client, Packaged, Server, mlpkg, payment, serving
from swap_sets import SETS

import mlpkg as ml
from mlpkg import models
from mlpkg.examples.fraud.features import transactions
from mlpkg.models import Model, registry
from mlpkg.settings import Settings

REQUESTS = 100_000 if os.environ.get("MLPKG_LONG") else 4_000
CLIENTS = 4
TURN = 1.0  # seconds of a model, or a sixth of the requests if that is shorter


@dataclass
class Traffic:
    """The answers to clients, each with its begin and end, and the version that was active from when on."""

    answers: list[tuple[float, float, int, bytes]] = field(default_factory=list)
    changes: list[tuple[float, str]] = field(default_factory=list)
    lost: list[Exception] = field(default_factory=list)


@dataclass(frozen=True)
class Swapped:
    traffic: Traffic
    models: dict[str, Model]
    state: Path
    log: str


def send(port: int, own: int, traffic: Traffic, number: Iterator[int], done: threading.Event) -> None:
    chance = random.Random(own)
    with closing(Client(port)) as client:
        while not done.is_set() and (k := next(number)) < REQUESTS:
            fields = {"customer_id": chance.randrange(CUSTOMERS), "terminal_id": chance.randrange(TERMINALS)}
            body, began = payment(f"tx-{k}", amount=chance.randrange(1, 20_000) / 100, **fields), time.monotonic()
            try:
                answer = client.ask("POST", "/v1/decide", body)
            except LOST as error:
                traffic.lost.append(error)
                return
            traffic.answers.append((began, time.monotonic(), answer.status, answer.body))


def take_turns(server: Server, made: dict[str, Model], traffic: Traffic, busy: list[threading.Thread]) -> None:
    """Promote one, promote the next, roll it back, and so on, as long as clients are busy."""
    with closing(ml.open_store(Settings(state=server.state))) as store:
        for k in count():
            target, end = len(traffic.answers) + REQUESTS // 6, time.monotonic() + TURN
            while len(traffic.answers) < target and time.monotonic() < end:
                time.sleep(0.01)
            if not any(thread.is_alive() for thread in busy):
                return
            if k % 3 == 2:
                version = registry.rollback(store, "fraud", by="a test", why="in turn")
            else:
                version = [*made][(k - k // 3) % len(made)]
                registry.promote(store, made[version], by="a test", why="in turn")
            traffic.changes.append((time.monotonic(), version))


@pytest.fixture(scope="module")
def swapped(made: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swapped]:
    folder = tmp_path_factory.mktemp("swapped")
    state, traffic, trained = made.state(folder / "state"), Traffic(), {}
    for members in SETS:
        features = ml.FeatureSet("fraud", on=transactions, **members)  # type: ignore[arg-type]
        version = models.save(state, "fraud", booster(features), features, metrics={}, lineage={}, policy={})
        trained[version] = models.preload(models.find(state, "fraud", version))
    with closing(ml.open_store(Settings(state=state))) as store:
        registry.promote(store, next(iter(trained.values())), by="a test", why="to begin with")
    with serving(made.bento, state, folder / "log") as server:
        number, done = count(), threading.Event()
        clients = [
            threading.Thread(target=send, args=(server.port, own, traffic, number, done)) for own in range(CLIENTS)
        ]
        try:
            for thread in clients:
                thread.start()
            take_turns(server, trained, traffic, clients)
        finally:
            done.set()
            for thread in clients:
                thread.join()
    loaded = {**trained, made.version: models.preload(models.find(state, "fraud", made.version))}
    yield Swapped(traffic, loaded, state, (folder / "log").read_text("utf-8", "replace"))


def test_no_request_fails_while_models_take_turns(swapped: Swapped):
    assert swapped.traffic.lost == []
    assert Counter(status for _, _, status, _ in swapped.traffic.answers) == {200: REQUESTS}
    assert "Traceback" not in swapped.log and "refused" not in swapped.log, swapped.log


def test_each_answer_is_of_the_one_model_that_it_names(swapped: Swapped):
    """The features are those of the named model's definition, and the score is exactly what that model gives for them."""
    used = Counter()
    for _, _, _, body in swapped.traffic.answers:
        decision: dict[str, Any] = json.loads(body)
        model = swapped.models[decision["model"]["version"]]
        assert [*decision["features"]] == model.features.names
        assert decision["fallback"] is None
        row = [float("nan") if value is None else value for value in decision["features"].values()]
        assert decision["score"] == model.predictor.score(row)
        used[model.version] += 1
    assert len(used) >= min(len(swapped.traffic.changes), len(SETS)) * 2 // 3, used


def test_a_promoted_model_decides_within_a_second(swapped: Swapped):
    """And so does one that was rolled back to."""
    ends = sorted((ended, json.loads(body)["model"]["version"]) for _, ended, _, body in swapped.traffic.answers)
    changes = swapped.traffic.changes
    assert len(changes) >= 3
    for (since, version), (until, _) in pairwise(changes):
        first = next((ended for ended, by in ends if by == version and since - 0.5 < ended), None)
        assert first is not None and first < min(since + 1, until + 1), (version, first and first - since)


def test_what_was_decided_meanwhile_verifies(swapped: Swapped):
    result = mlpkg("verify", "fraud", state=swapped.state)
    assert (result["decisions"], result["mismatches"]) == (REQUESTS, 0), result["differences"]
    assert result["fallbacks"] == {}
