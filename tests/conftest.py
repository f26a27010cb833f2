import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import handbook
import lightgbm as lgb
import numpy as np
import pytest

import mlpkg as ml
from mlpkg import cli as command_line
from mlpkg import models
from mlpkg.decisions import Decider, Decision, UseCase
from mlpkg.engine.columns import text_code
from mlpkg.examples.fraud.simulator import simulate
from mlpkg.lab.ingest import ingest_file
from mlpkg.models import Categories
from mlpkg.settings import Settings
from mlpkg.times import HOUR, instant, iso

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "data" / "card_transactions.parquet"
SUPPORT = ROOT / "tests" / "support"
START = instant("2018-04-01")


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


SETTINGS = "[DEFAULT]\nstate = state\ntrust_loopback = true\nuse_cases =\n    fraud = handbook:fraud\n    early = handbook:early\n"


@dataclass
class Answer:
    """What a command said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def said_one_line(self, *words: str) -> bool:
        """Whether it failed with a single line that has these words."""
        # a kernel that is stopped while it fails may say so itself, or not
        said = [text for text in self.err.strip().splitlines() if text.strip() and "caught in kernel" not in text]
        line = "\n".join(said)
        assert self.status == 1, (self.status, self.out, self.err)
        assert len(line.splitlines()) == 1 and "Traceback" not in line, self.err
        assert all(word in line for word in words), line
        return True


Command = Callable[..., Answer]


class Project:
    """A folder with a settings.ini, in which commands are run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.state = folder / "state"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.ini").write_text(SETTINGS)

    @property
    def settings(self) -> Settings:
        return Settings.load(self.folder)

    def run(self, *arguments: object, state: Path | None = None, stdin: str | None = None) -> Answer:
        """Run `mlpkg` in a process of its own."""
        env = os.environ | ({"MLPKG_STATE": str(state)} if state else {})
        command = [Path(sysconfig.get_path("scripts"), "mlpkg"), *map(str, arguments)]
        done = subprocess.run(command, cwd=self.folder, env=env, input=stdin or "", capture_output=True, text=True)
        return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def cli(project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """The command `mlpkg` as its entry point runs it, but in this process, which is there already."""

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
        said = capfd.readouterr()
        return Answer(status, str(said.out), str(said.err))

    return call


WORDS = ("books", "tea", "toys")  # the categories that such a model knows; others are unknown to it


def booster(features: ml.FeatureSet, rows: np.ndarray | None = None, labels: np.ndarray | None = None) -> lgb.Booster:
    """A small model of a feature set, of noise unless there is something to learn from."""
    if rows is None or labels is None:
        rng = np.random.default_rng(0)
        rows = rng.uniform(0, 100, (500, len(features.names)))
        labels = rows[:, -1] > 60
        rows[:, [features.names.index(name) for name in features.categories]] //= 100 / (len(WORDS) + 1)
        rows[rng.random(rows.shape) < 0.1] = np.nan
    kinds: Any = {"feature_name": features.names, "categorical_feature": list(features.categories)}
    data = lgb.Dataset(rows, np.asarray(labels, np.int64), **kinds)
    return lgb.train({"objective": "binary", "verbose": -1, "num_threads": 1, "num_leaves": 7}, data, 10)


def put_live(case: UseCase, store: Any, made: lgb.Booster | None = None, **metrics: float) -> str:
    """Save a model of the use case and make it live."""
    state = store.settings.state
    known = Categories({name: [text_code(word) for word in WORDS] for name in case.features.categories})
    told: Any = {"metrics": metrics, "lineage": {}, "policy": {}} | ({"categories": known} if known.tables else {})
    version = models.save(state, case.name, made or booster(case.features), case.features, **told)
    models.promote(store, models.find(state, case.name, version), by="a test", why="to decide")
    return version


class Bank:
    """A store with a live model, to which payments and reports come at times that the test chooses."""

    def __init__(self, case: UseCase, state: Path):
        self.case = case
        self.store: Any = ml.open_store(Settings(state=state))
        self.version = self.store.live(case.name) or put_live(case, self.store)
        self.decider = Decider(case, self.store)

    def payment(self, id: str, day: float, **fields: Any) -> dict[str, Any]:
        at = START + round(day * 24) * HOUR
        return {"id": id, "time": iso(at), "customer_id": 1, "terminal_id": 7, "amount": 10.0} | fields

    def pays(self, id: str, day: float, **fields: Any) -> Decision:
        body = self.payment(id, day, **fields)
        return self.decider.decide(body, arrived=instant(body["time"]))

    def hears(self, id: str, fraud: bool, day: float) -> Any:
        return self.store.report(handbook.frauds, {"id": id, "fraud": fraud}, arrived=START + round(day * 24) * HOUR)

    @property
    def size(self) -> tuple[int, int, int]:
        """The last position, and the numbers of dead letters and of reports that wait."""
        return self.store.last_position(), len(self.store.dead_letters()), len(self.store.waiting())


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    made = Bank(handbook.fraud, tmp_path / "bank")
    with contextlib.closing(made.store):
        yield made


@pytest.fixture
def early_bank(tmp_path: Path) -> Iterator[Bank]:
    made = Bank(handbook.early, tmp_path / "bank")
    with contextlib.closing(made.store):
        yield made


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten weeks of simulated payments in a file."""
    path = tmp_path_factory.mktemp("simulated") / "payments.parquet"
    frame = simulate(
        60, 40, 70, seed=3, compromised_terminals_per_day=0.3, compromised_customers_per_day=0.3, prefix="tx-"
    )
    frame.to_parquet(path, index=False)
    return path


@pytest.fixture(scope="session")
def _stocked(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tmp_path_factory.mktemp("stocked") / "state"
    store = ml.open_store(Settings(state=state))
    ingest_file(handbook.fraud, simulated, store)
    put_live(handbook.fraud, store)
    store.close()
    return state


@pytest.fixture
def stocked(project: Project, _stocked: Path) -> Project:
    """A project in whose state the simulated payments are, and a live model."""
    shutil.copytree(_stocked, project.state)
    return project
