"""The page `docs/use-case.md`: what it lists is written and run, in an empty folder, and does what it says."""

import re

import pytest
from pages import after, run_page
from paths import ROOT


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the commands of the page print."""
    return run_page(ROOT / "docs" / "use-case.md", tmp_path_factory.mktemp("shop"))


def test_every_file_of_the_page_is_loaded_without_a_refusal(said: str):
    assert after(said, "mlpkg ingest shop profiles.csv") == "300 profiles"
    orders, reports = after(said, "mlpkg ingest shop orders").split(", ")
    assert orders == "4000 orders" and 400 < int(reports.removesuffix(" orders.returned")) < 2000


def test_the_page_looks_at_features_before_there_is_a_model(said: str):
    shown = after(said, "python look.py")
    assert "customer_mean_amount_30d" in shown and "profile_segment" in shown
    assert "loyal" in shown or "new" in shown


def test_a_model_that_was_saved_by_a_script_is_listed_and_goes_live(said: str):
    version = after(said, "python train.py").splitlines()[-1]
    assert version in after(said, "mlpkg models shop")
    assert after(said, "mlpkg promote shop") == f"{version} is active"


def test_the_dear_clothes_are_asked_about_and_the_book_is_shipped(said: str):
    assert after(said, """mlpkg decide shop '{"id": "n1\"""").startswith("n1: ask first")
    assert after(said, """mlpkg decide shop '{"id": "n2\"""").startswith("n2: ship")
    assert after(said, "mlpkg outcome shop n1") == "n1: noted"
    assert len(after(said, "mlpkg decisions shop").splitlines()) == 2
    assert "2 decisions" in after(said, "mlpkg report shop")
    assert after(said, "mlpkg verify shop").startswith("2 decisions by 1 models, 0 mismatches")


def test_the_script_becomes_a_notebook_that_papermill_runs(said: str):
    assert re.match(r"model \S+: auc 0\.[6-9]", after(said, "mlpkg train shop"))
    assert len(said.rpartition("$ mlpkg models shop")[2].strip().splitlines()) == 2
