"""The page `docs/use-case.md`: its files and commands, run in an empty folder, do what the page says."""

import re

import pytest
from pages import after, run_page
from paths import ROOT


@pytest.fixture(scope="module")
def transcript(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the commands of the page print."""
    return run_page(ROOT / "docs" / "use-case.md", tmp_path_factory.mktemp("shop"))


def test_every_file_of_the_page_is_loaded_without_a_refusal(transcript: str):
    assert after(transcript, "mlpkg ingest shop profiles.csv") == "300 profiles"
    orders, reports = after(transcript, "mlpkg ingest shop orders").split(", ")
    assert orders == "4000 orders" and 400 < int(reports.removesuffix(" orders.returned")) < 2000


def test_the_page_looks_at_features_before_there_is_a_model(transcript: str):
    shown = after(transcript, "python look.py")
    assert "customer_mean_amount_30d" in shown and "profile_segment" in shown
    assert "loyal" in shown or "new" in shown


def test_a_model_that_was_saved_by_a_script_is_listed_and_goes_live(transcript: str):
    version = after(transcript, "python train.py").splitlines()[-1]
    assert version in after(transcript, "mlpkg models shop")
    assert after(transcript, "mlpkg promote shop") == f"{version} is active"


def test_the_dear_clothes_are_asked_about_and_the_book_is_shipped(transcript: str):
    assert after(transcript, """mlpkg decide shop '{"id": "n1\"""").startswith("n1: ask first")
    assert after(transcript, """mlpkg decide shop '{"id": "n2\"""").startswith("n2: ship")
    assert after(transcript, "mlpkg outcome shop n1") == "n1: noted"
    assert len(after(transcript, "mlpkg decisions shop").splitlines()) == 2
    assert "2 decisions" in after(transcript, "mlpkg report shop")
    assert after(transcript, "mlpkg verify shop").startswith("2 decisions by 1 models, 0 mismatches")


def test_the_script_becomes_a_notebook_that_papermill_runs(transcript: str):
    assert re.match(r"model \S+: auc 0\.[6-9]", after(transcript, "mlpkg train shop"))
    assert len(transcript.rpartition("$ mlpkg models shop")[2].strip().splitlines()) == 2
