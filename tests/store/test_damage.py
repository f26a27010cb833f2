"""A store, a model or an archive is missing or damaged: the error is one line that names it and says what to do."""

import hashlib
import json
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import handbook
import pytest
from bank import Bank, put_live
from command import Command
from project import Project

import mlpkg as ml
from mlpkg import models
from mlpkg.models import isolated_load as load_isolated
from mlpkg.settings import Settings

PAYMENT = '{"id": "new", "time": "2018-06-09T12:00:00Z", "customer_id": 5, "terminal_id": 3, "amount": 57.16}'
DECIDE = ("decide", "fraud", PAYMENT, "--arrived", "2018-06-09T12:00:00Z")
SPAN = ("--from", "2018-05-01", "--to", "2018-05-08")


def model_of(project: Project) -> Path:
    """The folder of the active model."""
    with closing(ml.open_store(project.settings)) as store:
        return models.models_dir(project.state, "fraud") / (store.active_version("fraud") or "")


def test_a_damaged_store_says_so_in_one_line(stocked: Project):
    """In a process of its own, so that the line is all there is on stderr."""
    (stocked.state / "mlpkg.db").write_bytes(b"this is no database" * 1_000)
    stocked.run(*DECIDE).said_one_line("mlpkg.db is damaged", "restore")


def cut_it(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scratch_it(path: Path) -> None:
    """Overwrite every page but the first."""
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
    cli(*DECIDE).said_one_line("no model is active for 'fraud'", "mlpkg train fraud")
    with closing(ml.open_store(project.settings)) as store:
        assert store.last_position() == 0, "the event was not accepted either"
    cli("replay", "fraud", *SPAN, "--into", "again").said_one_line("no model is active", "mlpkg train fraud")
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
    second = put_live(handbook.fraud, bank.store, auc=0.9)
    (models.models_dir(bank.store.settings.state, "fraud") / second / "model.txt").write_text("tree")
    assert bank.pays("tx-1", 1).model["version"] == first


def test_a_model_saved_twice_is_there_once(bank: Bank):
    """Two training runs with one result in one second."""
    assert put_live(handbook.fraud, bank.store, auc=0.7) and put_live(handbook.fraud, bank.store, auc=0.7)


def changed(pattern: str, by: str) -> Callable[[bytes], bytes]:
    """The text with the first match replaced, and the sizes of its trees put right, so that only this is wrong."""

    def change(data: bytes) -> bytes:
        text = re.sub(pattern, by, data.decode(), count=1, flags=re.DOTALL)
        assert text != data.decode()
        trees = re.findall(r"Tree=\d+\n.*?\n\n\n", text, re.DOTALL)
        sizes = " ".join(str(len(tree)) for tree in trees)
        return re.sub(r"tree_sizes=[^\n]*", f"tree_sizes={sizes}", text).encode()

    return change


ALTERED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "cut in its head": lambda data: data[:300],
    "zeros": lambda data: data[:900] + bytes(200) + data[1_100:],
    "a child that is negative": changed(r"left_child=\S+", "left_child=-2000000"),
    "a child beyond the end": changed(r"right_child=\S+", "right_child=2000000"),
    "a child that is its parent": changed(r"left_child=\S+", "left_child=0"),
    "a feature that is not there": changed(r"split_feature=\S+", "split_feature=70000"),
    "a negative feature": changed(r"split_feature=\S+", "split_feature=-7"),
    "many leaves": changed(r"num_leaves=\d+", "num_leaves=2000000000"),
    "negative leaves": changed(r"num_leaves=\d+", "num_leaves=-1"),
    "fewer thresholds": changed(r"threshold=\S+ ", "threshold="),
    "a category that is not there": changed(r"decision_type=\S+", "decision_type=1"),
    "many categories": changed(r"num_cat=0", "num_cat=1000000000"),
    "other sizes": lambda data: re.sub(rb"tree_sizes=\d", b"tree_sizes=9", data),
    "negative sizes": lambda data: re.sub(rb"tree_sizes=", b"tree_sizes=-", data),
    "many features": changed(r"max_feature_idx=\d+", "max_feature_idx=2147483646"),
    "many classes": changed(r"num_tree_per_iteration=1", "num_tree_per_iteration=1000000"),
    "no objective that there is": changed(r"objective=[^\n]*", "objective=nonsense"),
}


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
def test_an_altered_model_is_refused_and_ends_no_process(bank: Bank, alter: Callable[[bytes], bytes]):
    """The manifest was rewritten to fit the altered model; the active model goes on deciding."""
    first = bank.version
    version = altered(bank.store.settings.state, first, alter)
    model = models.find(bank.store.settings.state, "fraud", version)
    with pytest.raises(ml.MlpkgError, match=r"cannot be loaded|not a LightGBM model|one score") as refused:
        models.promote(bank.store, model, by="a test", why="to see")
    assert "\n" not in str(refused.value)
    assert bank.pays("tx-altered", 1).model["version"] == first


def altered(state: Path, version: str, alter: Callable[[bytes], bytes]) -> str:
    """A copy of a model with another text, whose hash is that of the text."""
    folder = models.models_dir(state, "fraud") / version
    copy = shutil.copytree(folder, folder.parent / f"{version}-altered")
    text = alter((folder / "model.txt").read_bytes())
    (copy / "model.txt").write_bytes(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"version": copy.name}
    manifest["files"]["model.txt"] = hashlib.sha256(text).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy.name


def test_a_model_is_tried_once_and_not_by_what_its_folder_says(bank: Bank, monkeypatch: pytest.MonkeyPatch):
    state = bank.store.settings.state
    (remembered,) = (state / "isolated_loads").iterdir()
    version = altered(state, bank.version, ALTERED["a child that is negative"])
    folder = models.models_dir(state, "fraud") / version
    (folder / "isolated_loads").mkdir()
    digest = hashlib.sha256((folder / "model.txt").read_bytes()).hexdigest()
    for name in (digest, remembered.name):
        (folder / "isolated_loads" / name).touch()
    with pytest.raises(ml.MlpkgError, match="cannot be loaded"):
        models.preload(models.find(state, "fraud", version))
    monkeypatch.setattr(sys, "executable", "/nobody/here")
    models.preload(models.find(state, "fraud", bank.version))


def test_a_process_that_hangs_or_dies_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A stand-in for the interpreter, as no text is known that gets so far."""
    for script, why in (
        ("sleep 60", "had not ended after 1 s"),
        ("kill -SEGV $$", "ended by signal 11"),
        ("exit 3", "3"),
    ):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))
        monkeypatch.setattr(load_isolated, "_TIMEOUT", 1.0)
        with pytest.raises(ml.MlpkgError, match=why):
            load_isolated.load_isolated(b"any text")


def test_a_definition_whose_function_has_changed_is_refused(bank: Bank, monkeypatch: pytest.MonkeyPatch):
    def during_night(time):
        return time // 1 < 8

    monkeypatch.setattr(handbook, "during_night", during_night)
    again = ml.open_store(Settings(state=bank.store.settings.state))
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
