"""LightGBM's fast call for one row, as its documentation shows it, for peers that only predict."""

import ctypes
from collections.abc import Sequence
from typing import Any

import lightgbm as lgb

_basic: Any = lgb.basic


class Fast:
    """Scores one row of ready features."""

    def __init__(self, file: str):
        self.booster = lgb.Booster(model_file=file)
        width = self.booster.num_feature()
        self.row = ctypes.c_double * width
        self._score, self._length, self._fast = ctypes.c_double(), ctypes.c_int64(), ctypes.c_void_p()
        made = _basic._LIB.LGBM_BoosterPredictForMatSingleRowFastInit
        _basic._safe_call(
            made(self.booster._handle, 0, 0, -1, 1, ctypes.c_int32(width), b"num_threads=1", ctypes.byref(self._fast))
        )
        self._out = (ctypes.byref(self._length), ctypes.byref(self._score))
        self._predict = _basic._LIB.LGBM_BoosterPredictForMatSingleRowFast

    def call(self, row: Any) -> float:
        """Score a row that is an array of C."""
        _basic._safe_call(self._predict(self._fast, row, *self._out))
        return self._score.value

    def __call__(self, features: Sequence[float]) -> float:
        """Return the score of a row."""
        return self.call(self.row(*features))
