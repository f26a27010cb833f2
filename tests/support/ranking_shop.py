"""A shop that ranks offers: a store with clicks and visits, and a model that learned from them."""

import random
import shutil
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
from bank import put_live
from offers import clicks, features, offers, visits

import mlpkg as ml
from mlpkg import lab
from mlpkg.decisions import Decider, Decision
from mlpkg.settings import Settings
from mlpkg.times import DAY, MINUTE, instant, iso

START = instant("2026-03-01")
WORDS = ("books", "tea", "toys")


def click(k: int, rng: random.Random) -> dict[str, Any]:
    moment = START - rng.randrange(9 * DAY)
    item = int(rng.paretovariate(0.8)) % 40
    return {"id": f"c{k}", "time": iso(moment), "user": f"u{rng.randrange(9)}", "item": item} | {
        "category": rng.choice(WORDS),
        "price": rng.randrange(100, 9_000) / 100,
    }


class Shop:
    """A store with clicks, and a model that learned from visits of which it is known what was shown."""

    def __init__(self, state: Path, end: int = START, template: "Shop | None" = None):
        self.rng, self.end = random.Random(1), template.end if template else end
        if template:  # a copy of a shop that is closed costs little
            shutil.copytree(template.store.settings.state, state)
            self.rng.setstate(template.rng.getstate())
        self.store: Any = ml.open_store(Settings(state=state, trust_loopback=True))
        self.version = template.version if template else self.stock()
        self.decider = Decider(offers, self.store)

    def stock(self) -> str:
        """Fill the store, learn from what is in it, and promote the model; its version."""
        end, shift = self.end, self.end - START
        self.store.register(offers.name, features)
        for body in sorted((click(k, self.rng) for k in range(500)), key=lambda body: body["time"]):
            moment = instant(body["time"]) + shift
            self.store.accept(clicks, body | {"time": iso(moment)}, arrived=moment)
        for k in range(200):
            moment = end - 2 * DAY + k * 5 * MINUTE
            self.store.accept(visits, self.visit(f"h{k}", moment) | self.candidates(1)[0], arrived=moment)
        rows = lab.training_set(features, iso(end - 3 * DAY), iso(end), use_case=offers, store=self.store)
        return put_live(offers, self.store, self.learn(rows[features.names], rows["item_n_7d"] > 5))

    def learn(self, rows: Any, labels: Any) -> lgb.Booster:
        categories = lab.categories_of(rows, features)
        kinds: Any = {"feature_name": features.names, "categorical_feature": list(features.categories)}
        data = lgb.Dataset(lab.matrix(rows, categories), np.asarray(labels, np.int64), **kinds)
        return lgb.train({"objective": "binary", "verbose": -1, "num_leaves": 7, "min_data_in_leaf": 5}, data, 20)

    def visit(self, id: str, moment: int | None = None) -> dict[str, Any]:
        moment = self.end if moment is None else moment
        return {"id": id, "time": iso(moment), "user": f"u{self.rng.randrange(9)}", "weekend": self.rng.random() < 0.3}

    def candidates(self, many: int) -> list[dict[str, Any]]:
        items = self.rng.sample(range(60), many)
        return [{"item": item, "price": self.rng.randrange(100, 9_000) / 100} for item in items]

    def ranks(self, id: str, many: int = 20, moment: int | None = None) -> tuple[dict[str, Any], Decision]:
        moment = self.end if moment is None else moment
        body = self.visit(id, moment) | {"candidates": self.candidates(many)}
        return body, self.decider.rank(body, arrived=moment)

    @property
    def size(self) -> tuple[int, int]:
        return self.store.last_position(), len(self.store.dead_letters())
