"""`lab.train`: a misspelt parameter is an error. LightGBM prints what it does not know from the thread that imported it alone."""

import pytest

from mlpkg import MlpkgError
from mlpkg.lab.boosting import _check_names


@pytest.mark.parametrize("misspelt, meant", [("num_leafs", "num_leaves"), ("round", "rounds")])
def test_a_parameter_that_lightgbm_does_not_know_is_an_error(misspelt: str, meant: str):
    with pytest.raises(MlpkgError, match=f"no parameter '{misspelt}'; did you mean '{meant}'"):
        _check_names({"seed": 3, misspelt: 7})


def test_an_alias_of_a_parameter_is_known():
    _check_names({"num_leaves": 7, "eta": 0.05, "reg_lambda": 1.0})
