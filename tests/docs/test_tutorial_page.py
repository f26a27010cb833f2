"""The page `docs/tutorial.md`: from a file of another system to live decisions, word for word."""

import json

import pytest
from pages import after, run_page
from paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


@pytest.fixture(scope="module")
def transcript(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the commands of the page print."""
    return run_page(ROOT / "docs" / "tutorial.md", tmp_path_factory.mktemp("tutorial"))


def test_the_project_decides_on_what_the_file_holds(transcript: str):
    printed = after(transcript, "mlpkg new courier")
    assert "it decides parcels" in printed and "The outcome 'Late'" in printed


def test_every_row_is_a_parcel_or_a_dead_letter(transcript: str):
    assert after(transcript, "mlpkg ingest courier").startswith("1499 parcels")
    letters = after(transcript, "mlpkg dead-letters list")
    assert "/16/2025" in letters and "has 5 cells, the header has 6" in letters


def test_a_live_decision_is_recorded_and_recomputed(transcript: str):
    answer = json.loads(after(transcript, "curl"))
    assert answer["action"] in ("accept", "review") and answer["features"]["weight_kg"] == 21.5
    assert "P9000" in after(transcript, "mlpkg decisions courier")
    assert after(transcript, "mlpkg verify courier").endswith("0 mismatches")
