"""A store with an active model, to which payments and reports come at times that a test chooses."""

import shutil
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import handbook
import lightgbm as lgb
import numpy as np

import mlpkg as ml
from mlpkg import models
from mlpkg.decisions import Decider, Decision, UseCase
from mlpkg.engine.columns import text_code
from mlpkg.models import Categories
from mlpkg.settings import Settings
from mlpkg.times import HOUR, instant, iso

START = instant("2018-04-01")
WORDS = ("books", "tea", "toys")  # the categories that such a model knows; others are unknown to it


@cache
def of_noise(features: ml.FeatureSet) -> lgb.Booster:
    """A small model that has learned nothing; it is trained once in a process."""
    rng = np.random.default_rng(0)
    rows = rng.uniform(0, 100, (500, len(features.names)))
    labels = rows[:, -1] > 60
    rows[:, [features.names.index(name) for name in features.categories]] //= 100 / (len(WORDS) + 1)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    return booster(features, rows, labels)


def booster(features: ml.FeatureSet, rows: np.ndarray | None = None, labels: np.ndarray | None = None) -> lgb.Booster:
    """A small model of a feature set, of noise unless there is something to learn from."""
    if rows is None or labels is None:
        return of_noise(features)
    kinds: Any = {"feature_name": features.names, "categorical_feature": list(features.categories)}
    data = lgb.Dataset(rows, np.asarray(labels, np.int64), **kinds)
    return lgb.train({"objective": "binary", "verbose": -1, "num_threads": 1, "num_leaves": 7}, data, 10)


def put_live(case: UseCase, store: Any, made: lgb.Booster | None = None, **metrics: float) -> str:
    """Save a model of the use case and make it live."""
    state = store.settings.state
    known = Categories({name: [text_code(word) for word in WORDS] for name in case.features.categories})
    metadata: Any = {"metrics": metrics, "lineage": {}, "policy": {}} | ({"categories": known} if known.tables else {})
    version = models.save(state, case.name, made or booster(case.features), case.features, **metadata)
    models.promote(store, models.find(state, case.name, version), by="a test", why="to decide")
    return version


def copy_of_state(case: UseCase, templates: Path, state: Path) -> Path:
    """Copy a state with an active model of the use case to `state`; the first call of a process makes the template."""
    template = templates / f"state-of-{case.name}"
    if not template.is_dir():
        with closing(ml.open_store(Settings(state=template))) as store:
            put_live(case, store)
    return Path(shutil.copytree(template, state))


class Bank:
    """A store with an active model, to which payments and reports come at times that the test chooses."""

    def __init__(self, case: UseCase, where: Path | Settings):
        self.case = case
        self.store: Any = ml.open_store(where if isinstance(where, Settings) else Settings(state=where))
        self.version = self.store.active_version(case.name) or put_live(case, self.store)
        self.decider = Decider(case, self.store)

    def payment(self, id: str, day: float, **fields: Any) -> dict[str, Any]:
        moment = START + round(day * 24) * HOUR
        return {"id": id, "time": iso(moment), "customer_id": 1, "terminal_id": 7, "amount": 10.0} | fields

    def pays(self, id: str, day: float, **fields: Any) -> Decision:
        body = self.payment(id, day, **fields)
        return self.decider.decide(body, arrived=instant(body["time"]))

    def hears(self, id: str, fraud: bool, day: float) -> Any:
        return self.store.report(handbook.frauds, {"id": id, "fraud": fraud}, arrived=START + round(day * 24) * HOUR)

    @property
    def size(self) -> tuple[int, int, int]:
        """The last position, and the numbers of dead letters and of reports that wait."""
        return self.store.last_position(), len(self.store.dead_letters()), len(self.store.waiting())
