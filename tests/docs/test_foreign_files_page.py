"""The page `docs/foreign-files.md`: exports of other systems are loaded, and every row that is no event is named."""

import re

import pytest
from pages import after, run_page
from paths import ROOT

PAGE = ROOT / "docs" / "foreign-files.md"


@pytest.fixture(scope="module")
def transcript(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the commands of the page print."""
    return run_page(PAGE, tmp_path_factory.mktemp("foreign"))


def test_the_proposal_knows_the_notation_of_each_column(transcript: str):
    printed = after(transcript, "python look.py")
    assert "cp1252 ; ('kunde',)" in printed
    assert "betrag: ml.Money" in printed and "also 'auf Anfrage'" in printed
    assert 'time = lab.to_times(rows["Datum"], "%d.%m.%Y %H:%M", tz="Europe/Berlin")' in printed
    assert 'betrag = lab.to_numbers(rows["Betrag"], decimal=",", thousands=".")' in printed
    assert 'retoure = lab.to_truths(rows["Retoure"], true="ja", false="nein")' in printed
    assert "'Betrag': 1 cell is no number, such as 'auf Anfrage'; its row will be rejected." in printed
    assert "1 time cannot be read or lies in the hour that the zone skips" in printed
    assert "1 row cannot be read and will be rejected: row" in printed


def test_every_row_is_an_order_or_a_dead_letter(transcript: str):
    printed = after(transcript, "mlpkg ingest shop bestellungen.csv")
    assert printed.splitlines()[0].startswith("398 orders")
    letters = after(transcript, "mlpkg dead-letters list orders")
    for reason in ("auf Anfrage is a text, not a number", "02.13.2025", "has 5 cells, the header has 6"):
        assert reason in letters


def test_several_files_become_events_rows_of_a_table_and_reports(transcript: str):
    assert after(transcript, "mlpkg ingest chain returns-march.csv").endswith("24 outcomes wait for their event")
    assert after(transcript, "mlpkg ingest chain sales.csv") == "359 sales"
    assert after(transcript, "mlpkg ingest chain returns-april.csv") == "21 sales.returned"
    assert after(transcript, "mlpkg ingest chain members.csv") == "9 members"
    assert after(transcript, "mlpkg outcome chain --waiting") == "none waits"
    letters = after(transcript, "mlpkg dead-letters list sales").splitlines()[-2:]
    assert "void is a text, not a number" in letters[0] and "Total,360 has 2 cells" in letters[1]


def test_a_sale_knows_of_a_return_from_its_arrival_on(transcript: str):
    shown = re.findall(r"(?<=\n\n)```\n(.*?)\n```", PAGE.read_text("utf-8"), re.DOTALL)
    assert [after(transcript, "python look_back.py")] == [text.strip() for text in shown]
