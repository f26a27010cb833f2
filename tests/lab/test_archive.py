"""The archive is a copy of the log: the same answers, however often and however far it was written."""

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import handbook
import pandas as pd
import pyarrow.dataset as ds
import pytest
from bank import START, Bank
from command import Command
from project import Project

import mlpkg as ml
from mlpkg import lab
from mlpkg.times import DAY


def export(store: Any) -> dict[str, int]:
    return lab.Archive(store.settings.state).export(store, [handbook.transactions], [handbook.frauds], ["fraud"])


def same_as_the_log(store: Any, start: str = "2018-04-01", end: str = "2018-07-01", **options: Any) -> pd.DataFrame:
    """The training set, which is the same from both."""
    of_log, of_archive = (
        lab.training_set(handbook.features, start, end, store=store, source=source, **options)
        for source in ("log", "archive")
    )
    of_log.attrs.clear()
    of_archive.attrs.clear()
    pd.testing.assert_frame_equal(of_log, of_archive, check_exact=True)
    return of_log


def files(state: Path) -> set[Path]:
    return set((state / "archive").rglob("*.parquet"))


def test_a_training_set_is_the_same_from_the_archive_and_from_the_log(stocked: Project, cli: Command):
    exported = cli("export", "fraud", "--json")
    assert exported.status == 0 and exported.json["new"]["transactions"] > 7_000, exported.err
    with closing(ml.open_store(stocked.settings)) as store:
        rows = same_as_the_log(store)
        assert len(rows) == exported.json["new"]["transactions"] and bool(rows["label"].any())
        part = same_as_the_log(store, "2018-05-20", "2018-05-22", as_of="2018-05-28")
        assert set(part["label"].isna()) == {True, False}
    span = ("--from", "2018-05-20", "--to", "2018-05-28")
    for source in ("log", "archive"):
        made = cli("training-set", "fraud", *span, "--source", source, "-o", f"{source}.parquet")
        assert made.status == 0, made.err
    from_log, other = (pd.read_parquet(stocked.folder / f"{source}.parquet") for source in ("log", "archive"))
    pd.testing.assert_frame_equal(from_log, other, check_exact=True)


def test_a_second_export_adds_what_is_new_and_touches_nothing_else(bank: Bank):
    state = bank.store.settings.state
    for k in range(20):
        bank.pays(f"a{k}", k / 2)
    assert export(bank.store) == {"transactions": 20, "transactions.fraud": 0, "decisions.fraud": 20}
    first = {path: path.stat().st_mtime_ns for path in files(state)}
    assert export(bank.store) == {"transactions": 0, "transactions.fraud": 0, "decisions.fraud": 0}
    bank.hears("a0", True, 10)
    bank.pays("late", 9)  # on a day that was exported already
    bank.pays("b", 10)
    assert export(bank.store) == {"transactions": 2, "transactions.fraud": 1, "decisions.fraud": 2}
    assert {path: path.stat().st_mtime_ns for path in first} == first and files(state) > set(first)
    rows = same_as_the_log(bank.store)
    assert len(rows) == 22 and max(rows["terminal_risk_7d"].tolist()) > 0


def test_decided_events_have_their_recorded_moments_in_the_archive_too(bank: Bank):
    """An event that was accepted first and decided after a later report is seen as its decision saw it."""
    bank.pays("old", 0)
    body = bank.payment("it", 8)
    bank.store.accept(handbook.transactions, body, arrived=START + 8 * DAY)
    bank.hears("old", True, 8)
    assert bank.decider.decide(body, arrived=START + 8 * DAY).features["terminal_risk_7d"] == 1.0
    export(bank.store)
    assert same_as_the_log(bank.store)["terminal_risk_7d"].tolist() == [0.0, 1.0]


def test_what_a_crash_left_behind_does_not_count(bank: Bank):
    """Files are written first, and the list of what counts last: before it is there, they are nothing."""
    state = bank.store.settings.state
    bank.pays("a", 0)
    export(bank.store)
    listed = (state / "archive" / "contents.json").read_bytes()
    bank.pays("b", 0)
    bank.pays("c", 3)
    export(bank.store)
    (state / "archive" / "contents.json").write_bytes(listed)  # as if it had died before its last step
    half = next((state / "archive" / "transactions" / "date=2018-04-04").iterdir())
    half.write_bytes(half.read_bytes()[:100])
    (half.parent / "9-9.parquet.part").write_bytes(b"PAR1")

    rows = lab.training_set(handbook.features, "2018-04-01", "2018-05-01", store=bank.store, source="archive")
    assert rows["id"].tolist() == ["a"]
    assert export(bank.store)["transactions"] == 2
    assert not (half.parent / "9-9.parquet.part").exists()
    assert same_as_the_log(bank.store)["id"].tolist() == ["a", "b", "c"]


def test_an_archive_may_be_removed_and_made_again(stocked: Project):
    with closing(ml.open_store(stocked.settings)) as store:
        first = export(store)
        same_as_the_log(store, "2018-05-20", "2018-05-22")
        shutil.rmtree(stocked.state / "archive")
        with pytest.raises(ml.MlpkgError, match="no archive"):
            same_as_the_log(store)
        assert export(store) == first
        same_as_the_log(store, "2018-05-20", "2018-05-22")


def test_a_stream_that_is_new_to_the_archive_is_there_from_its_beginning(bank: Bank):
    bank.pays("a", 0)
    archive = lab.Archive(bank.store.settings.state)
    archive.export(bank.store, [handbook.transactions], [])
    with pytest.raises(ml.MlpkgError, match=r"has no transactions\.fraud"):
        same_as_the_log(bank.store)
    bank.hears("a", True, 1)
    assert export(bank.store) == {"transactions": 1, "transactions.fraud": 1, "decisions.fraud": 1}
    same_as_the_log(bank.store)


def test_other_tools_read_the_archive_in_its_own_units(bank: Bank):
    bank.pays("a", 1.5, amount=57.16)
    bank.hears("a", True, 3)
    export(bank.store)
    folder = bank.store.settings.state / "archive"
    paid = ds.dataset(folder / "transactions", partitioning="hive").to_table().to_pylist()
    assert [(r["id"], r["amount"], str(r["time"]), str(r["date"])) for r in paid] == [
        ("a", 57.16, "2018-04-02 12:00:00+00:00", "2018-04-02")
    ]
    reports = ds.dataset(folder / "transactions.fraud", partitioning="hive").to_table().to_pylist()
    assert [(r["id"], r["fraud"], r["about"]) for r in reports] == [("a", True, paid[0]["position"])]
    decided = ds.dataset(folder / "decisions.fraud", partitioning="hive").to_table().to_pylist()
    assert json.loads(decided[0]["record"])["features"]["amount"] == 57.16


def test_a_field_that_was_added_later_is_null_before(bank: Bank):
    class Wider(handbook.Transaction):
        country: str | None = None

    wider = ml.Source("transactions", Wider, retention="90d", allowed_lateness="3d")
    bank.pays("a", 0)
    export(bank.store)
    features = ml.FeatureSet("wider", on=wider, amount=ml.field("amount"))
    bank.store.register("wider", features)
    body = bank.payment("b", 1) | {"country": "CH"}
    bank.store.accept(wider, body, arrived=START + DAY)
    archive = lab.Archive(bank.store.settings.state)
    archive.export(bank.store, [wider], [])
    history = archive.history([wider], [])
    assert history.events["transactions"].ids == ["a", "b"]
    codes = history.events["transactions"].columns["country"]
    of_log = bank.store.history([wider], []).events["transactions"].columns["country"]
    assert codes.tolist() == of_log.tolist() and codes[0] < codes[1]
