"""The base install is what decides in production: small, without anything of the research side."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import Command
from package_index import fresh_environment, index
from paths import ROOT, SUPPORT
from project import SETTINGS, Project

RESEARCH = {
    *("pandas", "pyarrow", "matplotlib", "papermill", "jupyter", "jupyterlab", "jupyter-core", "nbdev", "fastcore"),
    *("ipython", "ipykernel", "nbformat", "scikit-learn", "bentoml", "starlette", "uvicorn"),
}
PAYMENT = {"id": "new", "time": "2018-06-09T12:00:00Z", "customer_id": 5, "terminal_id": 3, "amount": 57.16}


def run(*command: object, cwd: Path, status: int = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=os.environ | (env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel of mlpkg and what it needs, at the pinned versions."""
    folder = tmp_path_factory.mktemp("lean")
    uv = [sys.executable, "-m", "uv"]
    run(*uv, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT, cwd=folder, env=index())
    (wheel,) = folder.glob("mlpkg-*.whl")
    return fresh_environment(folder, "--constraint", ROOT / "constraints.txt", wheel, cwd=folder, env=os.environ)


def installed(python: Path) -> set[str]:
    code = "import importlib.metadata as m; print(*(d.metadata['Name'].lower() for d in m.distributions()))"
    return set(run(python, "-c", code, cwd=python.parent, env={"PYTHONPATH": ""}).stdout.split())


def test_the_base_install_is_at_most_twenty_distributions_and_none_of_them_research(lean: Path):
    distributions = installed(lean)
    assert "mlpkg" in distributions and len(distributions) <= 20, sorted(distributions)
    assert not distributions & RESEARCH, sorted(distributions & RESEARCH)


def test_the_base_install_decides_in_process(lean: Path, stocked: Project, cli: Command):
    """On the store and with the model that the research side made; and to the bit as the research side does."""
    code = (
        "import json, sys, handbook\n"
        f"decision = handbook.fraud.decide({PAYMENT!r}, arrived={PAYMENT['time']!r})\n"
        f"again = handbook.fraud.decide({PAYMENT!r}, arrived={PAYMENT['time']!r})\n"
        "names = {name.partition('.')[0].lower() for name in sys.modules}\n"
        "print(json.dumps([decision.features, decision.score, decision.action, again.score, sorted(names)]))"
    )
    features, score, action, again, modules = json.loads(
        run(lean, "-c", code, cwd=stocked.folder, env={"PYTHONPATH": str(SUPPORT)}).stdout
    )
    assert features["amount"] == 57.16 and features["customer_n_tx_30d"] > 1
    assert score == again and action in ("approve", "review", "decline")
    assert not set(modules) & (RESEARCH | {"sklearn"})
    here = run(
        lean.with_name("mlpkg"), "verify", "fraud", "--json", cwd=stocked.folder, env={"PYTHONPATH": str(SUPPORT)}
    )
    assert json.loads(here.stdout)["mismatches"] == 0
    verified = cli("verify", "fraud", "--json")
    assert (verified.json["decisions"], verified.json["mismatches"]) == (1, 0)


def test_the_base_install_brings_the_use_case(lean: Path, project: Project):
    """`mlpkg.examples.fraud` is in the wheel and needs nothing else."""
    (project.folder / "settings.ini").write_text(
        SETTINGS.replace("handbook:fraud", "mlpkg.examples.fraud.policy:fraud")
    )
    done = run(
        lean.with_name("mlpkg"),
        "decide",
        "fraud",
        json.dumps(PAYMENT),
        cwd=project.folder,
        status=1,
        env={"PYTHONPATH": ""},
    )
    line = done.stderr.strip()
    assert "Transaction.time" in line and len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("verb", "extra"),
    [
        ("ingest", "lab"),
        ("train", "lab"),
        ("training-set", "lab"),
        ("export", "lab"),
        ("package", "serve"),
    ],
)
def test_what_is_not_installed_says_which_extra_brings_it(lean: Path, stocked: Project, verb: str, extra: str):
    arguments = {"ingest": ["x.csv"], "training-set": ["--from", "2018-04-01", "--to", "2018-05-01", "-o", "x.csv"]}
    service = stocked.folder / "services" / "fraud" / "service.py"
    service.parent.mkdir(parents=True)
    service.touch()
    command = [lean.with_name("mlpkg"), verb, "fraud", *arguments.get(verb, [])]
    done = run(*command, cwd=stocked.folder, status=1, env={"PYTHONPATH": str(SUPPORT)})
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert f"pip install 'mlpkg[{extra}]'" in done.stderr


def test_the_commands_are_listed_without_the_extras(lean: Path, project: Project):
    listed = run(lean.with_name("mlpkg"), "--help", cwd=project.folder, env={"PYTHONPATH": ""}).stdout
    for verb in ("decide", "decisions", "verify", "replay", "outcome", "ingest", "train", "serve"):
        assert f"  {verb} " in listed, listed
