"""A store, a model, an archive that is missing or damaged: one line that says what it is and what to do."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import handbook
import pytest
from conftest import Bank, Command, Project, put_live

import mlpkg as ml
from mlpkg import models
from mlpkg.settings import Settings

PAYMENT = '{"id": "new", "time": "2018-06-09T12:00:00Z", "customer_id": 5, "terminal_id": 3, "amount": 57.16}'
DECIDE = ("decide", "fraud", PAYMENT, "--arrived", "2018-06-09T12:00:00Z")
SPAN = ("--from", "2018-05-01", "--to", "2018-05-08")


def model_of(project: Project) -> Path:
    """The folder of the live model."""
    with closing(ml.open(project.settings)) as platform:
        return models.models_dir(project.state, "fraud") / (platform.live("fraud") or "")


def test_a_damaged_store_says_so_in_one_line(stocked: Project):
    """In a process of its own, so that the line is all there is on stderr."""
    (stocked.state / "mlpkg.db").write_bytes(b"this is no database" * 1_000)
    stocked.run(*DECIDE).said_one_line("mlpkg.db is damaged", "restore")


def cut_it(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scratch_it(path: Path) -> None:
    """Nothing but the first page is left as it was."""
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:4096] + os.urandom(size - 4096))


@pytest.mark.parametrize("damage", [cut_it, scratch_it])
@pytest.mark.parametrize("command", ["decide", "verify", "decisions", "training-set", "ingest", "export", "report"])
def test_every_verb_says_in_one_line_that_the_store_is_damaged(
    stocked: Project, simulated: Path, cli: Command, damage, command: str
):
    damage(stocked.state / "mlpkg.db")
    arguments = {"training-set": (*SPAN, "-o", "x.parquet"), "ingest": (simulated,), "decide": DECIDE[2:]}
    answer = cli(command, "fraud", *arguments.get(command, ()))
    answer.said_one_line("mlpkg.db is damaged", "restore")


def test_a_state_that_is_no_folder_says_so(project: Project, cli: Command):
    project.state.write_text("")
    cli("decisions", "fraud").said_one_line(str(project.state), "MLPKG_STATE")


def test_a_store_of_a_newer_version_is_left_alone(stocked: Project, cli: Command):
    with closing(sqlite3.connect(stocked.state / "mlpkg.db")) as db:
        db.execute("pragma user_version = 999")
    cli("decisions", "fraud").said_one_line("newer mlpkg", "upgrade")


def test_without_a_model_the_line_says_how_to_get_one(project: Project, cli: Command):
    cli(*DECIDE).said_one_line("no model is live for 'fraud'", "mlpkg train fraud")
    with closing(ml.open(project.settings)) as platform:
        assert platform.last_position() == 0, "the event was not accepted either"
    cli("replay", "fraud", *SPAN, "--into", "again").said_one_line("no model is live", "mlpkg train fraud")
    cli("promote", "fraud", "20180101T000000-00000000").said_one_line("no model", "mlpkg models")
    assert "mlpkg train fraud" in cli("models", "fraud").out


@pytest.mark.parametrize("name", ["model.txt", "features.json", "policy.json", "metrics.json", "lineage.json"])
def test_a_model_with_one_changed_byte_is_refused(stocked: Project, cli: Command, name: str):
    path = model_of(stocked) / name
    path.write_bytes(path.read_bytes() + b" ")
    cli(*DECIDE).said_one_line(f"{name} is not the file that was saved", "restore the folder or train again")
    listed = cli("models", "fraud", "--json")
    assert listed.status == 0 and name in listed.json[0]["damaged"]


def test_a_model_that_lost_a_file_is_refused(stocked: Project, cli: Command):
    (model_of(stocked) / "model.txt").unlink()
    cli(*DECIDE).said_one_line("model.txt is missing", "restore the folder or train again")


def test_a_model_whose_manifest_cannot_be_read_is_refused(stocked: Project, cli: Command):
    (model_of(stocked) / "manifest.json").write_text("{")
    cli(*DECIDE).said_one_line("manifest cannot be read", "restore the folder or train again")


def test_a_model_that_is_gone_is_named(stocked: Project, cli: Command):
    folder = model_of(stocked)
    shutil.rmtree(folder)
    cli(*DECIDE).said_one_line("there is no model at", folder.name)


def test_a_decision_whose_model_is_gone_cannot_be_verified(stocked: Project, cli: Command):
    assert cli(*DECIDE).status == 0
    shutil.rmtree(model_of(stocked))
    cli("verify", "fraud").said_one_line("there is no model at")


def test_a_damaged_model_does_not_take_the_place_of_one_that_serves(bank: Bank):
    """It was promoted while a decider was serving another one, which goes on."""
    first = bank.version
    second = put_live(handbook.fraud, bank.platform, auc=0.9)
    (models.models_dir(bank.platform.settings.state, "fraud") / second / "model.txt").write_text("tree")
    assert bank.pays("tx-1", 1).model["version"] == first


def test_a_model_saved_twice_is_there_once(bank: Bank):
    """Two training runs with one result in one second."""
    assert put_live(handbook.fraud, bank.platform, auc=0.7) and put_live(handbook.fraud, bank.platform, auc=0.7)


def test_a_definition_whose_function_has_changed_is_refused(bank: Bank, monkeypatch: pytest.MonkeyPatch):
    def during_night(time):
        return time // 1 < 8

    monkeypatch.setattr(handbook, "during_night", during_night)
    again = ml.open(Settings(state=bank.platform.settings.state))
    with closing(again), pytest.raises(ml.MlpkgError, match="during_night with hash"):
        _ = models.find(again.settings.state, "fraud", bank.version).features


def test_the_archive_says_when_it_is_missing_or_damaged(stocked: Project, cli: Command):
    training_set = ("training-set", "fraud", *SPAN, "--source", "archive", "-o", "x.parquet")
    cli(*training_set).said_one_line("no archive", "mlpkg export")
    assert cli("export", "fraud").status == 0
    assert cli(*training_set).status == 0

    archive = stocked.state / "archive"
    file = next((archive / "transactions" / "date=2018-05-03").glob("*.parquet"))
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text" * 100, flipped(whole)):
        file.write_bytes(damaged)
        cli(*training_set).said_one_line("archive", "is damaged", "export again")
    file.unlink()
    cli(*training_set).said_one_line("archive", "is damaged", "export again")
    (archive / "contents.json").write_text("{")
    cli(*training_set).said_one_line("archive", "is damaged", "export again")
    shutil.rmtree(archive)
    assert cli("export", "fraud").status == 0
    assert cli(*training_set).status == 0


def flipped(data: bytes) -> bytes:
    """One bit of the first page is another."""
    changed = bytearray(data)
    changed[60] ^= 1
    return bytes(changed)


def test_settings_that_cannot_be_read_say_so(project: Project, cli: Command):
    (project.folder / "settings.ini").write_text("[DEFAULT]\nport = many\n")
    cli("decisions", "fraud").said_one_line("port = 'many'", "MLPKG_PORT")
    (project.folder / "settings.ini").write_text("port = 1")
    cli("decisions", "fraud").said_one_line("settings.ini cannot be read")
    (project.folder / "settings.ini").write_text("[DEFAULT]\nuse_cases = fraud = handbook:nothing\n")
    cli("decisions", "fraud").said_one_line("'fraud' cannot be loaded from handbook:nothing")
