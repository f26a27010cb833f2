"""A training set is the same from the log and from an archive, wherever the archive ends, to the last bit."""

from contextlib import closing
from pathlib import Path
from typing import Any

import handbook
import pandas as pd
import pytest
from bank import START, Bank
from command import Command
from project import Project

import mlpkg as ml
from mlpkg import lab
from mlpkg.errors import MlpkgError
from mlpkg.lab.training import fingerprint
from mlpkg.settings import Settings
from mlpkg.store import open_archive
from mlpkg.times import DAY, instant

SPAN = ("2018-04-01", "2018-07-01")


def with_archive(store: Any, location: Path) -> Any:
    return ml.open_store(store.settings.model_copy(update={"archive": str(location)}))


def same(store: Any, archived: Any, **options: Any) -> pd.DataFrame:
    """The training set of both, by the hash of its content."""
    rows, other = (lab.training_set(handbook.features, *SPAN, store=s, **options) for s in (store, archived))
    assert fingerprint(rows) == fingerprint(other)
    return rows


def test_an_archive_that_ends_anywhere_gives_the_same_training_set(bank: Bank, tmp_path: Path):
    """Reports wait for their events, correct earlier ones, and come late; events come late; decisions see what they saw."""
    archive = open_archive(str(tmp_path / "archive"))
    with closing(with_archive(bank.store, tmp_path / "archive")) as archived:
        same_so_far = 0
        for day in range(12):
            bank.pays(f"a{day}", day)
            bank.store.accept(handbook.transactions, bank.payment(f"b{day}", day), arrived=START + day * DAY)
            if day % 3 == 0:
                bank.store.report(handbook.frauds, {"id": f"c{day + 2}", "fraud": True})  # waits, and says no arrival
                bank.hears(f"a{day}", day % 2 == 0, day + 1)
            if day > 1:
                bank.store.accept(handbook.transactions, bank.payment(f"c{day}", day - 1.5), arrived=START + day * DAY)
                late = {"id": f"a{day - 2}", "fraud": day % 2 == 1, "corrects": True}
                bank.store.report(handbook.frauds, late, arrived=START + day * DAY)
            if day % 4 == 1:
                archive.write(bank.store)
            if day % 3 == 2:
                same_so_far += len(same(bank.store, archived))
        same(bank.store, archived, as_of="2018-04-08")
        assert len(same(bank.store, archived, history="as_logged")) == 34 and same_so_far


def test_a_new_optional_field_is_null_in_what_was_archived_before(tmp_path: Path):
    class Old(ml.Event):
        customer: int

    class New(Old):
        amount: ml.Money | None = None
        bucket: str | None = None  # a column of that name is in every table

    def asks(contract: Any) -> tuple[Any, Any]:
        source = ml.Source("payments", contract, subject="customer")
        aggregates = {"n": ml.count(over="7d")}
        if contract is New:
            aggregates |= {"amount": ml.mean("amount", over="7d"), "kinds": ml.nunique("bucket", over="7d")}
        return source, ml.FeatureSet("demo", on=source, c=source.by("customer").agg(**aggregates))

    archive = open_archive(str(tmp_path / "archive"))
    with (
        closing(ml.open_store(Settings(state=tmp_path / "state"))) as store,
        closing(with_archive(store, tmp_path / "archive")) as archived,
    ):
        for number, contract in enumerate((Old, New, New)):
            source, features = asks(contract)
            store.register("demo", features)
            body = {"id": f"p{number}", "time": f"2018-04-0{number + 1}T00:00:00Z", "customer": 1}
            body |= {"amount": 2.5, "bucket": "red"} if number else {}
            store.accept(source, body, arrived=instant(body["time"]))
            archive.write(store)
        sets = [lab.training_set(features, *SPAN, store=s, use_case="demo") for s in (store, archived)]
        assert fingerprint(sets[0]) == fingerprint(sets[1]) and sets[0]["c_kinds_7d"].tolist() == [0, 1, 1]


def test_the_command_exports_what_is_new_and_the_training_set_reads_it(stocked: Project, cli: Command):
    refused = cli("export", "--delta")
    assert refused.said_one_line("the settings name no archive", "mlpkg export --delta PATH")
    first, second = cli("export", "--delta", "delta", "--json"), cli("export", "--delta", "delta", "--json")
    assert first.status == 0 and first.json["new"]["transactions"] > 7_000, first.err
    assert set(second.json["new"].values()) == {0} and second.json["position"] == first.json["position"]
    assert "nothing new written to" in cli("export", "--delta", "delta").out
    assert cli("export", "fraud", "--delta", "delta").status == 2
    span = ("--from", "2018-05-20", "--to", "2018-05-28")
    assert cli("training-set", "fraud", *span, "-o", "log.parquet").status == 0
    settings = stocked.folder / "settings.ini"
    settings.write_text(settings.read_text().replace("state = state", "state = state\narchive = delta"))
    made = cli("training-set", "fraud", *span, "-o", "archived.parquet")
    assert made.status == 0, made.err
    frames = [pd.read_parquet(stocked.folder / f"{name}.parquet") for name in ("log", "archived")]
    assert fingerprint(frames[0]) == fingerprint(frames[1]) and len(frames[0])


def test_a_training_set_refuses_the_archive_of_another_store(bank: Bank, tmp_path: Path):
    with closing(ml.open_store(Settings(state=tmp_path / "other"))) as other:
        other.register("fraud", handbook.features)
        other.accept(handbook.transactions, bank.payment("p", 0), arrived=START)
        open_archive(str(tmp_path / "archive")).write(other)
    bank.pays("p", 0)
    with closing(with_archive(bank.store, tmp_path / "archive")) as archived:
        with pytest.raises(MlpkgError, match="belongs to another store"):
            lab.training_set(handbook.features, *SPAN, store=archived)
