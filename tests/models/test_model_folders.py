"""Untrusted folders of models and backups: no name in them leads outside, and no link is followed."""

import hashlib
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import handbook
import pytest
from bank import Bank
from command import Command
from project import Project

import mlpkg as ml
from mlpkg import models
from mlpkg.decisions import UseCase, replay
from mlpkg.errors import MlpkgError
from mlpkg.features import from_json, to_json
from mlpkg.schema import code_hash
from mlpkg.settings import Settings
from mlpkg.times import DAY

UPWARDS = ["../../x", "..", ".", "/tmp/x", "a/b", "a\\b", "", ".hidden", "a\0b", "x\n", "-x", "ü", 7, None, ["x"]]


def rewrite(folder: Path, **changes: Any) -> None:
    """Change a manifest, as anyone with write access to the folder can."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def under(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "mlpkg." not in path.name}


@pytest.mark.parametrize("field", ["version", "use_case"])
@pytest.mark.parametrize("name", UPWARDS, ids=repr)
def test_a_name_in_a_manifest_leads_nowhere(bank: Bank, tmp_path: Path, field: str, name: Any):
    folder = Path(
        shutil.copytree(models.find(tmp_path / "bank", "fraud", bank.version).folder, tmp_path / "given" / "v1")
    )
    rewrite(folder, **{field: name})
    before = under(tmp_path)
    with pytest.raises(MlpkgError, match=f"the {field.replace('_', ' ')} .* cannot be the name of a file"):
        models.adopt(tmp_path / "new" / "state", folder)
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
    wanted = version.format(bank.version, bank.version)
    with pytest.raises(MlpkgError, match=r"the version .* cannot be the name of a file"):
        models.find(tmp_path / "bank", "fraud", wanted)
    with pytest.raises(MlpkgError, match="cannot be the name of a file"):
        replay(handbook.fraud, bank.store, 0, DAY, tmp_path / "again", model=wanted)
    assert not (tmp_path / "again" / "models").exists()


def test_a_replay_into_a_folder_writes_in_that_folder_alone(cli: Command, stocked: Project, tmp_path: Path):
    """The manifest of a model may name another version than its folder."""
    (version,) = models.versions(stocked.state, "fraud")
    folder = stocked.state / "models" / "fraud" / version
    rewrite(folder, version="../../../outside")
    before = under(tmp_path)
    replay = (
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
    answer = cli(*replay)
    assert answer.said_one_line("cannot be the name of a file")
    assert under(tmp_path) - {tmp_path / "again"} == before
    rewrite(folder, version="another")
    answer = cli(*replay)
    assert answer.said_one_line("its manifest is that of fraud another")


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
    source = Path(shutil.copytree(models.find(tmp_path / "bank", "fraud", bank.version).folder, tmp_path / "given"))
    (source / "notes").symlink_to(tmp_path / "private")
    (source / "more").mkdir()
    (source / "more" / "x.py").write_text("")
    made = models.adopt(tmp_path / "other", source)
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
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest | {"files": manifest["files"] | {name: "0" * 64}}))

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


# Functions that a definition names


def needing(function: dict[str, str]) -> str:
    """A definition with a feature that is the named function of the event."""
    spec = json.loads(to_json(ml.FeatureSet("f", on=handbook.transactions, amount=ml.field("amount"))))
    return json.dumps(spec | {"members": [*spec["members"], {"member": "x", "on_demand": function}]})


RUN = "from pathlib import Path\nPath(__file__).with_name('was_run').touch()\n"
FUNCTION = "LIMIT = 3\n\n\ndef above(amount):\n    return amount > LIMIT\n"
LAYOUTS = {
    "rogue": {"rogue.py": RUN + FUNCTION},
    "pack.rogue": {"pack/__init__.py": RUN, "pack/rogue.py": FUNCTION},
    "pack.inner.rogue": {"pack/__init__.py": "", "pack/inner/__init__.py": RUN, "pack/inner/rogue.py": RUN + FUNCTION},
    "folder.rogue": {"folder/rogue.py": RUN + FUNCTION},
    "folder.inner.rogue": {"folder/inner/rogue.py": RUN + FUNCTION},
    "pack": {"pack/__init__.py": RUN + FUNCTION},
}


@pytest.fixture(params=LAYOUTS)
def rogue(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that can be imported and leaves a file when it is, alone or through the packages above it."""
    for name, text in LAYOUTS[request.param].items():
        path = tmp_path / "importable" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "importable")
    for name in [n for n in sys.modules if n.partition(".")[0] in ("rogue", "pack", "folder")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    return request.param


def ran(tmp_path: Path) -> bool:
    return bool([*tmp_path.rglob("was_run")])


@pytest.mark.parametrize("name", ["above", "nothing", "LIMIT", "Path", "__doc__", "above.__code__"])
def test_a_module_is_not_run_before_its_code_is_compared(rogue: str, tmp_path: Path, name: str):
    text = needing({"module": rogue, "name": name, "hash": "0" * 16})
    with pytest.raises(MlpkgError, match=f"needs .*{rogue}.{name}"):
        from_json(text)
    assert not ran(tmp_path) and rogue not in sys.modules


RUN_ALL = """
import json, sys
from mlpkg.cli import main

for command in json.loads(sys.argv[1]):
    sys.argv = ["mlpkg", *command]
    try:
        main()
    except SystemExit as end:
        print("ended:", end.code)
    else:
        print("ended: 0")
"""


def test_a_model_whose_definition_names_a_module_does_not_run_it(bank: Bank, rogue: str, tmp_path: Path):
    """Loading, promoting, listing and describing the model do not run the module."""
    folder = models.find(tmp_path / "bank", "fraud", bank.version).folder
    (folder / "features.json").write_text(needing({"module": rogue, "name": "above", "hash": "0" * 16}))
    files = json.loads((folder / "manifest.json").read_text())["files"]
    rewrite(
        folder, files=files | {"features.json": hashlib.sha256((folder / "features.json").read_bytes()).hexdigest()}
    )
    with pytest.raises(MlpkgError, match="with hash 0000"):
        models.preload(models.load(folder))
    settings = f"[local]\nstate = {tmp_path / 'bank'}\nuse_cases = fraud = handbook:fraud\n"
    (tmp_path / "settings.ini").write_text(settings)
    path = f"{Path(handbook.__file__).parent}:{tmp_path / 'importable'}"
    commands = [
        ["promote", "fraud", bank.version],
        ["models", "fraud"],
        ["catalog", "fraud"],
        ["features", "diff", str(folder), "fraud"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)],
        cwd=tmp_path, env={"PYTHONPATH": path}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.count("ended: ") == len(commands), done.stderr
    assert not ran(tmp_path)


def test_a_module_with_the_right_code_is_imported(rogue: str, tmp_path: Path):
    """The hash before it was run is the one of the function after."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import {rogue} as m; from mlpkg.schema.hashing import code_hash; print(code_hash(m.above))",
        ],
        env={"PYTHONPATH": str(tmp_path / "importable")},
        capture_output=True,
        text=True,
        check=True,
    )
    for path in tmp_path.rglob("was_run"):
        path.unlink()
    features = from_json(needing({"module": rogue, "name": "above", "hash": done.stdout.strip()}))
    assert features.names == ["amount", "x"] and ran(tmp_path)
    assert code_hash(sys.modules[rogue].above) == done.stdout.strip()


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("builtins", "exec"), ("subprocess", "Popen"), ("subprocess", "run"), ("shutil", "rmtree"),
     ("antigravity", "geohash"),
     ("nt", "system"), ("posix", "system"), ("numpy", "save"), ("conftest", "Path"), ("handbook", "transactions")],
)  # fmt: skip
@pytest.mark.parametrize("right", [False, True])
def test_nothing_but_a_plain_function_can_be_named(module: str, name: str, right: bool):
    """Not what Python brings, nor what has no code that could be compared, whose hash is that of nothing."""
    hash = hashlib.sha256().hexdigest()[:16] if right else "0" * 16
    with pytest.raises(MlpkgError, match=f"needs .*{module}.{name}"):
        from_json(needing({"module": module, "name": name, "hash": hash}))
    assert module != "antigravity" or module not in sys.modules


CHANGES = {
    "the function": ("amount > LIMIT", "amount >= LIMIT"),
    "a constant": ("LIMIT = 3", "LIMIT = 4"),
    "a computed constant": ("STEP = 2 * 60", "STEP = 3 * 60"),
    "what computes it": ("FACTOR = 5", "FACTOR = 6"),
    "an imported constant": ("DAY = 24", "DAY = 25"),
    "another function": ("return a + 1", "return a + 2"),
    "inside a comprehension": ("DEEP = 1", "DEEP = 2"),
}
WORKS = {
    "works.py": "from constants import DAY as day\n\nLIMIT = 3\nFACTOR = 5\nSTEP = 2 * 60 * FACTOR\nDEEP = 1\n\n\n"
    "def more(a):\n    return a + 1\n\n\n"
    "def above(amount):\n    return amount > LIMIT + STEP + day + more(1) + sum([DEEP for _ in range(2)])\n",
    "constants.py": "DAY = 24\nOTHER = 1\n",
}


COMMENTED = "# a comment at the top\n" + WORKS["works.py"].replace("\n\n\n", "\n\n\n\n") + "\nUNUSED = 1\n"
# Hashes `above` before its module is run and after, for each folder in a fork of its own.
HASH_ALL = """
import os, sys
from mlpkg.schema.hashing import code_hash, find_module_text, hash_unrun

for folder in sys.argv[1:]:
    if os.fork():
        assert os.wait()[1] == 0
        continue
    sys.path.insert(0, folder)
    before = hash_unrun(find_module_text("works"), "above")
    import works

    print(before, code_hash(works.above), flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def hashes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """The hashes of the function `above` before its module is run, and after, for each change of its files."""
    versions = {"nothing": WORKS, "comments": WORKS | {"works.py": COMMENTED}}
    for change, (old, new) in CHANGES.items():
        versions[change] = {name: text.replace(old, new) for name, text in WORKS.items()}
    folders = [tmp_path_factory.mktemp("works") for _ in versions]
    for folder, files in zip(folders, versions.values(), strict=True):
        for name, text in files.items():
            (folder / name).write_text(text)
    command = [sys.executable, "-B", "-c", HASH_ALL, *map(str, folders)]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=True)
    pairs = [line.split() for line in done.stdout.splitlines()]
    return {change: (before, after) for change, (before, after) in zip(versions, pairs, strict=True)}


def test_comments_and_what_is_not_used_do_not_belong_to_the_code(hashes: dict[str, tuple[str, str]]):
    read, after = hashes["nothing"]
    assert read == after and hashes["comments"] == (read, read)


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_function_uses_belongs_to_its_code(hashes: dict[str, tuple[str, str]], change: str):
    """The same whether the module was run or is only read."""
    read, after = hashes[change]
    assert read == after != hashes["nothing"][0]
