"""The page `docs/history.md`: its files and commands, run in an empty folder, do what the page says."""

import pytest
from pages import after, run_page
from paths import ROOT


@pytest.fixture(scope="module")
def transcript(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the commands of the page print."""
    return run_page(ROOT / "docs" / "history.md", tmp_path_factory.mktemp("history"))


def test_the_files_of_the_page_are_loaded_in_any_order(transcript: str):
    assert "47 orders.returned" in after(transcript, "mlpkg ingest shop returns")
    assert after(transcript, "mlpkg ingest shop february").startswith("109 orders")
    assert after(transcript, "mlpkg ingest shop january").startswith("124 orders")
    assert after(transcript, "mlpkg ingest shop profiles").startswith("2 profiles")


def test_the_order_of_loading_does_not_matter_as_the_page_says(transcript: str):
    same, returns, profile = after(transcript, "python compare.py").splitlines()
    assert same == "the same rows: True"
    assert "0 by the log" not in returns and " 0 by arrival" not in returns
    assert profile.endswith("by arrival, 0 by the log") and " 0 by arrival" not in profile
