"""The page `docs/labels.md`: a label of each kind, one made of later events, and a model trained by hand."""

import re

import pytest
from pages import after, run_page
from paths import ROOT


@pytest.fixture(scope="module")
def transcript(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the commands of the page print."""
    return run_page(ROOT / "docs" / "labels.md", tmp_path_factory.mktemp("labels"))


def test_an_outcome_that_nobody_reports_is_made_of_later_events(transcript: str):
    counts = dict(part.split(" ")[::-1] for part in after(transcript, "mlpkg ingest shop orders").split(", "))
    assert counts["orders"] == "3000" and counts["orders.refund"] == counts["orders.reason"]
    assert re.fullmatch(r"2\d{3} orders.again", after(transcript, "mlpkg ingest shop again"))


def test_each_kind_of_label_is_learned_and_measured(transcript: str):
    printed = dict(line.split(": ", 1) for line in after(transcript, "python train.py").splitlines())
    assert list(printed) == ["returned", "again", "refund", "refund above 50", "wrong size"]
    for name, metrics in printed.items():
        assert re.match(r"{'mae': 1\d\.\d+, 'r2': 0\." if name == "refund" else r"{'auc': 0\.[6-9]", metrics), name


def test_a_model_that_was_trained_by_hand_is_saved(transcript: str):
    models = after(transcript, "mlpkg models shop")
    assert after(transcript, "python by_hand.py") in models and re.search(r"auc 0\.[6-9]", models)
