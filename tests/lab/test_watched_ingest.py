"""A store can be looked at by other processes while a large frame is loaded into it."""

from contextlib import closing

import numpy as np
import pandas as pd
import parcels
import pytest
from command import Answer
from project import Project

import mlpkg as ml
from mlpkg import lab

ROWS = 100_001  # one more than a transaction has
LOOKS = {
    "timeline": ("timeline", "parcels", "customer=1", "--json"),
    "dead letters": ("dead-letters", "list", "--json"),
    "decisions": ("decisions", "parcels", "--json"),
    "check": ("check", "parcels", "--json"),
}


@pytest.fixture
def shop(project: Project) -> Project:
    (project.folder / "settings.ini").write_text("[DEFAULT]\nstate = state\nuse_cases =\n    parcels = parcels:case\n")
    return project


def test_a_store_is_looked_at_between_pieces_of_a_frame(shop: Project):
    times = pd.Timestamp("2026-03-01", tz="UTC") + pd.to_timedelta(np.arange(ROWS), unit="s")
    frame = pd.DataFrame({"id": [f"p{n}" for n in range(ROWS)], "time": times, "customer": np.arange(ROWS) % 5_000})
    frame["weight"] = np.where(np.arange(ROWS) == 7, np.inf, 1.5)
    seen: dict[str, Answer] = {}

    def look(rows: int) -> None:
        """After the first piece, run each command in a process of its own; the ingest holds the store meanwhile."""
        if not seen:
            seen.update({name: shop.run(*command) for name, command in LOOKS.items()})

    with closing(ml.open_store(shop.settings, create=True)) as store:
        done = lab.ingest(parcels.case, frame, store, look)
    assert (done.rows, done.new["parcels"], len(done.refused)) == (ROWS, ROWS - 1, 1)

    assert {name: answer.err for name, answer in seen.items() if answer.status not in (0, 1)} == {}
    assert [part["rows"] for part in seen["timeline"].json["timelines"] if part["stream"] == "parcels"] == [20]
    assert "inf" in seen["dead letters"].out.lower() and seen["decisions"].status == 0
    (log,) = (finding for finding in seen["check"].json["findings"] if finding["part"] == "store")
    assert log["detail"].startswith("99,999 parcels")
