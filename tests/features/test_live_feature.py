"""A feature set that nobody kept anything for goes live while the service decides."""

import random
import threading
import time
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from bank import booster
from serving import LOST, Client, Packaged, payment, serving

import mlpkg as ml
from mlpkg import decisions, lab, models
from mlpkg.examples.fraud.features import transactions
from mlpkg.examples.fraud.policy import fraud
from mlpkg.settings import Settings
from mlpkg.times import DAY, iso, now

# A column that the customer's timeline does not keep, and a key that has no timelines at all.
NEW = {
    "shops": transactions.by("customer_id").agg(n_terminals=ml.nunique("terminal_id", over=["7d", "30d"])),
    "pair": transactions.by("customer_id", "terminal_id").agg(
        n_tx=ml.count(over="all"), largest=ml.max("amount", over="30d"), median=ml.median("amount", over="last 5")
    ),
}


class Load(threading.Thread):
    """A client that sends one payment after the other and keeps every answer."""

    def __init__(self, port: int, name: str):
        super().__init__(daemon=True)
        self.client, self.label = Client(port), name
        self.over = threading.Event()
        self.answers: list[dict[str, Any]] = []
        self.failed: list[object] = []

    def run(self) -> None:
        rng = random.Random(self.label)
        while not self.over.wait(0.005):
            fields = {"customer_id": rng.randrange(12), "terminal_id": rng.randrange(20)}
            body = payment(f"{self.label}-{len(self.answers)}", amount=round(rng.uniform(1, 300), 2), **fields)
            try:
                answer = self.client.ask("POST", "/v1/decide", body)
                (self.answers if answer.status == 200 else self.failed).append(answer.json)
            except (*LOST, HTTPException) as error:
                self.failed.append(error)
                return

    def has(self, name: str) -> bool:
        return bool(self.answers) and name in self.answers[-1]["features"]


def test_a_new_feature_goes_live_under_load_and_is_right_from_the_first_decision_on(made: Packaged, tmp_path: Path):
    """Its column and its key were kept by no timeline: what is missing is built from the log while decisions go on."""
    state = made.state(tmp_path / "state")
    grown = ml.FeatureSet("fraud", on=transactions, **fraud.features.members, **NEW)
    version = models.save(state, "fraud", booster(grown), grown, metrics={}, lineage={}, policy={})
    with serving(made.bento, state, tmp_path / "log") as server:
        clients = [Load(server.port, f"load-{k}") for k in range(2)]
        for client in clients:
            client.start()
        time.sleep(1)
        with closing(ml.open_store(Settings(state=state))) as store:
            models.promote(store, models.find(state, "fraud", version), by="a test", why="new features")
        until = time.monotonic() + 60
        while not all(client.has("pair_n_tx_all") for client in clients) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)
        for client in clients:
            client.over.set()
        for client in clients:
            client.join()
        assert "Traceback" not in server.output, server.output

    assert [client.failed for client in clients] == [[], []]
    answers = [answer for client in clients for answer in client.answers]
    before = [a for a in answers if a["model"]["version"] == made.version]
    after = {a["event"]: a for a in answers if a["model"]["version"] == version}
    assert len(before) + len(after) == len(answers) and len(before) > 20 and len(after) > 20
    assert not any("pair_n_tx_all" in a["features"] for a in before)

    store = ml.open_store(Settings(state=state))
    verified = decisions.verify(fraud, store)
    assert (verified.mismatches, set(verified.models)) == (0, {made.version, version})
    offline = lab.training_set(grown, iso(now() - DAY), iso(now() + DAY), store=store).set_index("id").loc[list(after)]
    for name in grown.names:
        served = np.array([a["features"][name] for a in after.values()], float)
        np.testing.assert_array_equal(offline[name].to_numpy(float), served, strict=True, err_msg=name)
    assert (offline["shops_n_terminals_30d"] > 1).all(), "a new feature has its whole history"
    store.close()
