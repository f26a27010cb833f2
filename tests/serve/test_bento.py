"""A bento decides where there is no checkout: unpacked elsewhere, in an environment of its own, without research."""

import json
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
from package_index import fresh_environment
from paths import ROOT
from serving import (
    LOST,
    Client,
    Packaged,
    environment,
    free_port,
    mlpkg,
    payment,
    places_named_in,
    run,
)

from mlpkg.serve.bento.package import Bento

RESEARCH = ("pandas", "pyarrow", "matplotlib", "papermill", "jupyter", "ipykernel", "ipython", "nbdev", "nbformat")


@pytest.fixture(scope="module")
def unpacked(made: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Bento:
    """The bento, copied to where it is to run."""
    return made.built.copy_to(tmp_path_factory.mktemp("production") / "fraud")


@pytest.fixture(scope="module")
def python(unpacked: Bento, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment, with what the bento asks for and nothing else."""
    folder = tmp_path_factory.mktemp("fresh")
    requirements = unpacked.folder / "env" / "python" / "requirements.txt"
    return fresh_environment(folder, "-r", requirements, cwd=requirements.parent, env=environment(folder))


@contextmanager
def bentoml_serve(python: Path, bento: Bento, state: Path, log: Path) -> Iterator[int]:
    """`bentoml serve` as the bento's README has it; the port it answers on."""
    port = free_port()
    command = [python.with_name("bentoml"), "serve", ".", "--port", str(port)]
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=bento.folder, env=environment(state), stdout=out, stderr=out)
    try:
        until = time.monotonic() + 180
        while time.monotonic() < until and server.poll() is None:
            try:
                Client(port).ask("GET", "/v1/health")
                break
            except LOST:
                time.sleep(0.05)
        else:
            raise AssertionError(log.read_text())
        yield port
    finally:
        family = [server, *psutil.Process(server.pid).children(recursive=True)] if server.poll() is None else []
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        for process in psutil.wait_procs(family[1:], timeout=5)[1]:
            process.kill()


def test_a_bento_decides_in_a_fresh_environment(unpacked: Bento, made: Packaged, python: Path, tmp_path: Path):
    """The bento starts on an empty store with its own model, and `verify` recomputes its records here to the bit."""
    state = tmp_path / "state"
    with bentoml_serve(python, unpacked, state, tmp_path / "log") as port, closing(Client(port)) as client:
        assert client.ask("GET", "/v1/ready").json == {"status": "ready", "use_case": "fraud", "model": made.version}
        bodies = [payment(f"tx-{k}", amount=10.0 + k) for k in range(5)]
        answers = [client.ask("POST", "/v1/decide", body) for body in bodies]
        assert [answer.status for answer in answers] == [200] * 5
        again = client.ask("POST", "/v1/decide", bodies[0])
        assert again.body == answers[0].body == client.ask("GET", "/v1/decisions/tx-0").body
    last = answers[-1].json
    assert (last["model"]["version"], last["features"]["customer_n_tx_1d"]) == (made.version, 5)
    result = mlpkg("verify", "fraud", state=state)
    assert (result["decisions"], result["mismatches"]) == (5, 0)


def test_the_environment_of_a_bento_has_nothing_of_research(python: Path, tmp_path: Path):
    code = "import importlib.metadata as m, json; print(json.dumps([d.metadata['Name'].lower() for d in m.distributions()]))"
    distributions = json.loads(run(python, "-c", code, env=environment(tmp_path), cwd=tmp_path))
    assert {"mlpkg", "bentoml", "lightgbm"} <= set(distributions)
    assert [name for name in distributions if name.startswith(RESEARCH)] == []
    code = "import mlpkg; print(mlpkg.__file__)"
    where = Path(run(python, "-c", code, env=environment(tmp_path), cwd=tmp_path).strip())
    assert where.is_relative_to(python.parent.parent), "the mlpkg that the bento brought, not the checkout"


def test_a_bento_names_no_place_of_the_machine_that_built_it(unpacked: Bento, tmp_path_factory: pytest.TempPathFactory):
    assert places_named_in(unpacked.folder, tmp_path_factory.getbasetemp()) == set()


def test_a_bento_has_no_live_state_in_it(unpacked: Bento):
    """A model and its code are in it; no log, no archive, no key, no runs."""
    files = {path.relative_to(unpacked.folder).as_posix() for path in unpacked.folder.rglob("*") if path.is_file()}
    assert {"src/service.py", "src/settings.ini", f"src/model/{unpacked.model}/model.txt"} <= files
    for path in files:
        assert ".db" not in path and not path.endswith((".key", ".parquet", ".ipynb_checkpoints")), path
        assert not {"state", "archive", "runs", "bentoml", "nbs", "tests", "lab"} & set(Path(path).parts), path
    size = sum((unpacked.folder / path).stat().st_size for path in files)
    assert size < 5_000_000, size


def test_a_bento_brings_the_package_as_it_is_here(unpacked: Bento):
    assert unpacked.wheel
    with zipfile.ZipFile(unpacked.wheel) as wheel:
        for path in (ROOT / "mlpkg").rglob("*.py"):
            assert wheel.read(path.relative_to(ROOT).as_posix()) == path.read_bytes(), path.name


def test_what_runs_elsewhere_puts_its_state_where_it_is_told(unpacked: Bento, python: Path, tmp_path: Path):
    """And in the user's state folder where it is told nothing, never inside the bento."""
    code = "from pathlib import Path; from mlpkg.serve.bento.worker import settings; print(settings(Path('src').resolve()).state)"
    with_state = environment(tmp_path / "told", XDG_STATE_HOME=str(tmp_path / "user"))
    without_state = {name: value for name, value in with_state.items() if name != "MLPKG_STATE"}
    folders = [
        Path(run(python, "-c", code, env=env, cwd=unpacked.folder).strip()) for env in (with_state, without_state)
    ]
    assert folders == [tmp_path / "told", tmp_path / "user" / "mlpkg"]
