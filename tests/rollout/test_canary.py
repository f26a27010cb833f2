"""A canary on card payments: a broken candidate is rolled back, an identical one takes over, and each is recorded."""

import os
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import handbook
import numpy as np
import pandas as pd
import pytest
from bank import booster, put_live

import mlpkg as ml
from mlpkg import lab, models
from mlpkg.decisions import Decider, verify
from mlpkg.models import latest_setup
from mlpkg.rollout.control import start_rollout
from mlpkg.rollout.controller import RolloutController
from mlpkg.rollout.guardrails import Guardrail
from mlpkg.rollout.kinds import canary
from mlpkg.rollout.status import rollout_status
from mlpkg.settings import Settings
from mlpkg.store import Store, open_store
from mlpkg.times import instant

FEATURES = handbook.features.names
GUARDRAILS = [Guardrail("error rate", 0.005), Guardrail("fallback rate", 0.01), Guardrail("score distribution", 0.1)]
MOST = 4_000  # decisions until a broken candidate is rolled back
EVERY = 60 if os.environ.get("MLPKG_LONG") else 100


class Payments:
    """A store with the payments before the canary, a model that learned from them, and those that come."""

    def __init__(self, folder: Path, frame: Any, since: str):
        is_new = frame["TX_DATETIME"] >= pd.Timestamp(since)
        frame[~is_new].to_parquet(folder / "before.parquet", index=False)
        self.coming = frame[is_new].sort_values("TX_DATETIME").to_dict("records")
        self.store: Store = open_store(Settings(state=folder / "state"))
        self.store.defer_fsync()
        lab.ingest_file(handbook.fraud, folder / "before.parquet", self.store)
        train = lab.training_set(handbook.features, "2018-04-01", "2018-05-20", store=self.store)
        self.rows, self.labels = train[FEATURES].to_numpy(float), train["label"].to_numpy(bool)
        self.active = put_live(handbook.fraud, self.store, booster(handbook.features, self.rows, self.labels))
        self.decider = Decider(handbook.fraud, self.store)

    def candidate(self, order: np.ndarray) -> str:
        """Save a model that takes its features in another order than they come."""
        made = booster(handbook.features, self.rows[:, order], self.labels)
        about: dict[str, Any] = {"metrics": {"trial": 1.0}, "lineage": {}, "policy": {}}
        return models.save(self.store.settings.state, "fraud", made, handbook.features, **about)

    def decide(self, first: int, last: int) -> None:
        for row in self.coming[first:last]:
            moment = instant(row["TX_DATETIME"].isoformat())
            body = {
                "id": f"new-{row['TRANSACTION_ID']}",
                "time": row["TX_DATETIME"].isoformat() + "Z",
                "customer_id": row["CUSTOMER_ID"],
                "terminal_id": row["TERMINAL_ID"],
                "amount": row["TX_AMOUNT"],
            }
            self.decider.decide(body, arrived=moment)


@pytest.fixture
def coming(real: Path, tmp_path: Path) -> Iterator[Payments]:
    frame = pd.read_parquet(real, filters=[("TX_DATETIME", "<", datetime(2018, 6, 20))])
    of_some = (frame["TERMINAL_ID"] % EVERY == 3) | (frame["CUSTOMER_ID"] % EVERY == 3)
    made = Payments(tmp_path, frame[of_some], "2018-06-01")
    with closing(made.store):
        yield made


def run(coming: Payments, order: np.ndarray) -> tuple[int, list[Any]]:
    """Run a canary until it ends; return after how many decisions that was, and the changes that were made."""
    coming.decide(0, 400)  # the bins of the scores come from these
    model = coming.candidate(order)
    rollout = canary("fees", model=model, guardrails=GUARDRAILS, steps=(20, 50, 100), enough=300)
    start_rollout(coming.store, handbook.fraud, rollout, by="ann", why="a candidate")
    controller = RolloutController(handbook.fraud, coming.store)
    decided = 400
    while controller.is_needed() and decided < min(MOST, len(coming.coming)):
        coming.decide(decided, decided + 100)
        decided += 100
        controller.step()
    return decided - 400, [c for c in coming.store.promotions("fraud") if c["change"].startswith("rollout")]


def test_a_candidate_with_permuted_features_is_rolled_back_without_a_person(coming: Payments):
    order = np.random.default_rng(3).permutation(len(FEATURES))
    decided, changes = run(coming, order)
    last = changes[-1]
    assert (last["change"], last["by"]) == ("rollout-rollback", "mlpkg") and decided < MOST, (decided, changes)
    assert "score distribution" in last["why"] and "tolerated: 0.1" in last["why"]
    (breach,) = [v for v in last["details"]["verdicts"] if v["state"] == "breach"]
    assert breach["low"] > 0.1 and breach["n"] > 0
    assert latest_setup(coming.store.promotions("fraud")).rollouts == []
    assert coming.store.active_version("fraud") == coming.active
    result = verify(handbook.fraud, coming.store)
    assert result.mismatches == 0 and result.actions == result.decisions and len(result.models) == 2


def test_an_identical_candidate_passes_to_all_traffic(coming: Payments):
    decided, changes = run(coming, np.arange(len(FEATURES)))
    assert [c["change"] for c in changes] == ["rollout-start", "rollout-step", "rollout-promote"], (decided, changes)
    assert coming.store.active_version("fraud") != coming.active
    models.rollback(coming.store, "fraud", by="ann", why="once more")
    assert coming.store.active_version("fraud") == coming.active, "it is a promotion like any other"
    assert rollout_status(handbook.fraud, coming.store)["running"] == []
    result = verify(handbook.fraud, coming.store)
    assert result.mismatches == 0 and result.actions == result.decisions


def test_a_candidate_that_cannot_be_loaded_is_rolled_back_and_harms_nobody(tmp_path: Path):
    """Its files are gone when the workers look for it: the active model decides, and the record says so."""
    with closing(ml.open_store(Settings(state=tmp_path / "state"))) as store:
        store.defer_fsync()
        active = put_live(handbook.fraud, store)
        about: dict[str, Any] = {"metrics": {"trial": 1.0}, "lineage": {}, "policy": {}}
        model = models.save(store.settings.state, "fraud", booster(handbook.features), handbook.features, **about)
        rollout = canary("fees", model=model, guardrails=GUARDRAILS, steps=(50, 100), enough=300)
        start_rollout(store, handbook.fraud, rollout, by="ann", why="a candidate")
        (models.models_dir(store.settings.state, "fraud") / model / "model.txt").unlink()
        decider, controller = Decider(handbook.fraud, store), RolloutController(handbook.fraud, store)
        start = instant("2018-04-01")
        for n in range(800):
            body = {"id": f"tx-{n}", "customer_id": n % 9, "terminal_id": 7, "amount": 10.0}
            at = start + n * 60_000_000
            made = decider.decide(body | {"time": pd.Timestamp(at * 1000).isoformat() + "Z"}, arrived=at)
            assert made.model["version"] == active and made.fallback is None
            if n % 50 == 49:
                controller.step()
        last = store.promotions("fraud")[-1]
        assert last["change"] == "rollout-rollback" and "error rate" in last["why"]
        assert verify(handbook.fraud, store).mismatches == 0
