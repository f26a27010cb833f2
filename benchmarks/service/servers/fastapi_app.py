"""FastAPI that only predicts, in its fastest form: asynchronous, with LightGBM's fast call, under uvloop and httptools."""

import os
import sys

import uvicorn
from fast import Fast
from fastapi import FastAPI
from pydantic import BaseModel

app, score = FastAPI(), Fast(os.environ["MODEL"])


class Features(BaseModel):
    """A row of features."""

    features: list[float]


@app.post("/predict")
async def predict(row: Features) -> float:
    """Return the score of one row."""
    return score(row.features)


uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="warning", access_log=False)
