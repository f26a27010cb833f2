import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import handbook
import pytest
from bank import Bank, copy_of_state, put_live
from command import Answer, Command
from made_once import made_once
from paths import REAL, ROOT, SUPPORT
from project import Project

import mlpkg as ml
from mlpkg import cli as command_line
from mlpkg.examples.fraud.simulator import simulate
from mlpkg.lab.ingest import ingest_file
from mlpkg.settings import Settings

if TYPE_CHECKING:
    from serving import Packaged

pytest_plugins = ["servers"]

# The modules that take longest, the longest first: with them at the start, both workers end at about the same time.
LONGEST = (
    *("lab/test_new_project", "serve/test_batches", "aggregates/test_conformance", "cli/test_workflow"),
    *("tooling/test_servers", "tooling/test_connect", "store/test_changes"),
    *("serve/test_rehearsal", "serve/test_hostile"),
    *("serve/test_proxies", "rollout/test_shadow", "store/test_kill", "decisions/test_stream"),
    *("decisions/test_clicks", "schema/test_clocks", "serve/test_pages", "serve/test_openapi", "models/test_swap"),
    *("docs/test_tutorial_page", "features/test_streams"),
    *("decisions/test_rank", "serve/test_bento", "decisions/test_use_case", "serve/test_client"),
    *("features/test_live_feature",),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take longest; the order inside a module stays."""
    order = {f"tests/{module}.py": place for place, module in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


@pytest.fixture(scope="session")
def real() -> Path:
    """The handbook's published file, where it is there."""
    if not REAL.is_file():
        pytest.skip(f"the real payments are not here: {os.path.relpath(REAL, ROOT)}")
    return REAL


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings from outside; processes that a test starts find the use cases in this folder."""
    for name in [n for n in os.environ if n.startswith("MLPKG_")]:
        monkeypatch.delenv(name)
    path = [str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def cli(project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """The command `mlpkg` as its entry point runs it, but in this process, which is loaded already."""

    def call(*arguments: object, state: Path | None = None) -> Answer:
        monkeypatch.chdir(project.folder)
        if state:
            monkeypatch.setenv("MLPKG_STATE", str(state))
        else:
            monkeypatch.delenv("MLPKG_STATE", raising=False)
        monkeypatch.setattr(sys, "argv", ["mlpkg", *map(str, arguments)])
        capfd.readouterr()
        status = 0
        try:
            command_line.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        captured = capfd.readouterr()
        return Answer(status, str(captured.out), str(captured.err))

    return call


@pytest.fixture
def bank(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    made = Bank(handbook.fraud, copy_of_state(handbook.fraud, tmp_path_factory.getbasetemp(), tmp_path / "bank"))
    with contextlib.closing(made.store):
        yield made


@pytest.fixture
def early_bank(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    made = Bank(handbook.early, copy_of_state(handbook.early, tmp_path_factory.getbasetemp(), tmp_path / "bank"))
    with contextlib.closing(made.store):
        yield made


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> "Packaged":
    """A bento of the checkout, and a store with two months of payments up to now."""
    from serving import make_package, package_in  # imports BentoML, which most tests do without

    return package_in(made_once(tmp_path_factory, "packaged", make_package))


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten weeks of simulated payments in a file."""

    def make(folder: Path) -> None:
        frame = simulate(
            60, 40, 70, seed=3, compromised_terminals_per_day=0.3, compromised_customers_per_day=0.3, prefix="tx-"
        )
        frame.to_parquet(folder / "payments.parquet", index=False)

    return made_once(tmp_path_factory, "simulated", make) / "payments.parquet"


@pytest.fixture(scope="session")
def _stocked(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        with contextlib.closing(ml.open_store(Settings(state=folder / "state"))) as store:
            ingest_file(handbook.fraud, simulated, store)
            put_live(handbook.fraud, store)

    return made_once(tmp_path_factory, "stocked", make) / "state"


@pytest.fixture
def stocked(project: Project, _stocked: Path) -> Project:
    """A project in whose state the simulated payments are, and an active model."""
    shutil.copytree(_stocked, project.state)
    return project
