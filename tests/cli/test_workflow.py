"""From an edit to production in the four commands of docs/production.md, while the old model goes on serving."""

import json
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
from paths import ROOT
from serving import (
    LOST,
    SCRIPTS,
    Client,
    Packaged,
    environment,
    free_port,
    mlpkg,
    payment,
    places_named_in,
    run,
    serving,
)

import mlpkg as ml
from mlpkg.serve.bento.package import Bento
from mlpkg.settings import Settings
from mlpkg.times import DAY, iso, now

pytestmark = pytest.mark.e2e

NEW = "customer_n_tx_3d"
LEFT_OUT = shutil.ignore_patterns(
    ".*", "__pycache__", "state*", "build", "dist", "*.egg-info", "tests", "benchmarks", "docs"
)


def copy_of_the_checkout(folder: Path) -> Path:
    """A checkout in which something may be edited; what is imported in it is its own package."""
    return Path(shutil.copytree(ROOT, folder, ignore=LEFT_OUT))


def edit(checkout: Path) -> None:
    """Give the number of a customer's payments another window, in the notebook and nowhere else."""
    path = checkout / "nbs" / "18_examples" / "fraud" / "02_features.ipynb"
    notebook = json.loads(path.read_text("utf-8"))
    (cell,) = [c for c in notebook["cells"] if c["id"] == "customer" and c["cell_type"] == "code"]
    source = "".join(cell["source"])
    edited = source.replace("n_tx=ml.count(over=days)", 'n_tx=ml.count(over=[*days, "3d"])')
    assert source.count("n_tx=ml.count(over=days)") == 1
    cell["source"] = edited.splitlines(keepends=True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def commands() -> list[list[str]]:
    """The commands that the page lists for it, as they are typed; `make export` without formatting."""
    page = (ROOT / "docs" / "production.md").read_text("utf-8")
    chapter = page.partition("## From an edit to production")[2].partition("\n## ")[0]
    chapter = chapter.replace(".venv/bin", str(SCRIPTS)).replace(
        "make export", f"{SCRIPTS}/python {ROOT}/.ci/export.py"
    )
    listed = [line.partition("#")[0] for line in chapter.splitlines() if line.startswith("    ")]
    return [shlex.split(line) for line in listed]


class Shop:
    """Sends a payment now and then, and keeps every answer."""

    def __init__(self, port: int):
        self.port = port
        self.answers: list[dict[str, Any]] = []
        self.failed: list[object] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        with closing(Client(self.port)) as client:
            for k in count():
                if self._closed.wait(0.2):
                    return
                try:
                    answer = client.ask("POST", "/v1/decide", payment(f"shop-{k}", customer_id=k % 20))
                except LOST as error:
                    self.failed.append(error)
                    return
                (self.answers if answer.status == 200 else self.failed).append(answer.json)

    @property
    def models(self) -> list[str]:
        return [answer["model"]["version"] for answer in self.answers]

    def __enter__(self) -> "Shop":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._thread.join()


@contextmanager
def mlpkg_serve(command: list[str], checkout: Path, env: dict[str, str], log: Path) -> Iterator[int]:
    """`mlpkg serve fraud` until it is told to stop; the port it is ready on."""
    port = free_port()
    with log.open("wb") as out:
        server = subprocess.Popen([*command, "--port", str(port)], cwd=checkout, env=env, stdout=out, stderr=out)
    try:
        until = time.monotonic() + 90
        while "is served on" not in log.read_text():
            assert server.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        yield port
        family = psutil.Process(server.pid).children(recursive=True)
        server.terminate()
        server.wait(30)
        assert psutil.wait_procs(family, timeout=5)[1] == [], "nothing of it goes on"
    finally:
        if server.poll() is None:
            for process in psutil.Process(server.pid).children(recursive=True):
                process.kill()
            server.kill()
            server.wait()


def test_an_edited_feature_goes_to_production_in_four_commands(made: Packaged, tmp_path: Path):
    """The old service never stops, uses the new model as soon as the new service takes over, and all of it verifies."""
    state = made.state(tmp_path / "state")
    checkout = copy_of_the_checkout(tmp_path / "checkout")
    env = environment(state, PYTHONPATH=str(checkout))
    export, train, package, serve = commands()
    assert [Path(command[0]).name for command in commands()][1:] == ["mlpkg", "mlpkg", "mlpkg"]
    today = now() // DAY * DAY
    days_ago = {"train_from": 30, "train_to": 22, "test_from": 15, "test_to": 8}
    period = [word for name, ago in days_ago.items() for word in ("-p", name, iso(today - ago * DAY)[:10])]

    with (
        serving(made.bento, state, tmp_path / "old.log") as old,
        Shop(old.port) as shop,
        closing(Client(old.port)) as ask,
    ):
        edit(checkout)
        run(*export, env=env, cwd=checkout)
        trained = json.loads(
            run(*train, *period, "-p", "quick", "true", "-p", "rounds", "20", "--json", env=env, cwd=checkout)
        )
        run(*package, env=env, cwd=checkout)
        packaged_by_then = len(shop.answers)
        with mlpkg_serve(serve, checkout, env, tmp_path / "new.log") as port, closing(Client(port)) as ask_new:
            until = time.monotonic() + 20  # the old service follows within a second, on a machine that is not busy
            while (live := [client.ask("GET", "/v1/ready").json["model"] for client in (ask, ask_new)]) != [
                trained["version"]
            ] * 2:
                assert time.monotonic() < until, live
                time.sleep(0.05)
            took_over = len(shop.answers)
            paid = [payment(f"mine-{k}", customer_id=10_000_019, time=iso(now() - (2 - k) * DAY)) for k in range(3)]
            decided = [(ask, ask_new)[k % 2].ask("POST", "/v1/decide", body).json for k, body in enumerate(paid)]
            assert ask.ask("GET", "/v1/decisions/mine-1").json == decided[1], "whoever decided it"
            until = time.monotonic() + 30
            while len(shop.answers) < took_over + 5 and time.monotonic() < until:
                time.sleep(0.05)

    assert shop.failed == [], old.output
    before, after = shop.models[:packaged_by_then], shop.models[took_over + 1 :]
    assert len(before) > 20 and set(before) == {made.version}, "the old one went on until the new one took over"
    assert len(after) >= 4 and set(after) == {trained["version"]}, "and then used the new one"
    assert shop.models == sorted(shop.models, key=[made.version, trained["version"]].index)
    assert all((NEW in answer["features"]) == (answer["model"]["version"] != made.version) for answer in shop.answers)
    windows = [[decision["features"][f"customer_n_tx_{days}d"] for days in (1, 3, 7)] for decision in decided]
    assert windows == [[1, 1, 1], [1, 2, 2], [1, 3, 3]]

    result = mlpkg("verify", "fraud", state=state)
    assert result["mismatches"] == 0 and result["decisions"] == len(shop.answers) + len(decided)
    assert result["models"].keys() == {made.version, trained["version"]} and min(result["models"].values()) >= 5
    with closing(ml.open_store(Settings(state=state))) as store:
        assert [p["version"] for p in store.promotions("fraud")] == [made.version, trained["version"]]

    (bento,) = (state / "bentoml" / "bentos" / "fraud").glob("*/")
    assert Bento(bento).model == trained["version"]
    brought = Path(shutil.move(bento, tmp_path / "elsewhere"))
    assert places_named_in(brought, tmp_path) == set(), "nor does what training left name a place of this machine"


def test_the_copy_is_what_is_imported_in_it(tmp_path: Path):
    """Otherwise the test above would prove nothing: it would import the checkout of the tests."""
    package = tmp_path / "mlpkg"
    shutil.copytree(ROOT / "mlpkg", package, ignore=LEFT_OUT)
    env = environment(tmp_path / "state", PYTHONPATH=str(tmp_path))
    code = "import mlpkg, mlpkg.examples.fraud.features as f; print(mlpkg.__file__); print(f.__file__)"
    paths = run(sys.executable, "-c", code, env=env, cwd=tmp_path).split()
    assert paths == [str(package / "__init__.py"), str(package / "examples" / "fraud" / "features.py")]
