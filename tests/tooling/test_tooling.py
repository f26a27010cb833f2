"""What `make check` is there for: what was changed by hand, and what was imported where it must not be, is named."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from mlpkg.aggregates import REGISTRY

LEFT_OUT = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")


WRONG_IMPORTS = [  # modules, lines that are added to them, and what these lines import
    ("decisions/decider", "import pandas", "pandas"),
    ("models/artifact", "def lazily():\n    import pyarrow.parquet\n", "pyarrow"),
    ("cli/main", "from mlpkg import lab", "mlpkg.lab"),
    ("engine/timeline", "from mlpkg.features.feature_set import FeatureSet", "mlpkg.features.feature_set"),
    ("store/protocol", "import apsw", "apsw"),
    ("store/sqlite/store", "import redis", "redis"),
    ("lab/lab", "import confluent_kafka", "confluent_kafka"),
    ("store/records", "from mlpkg.store import sqlite", "mlpkg.store.sqlite"),
]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the checks look at, to be changed freely."""
    for name in ("mlpkg", "nbs", ".ci"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=LEFT_OUT)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def check(copy: Path, name: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ".ci/check.py", name]
    return subprocess.run(command, cwd=copy, capture_output=True, text=True)


def keep_notebooks(copy: Path, *folders: str) -> None:
    """Leave only these folders of notebooks in the copy, and the modules that they export."""
    for path in [*(copy / "nbs").iterdir()]:
        if path.name not in folders:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    exported = set()
    for path in (copy / "nbs").rglob("*.ipynb"):
        module = re.search(r"#\| ?default_exp ([\w.]+)", path.read_text())
        exported |= {f"{module[1].replace('.', '/')}.py"} if module else set()
    for path in (copy / "mlpkg").rglob("*.py"):
        if path.relative_to(copy / "mlpkg").as_posix() not in exported:
            path.unlink()


def test_a_line_changed_by_hand_fails_with_the_name_of_its_module(copy: Path):
    """And so does a module that no notebook exports, and one that is missing."""
    keep_notebooks(copy, "00_core", "01_engine", "17_lab")
    with (copy / "mlpkg" / "engine" / "timeline.py").open("a") as module:
        module.write("WIDTH = 8\n")
    (copy / "mlpkg" / "leftover.py").write_text("")
    (copy / "mlpkg" / "times.py").unlink()
    done = check(copy, "drift")
    assert done.returncode == 1
    assert "mlpkg/engine/timeline.py is not what its notebook exports" in done.stdout and "+WIDTH = 8" in done.stdout
    assert "mlpkg/leftover.py is left over" in done.stdout
    assert "mlpkg/times.py is missing" in done.stdout
    assert "drift" in done.stderr


def test_an_import_where_it_must_not_be_fails_with_its_name(copy: Path):
    """Each of these is named, in one run, as a run takes seconds."""
    for module, line, _ in WRONG_IMPORTS:
        with (copy / "mlpkg" / f"{module}.py").open("a") as file:
            file.write(f"\n{line}\n")
    done = check(copy, "imports")
    assert done.returncode == 1 and "BROKEN" in done.stdout
    for module, _, imported in WRONG_IMPORTS:
        importer = f"mlpkg.{module.replace('/', '.')}"
        assert re.search(rf"{re.escape(importer)} -> {re.escape(imported)}\b", done.stdout), done.stdout


def test_the_contracts_hold_as_it_is(copy: Path):
    done = check(copy, "imports")
    assert done.returncode == 0, done.stdout


def test_a_random_id_of_a_cell_fails_with_the_name_of_its_notebook(copy: Path):
    path = copy / "nbs" / "00_core" / "02_times.ipynb"
    path.write_text(path.read_text().replace('"id": "duration"', '"id": "0b3f6d1c"'))
    done = check(copy, "notebooks")
    assert done.returncode == 1 and "nbs/00_core/02_times.ipynb" in done.stdout


def test_an_undeclared_import_fails_with_its_name(copy: Path):
    with (copy / "mlpkg" / "times.py").open("a") as module:
        module.write("import aiohttp\nimport hypothesis\n")
    done = check(copy, "dependencies")
    assert done.returncode == 1
    assert "'aiohttp' imported but" in done.stdout, "installed, but for others"
    assert "'hypothesis' imported but declared as a dev dependency" in done.stdout, done.stdout


def test_a_picture_that_is_not_the_import_contract_fails(copy: Path):
    shutil.copytree(ROOT / "docs", copy / "docs")
    page = copy / "docs" / "architecture.md"
    page.write_text(page.read_text().replace("decisions", "rulings", 1))
    done = check(copy, "markdown")
    assert done.returncode == 1 and "docs/architecture.md draws the layers" in done.stdout


def test_a_check_that_is_not_known_is_refused(copy: Path):
    done = check(copy, "spelling")
    assert done.returncode == 1 and "no check is called spelling" in done.stderr


def test_the_page_of_features_says_what_each_aggregate_is():
    page = (ROOT / "docs" / "features.md").read_text()
    first = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(REGISTRY) <= set(re.findall(r"[a-z_]+", first))
