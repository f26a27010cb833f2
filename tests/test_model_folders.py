"""Folders of models and backups that somebody else wrote: no name in them leads elsewhere, and no link is followed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import handbook
import pytest
from conftest import Bank, Command, Project

from mlpkg import models
from mlpkg.decisions import UseCase, replay
from mlpkg.settings import MlpkgError, Settings
from mlpkg.times import DAY

UPWARDS = ["../../x", "..", ".", "/tmp/x", "a/b", "a\\b", "", ".hidden", "a\0b", "x\n", "-x", "ü", 7, None, ["x"]]


def rewrite(folder: Path, **changes: Any) -> None:
    """Change a manifest as somebody would who may write the folder."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def under(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "mlpkg." not in path.name}


@pytest.mark.parametrize("field", ["version", "use_case"])
@pytest.mark.parametrize("name", UPWARDS, ids=repr)
def test_a_name_in_a_manifest_leads_nowhere(bank: Bank, tmp_path: Path, field: str, name: Any):
    given = Path(
        shutil.copytree(models.find(tmp_path / "bank", "fraud", bank.version).folder, tmp_path / "given" / "v1")
    )
    rewrite(given, **{field: name})
    before = under(tmp_path)
    with pytest.raises(MlpkgError, match=f"the {field.replace('_', ' ')} .* cannot be the name of a file"):
        models.adopt(tmp_path / "new" / "state", given)
    assert under(tmp_path) == before


@pytest.mark.parametrize("name", UPWARDS[:-3], ids=repr)
def test_a_file_in_a_manifest_leads_nowhere(bank: Bank, tmp_path: Path, name: str):
    folder = models.find(tmp_path / "bank", "fraud", bank.version).folder
    files = json.loads((folder / "manifest.json").read_text())["files"]
    rewrite(folder, files=files | {name: "0" * 64})
    with pytest.raises(MlpkgError, match=r"the file .* cannot be the name of a file"):
        models.load(folder)


@pytest.mark.parametrize("name", ["model.txt", "features.json"])
def test_a_file_that_the_manifest_leaves_out_is_not_used(bank: Bank, tmp_path: Path, name: str):
    folder = models.find(tmp_path / "bank", "fraud", bank.version).folder
    files = json.loads((folder / "manifest.json").read_text())["files"]
    rewrite(folder, files={k: v for k, v in files.items() if k != name})
    with pytest.raises(MlpkgError, match=f"does not name {name}"):
        models.load(folder)


@pytest.mark.parametrize("version", ["../../x", "..", "../bank/models/fraud/{}", "/{}", "./{}", "{}/", "{}/../{}"])
def test_a_version_that_is_asked_for_is_no_path(bank: Bank, tmp_path: Path, version: str):
    asked = version.format(bank.version, bank.version)
    with pytest.raises(MlpkgError, match=r"the version .* cannot be the name of a file"):
        models.find(tmp_path / "bank", "fraud", asked)
    with pytest.raises(MlpkgError, match="cannot be the name of a file"):
        replay(handbook.fraud, bank.platform, 0, DAY, tmp_path / "again", model=asked)
    assert not (tmp_path / "again" / "models").exists()


def test_a_replay_into_a_folder_writes_in_that_folder_alone(cli: Command, stocked: Project, tmp_path: Path):
    """Also where the model that is asked for says that it has another version."""
    (version,) = models.versions(stocked.state, "fraud")
    folder = stocked.state / "models" / "fraud" / version
    rewrite(folder, version="../../../outside")
    before = under(tmp_path)
    said = cli(
        "replay",
        "fraud",
        "--from",
        "2018-05-01",
        "--to",
        "2018-05-02",
        "--into",
        tmp_path / "again",
        "--model",
        version,
    )
    assert said.said_one_line("cannot be the name of a file")
    assert under(tmp_path) - {tmp_path / "again"} == before
    rewrite(folder, version="another")
    said = cli(
        "replay",
        "fraud",
        "--from",
        "2018-05-01",
        "--to",
        "2018-05-02",
        "--into",
        tmp_path / "again",
        "--model",
        version,
    )
    assert said.said_one_line("its manifest is that of fraud another")


def test_a_link_in_a_model_is_not_followed(bank: Bank, tmp_path: Path):
    folder = models.find(tmp_path / "bank", "fraud", bank.version).folder
    for name in ("model.txt", "metrics.json"):
        real = Path(shutil.move(folder / name, tmp_path / name))
        (folder / name).symlink_to(real)
        with pytest.raises(MlpkgError, match=f"{name} is a link or no file"):
            models.load(folder)
        (folder / name).unlink()
        shutil.move(real, folder / name)
    assert models.load(folder).version == bank.version


def test_only_what_the_manifest_names_is_copied(bank: Bank, tmp_path: Path):
    """Neither a link to something private nor anything else that lies in the folder."""
    (tmp_path / "private").write_text("secret")
    given = Path(shutil.copytree(models.find(tmp_path / "bank", "fraud", bank.version).folder, tmp_path / "given"))
    (given / "notes").symlink_to(tmp_path / "private")
    (given / "more").mkdir()
    (given / "more" / "x.py").write_text("")
    made = models.adopt(tmp_path / "other", given)
    assert {p.name for p in made.folder.iterdir()} == {*made.manifest["files"], "manifest.json"}


@pytest.mark.parametrize("name", UPWARDS[:-3], ids=repr)
def test_a_use_case_has_a_plain_name(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match=r"the use case .* cannot be the name of a file"):
        UseCase(name, handbook.fraud.features, policy=handbook.fraud.policy)
    with pytest.raises(MlpkgError, match="cannot be the name of a file"):
        models.models_dir(tmp_path, name)
    with pytest.raises(MlpkgError, match="use_cases"):
        Settings.load(tmp_path, use_cases={name: "a:b"})


def linked(folder: Path) -> None:
    (folder / "models").rename(folder.parent / "elsewhere")
    (folder / "models").symlink_to(folder.parent / "elsewhere")


def naming(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "backup.json"
        said = json.loads(path.read_text())
        path.write_text(json.dumps(said | {"files": said["files"] | {name: "0" * 64}}))

    return change


@pytest.mark.parametrize(
    "change",
    [
        linked,
        *map(
            naming,
            ["../x", "models/../../x", "/etc/passwd", "bentoml/x", ".x", "models//x", "models/.x", "mlpkg.db-wal"],
        ),
    ],
)
def test_a_backup_puts_nothing_elsewhere(
    cli: Command, stocked: Project, tmp_path: Path, change: Callable[[Path], None]
):
    assert cli("backup", "-o", tmp_path / "copy").status == 0
    change(tmp_path / "copy")
    before = under(tmp_path)
    assert cli("restore", tmp_path / "copy", state=tmp_path / "new").said_one_line("backup.json names other files")
    assert under(tmp_path) - {tmp_path / "new"} == before
