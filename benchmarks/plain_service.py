"""A plain BentoML service of the same model: it only predicts, from features that are ready."""

import gc
import os

import bentoml
import lightgbm as lgb
import numpy as np


@bentoml.service(
    name="plain",
    workers=1,
    http={"host": "127.0.0.1"},  # type: ignore[arg-type]
    traffic={"timeout": 1},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    tracing={"excluded_urls": ".*"},
)
class Plain:
    """POST /predict takes features and answers a score."""

    def __init__(self) -> None:
        self.booster = lgb.Booster(model_file=os.environ["PLAIN_MODEL"])
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)

    @bentoml.api
    def predict(self, features: list[float]) -> float:
        """The score of one row."""
        return float(np.asarray(self.booster.predict(np.array([features]), num_threads=1))[0])
