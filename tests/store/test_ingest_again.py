"""A file may be ingested again, from the start."""

from contextlib import closing
from pathlib import Path

from command import Command
from project import Project

import mlpkg as ml


def test_an_interrupted_file_goes_in_the_second_time(stocked: Project, cli: Command, simulated: Path):
    """Ingesting is repeatable: what is there is known already."""
    again = cli("ingest", "fraud", simulated, "--json")
    assert again.status == 0, again.err
    assert sum(again.json["new"].values()) == 0 and again.json["refused"] == []
    with closing(ml.open_store(stocked.settings)) as store:
        assert again.json["known"] == sum(1 for e in store.read(streams=["transactions", "transactions.fraud"]))
