"""Plain BentoML services of the same model, under the same settings as mlpkg's. They only predict, from ready features."""

import os

import bentoml
import lightgbm as lgb
import numpy as np
from fast import Fast

settings: dict = {
    "workers": 1,
    "http": {"host": "127.0.0.1"},
    "traffic": {"timeout": 1},
    "logging": {"access": {"enabled": False}},
    "metrics": {"enabled": False},
    "tracing": {"excluded_urls": ".*"},
}


@bentoml.service(name="plain", **settings)
class Plain:
    """POST /predict takes features and answers a score, as BentoML's introduction shows it."""

    def __init__(self) -> None:
        self.booster = lgb.Booster(model_file=os.environ["MODEL"])

    @bentoml.api
    def predict(self, features: list[float]) -> float:
        """Return the score of one row."""
        return float(np.asarray(self.booster.predict(np.array([features]), num_threads=1))[0])


@bentoml.service(name="asynchronous", **settings)
class Asynchronous:
    """The fastest form: in the event loop, by LightGBM's fast call for one row."""

    def __init__(self) -> None:
        self.score = Fast(os.environ["MODEL"])

    @bentoml.api
    async def predict(self, features: list[float]) -> float:
        """Return the score of one row."""
        return self.score(features)
