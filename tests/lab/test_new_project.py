"""`mlpkg new` as a newcomer uses it: the wheel in an environment of its own, a project, its tests, its demo, a live decision."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from background import free_port
from package_index import fresh_environment, index
from paths import ROOT
from serving import Client

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


@dataclass(frozen=True)
class Newcomer:
    """A folder, and an environment in which nothing but the wheel of mlpkg was installed."""

    folder: Path
    python: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("MLPKG_", "BENTOML_", "PYTHON"))
        }
        return kept | {"HOME": str(self.folder), "PATH": f"{self.python.parent}:{os.environ['PATH']}"}

    def run(self, *command: str, cwd: str = ".") -> str:
        """Run a command that has to succeed; what it printed."""
        done = subprocess.run(
            command,
            cwd=self.folder / cwd,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    folder = tmp_path_factory.mktemp("newcomer")
    build = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", str(folder / "wheel"), str(ROOT)]
    subprocess.run(build, check=True, env=os.environ | index(), stdin=subprocess.DEVNULL)
    (wheel,) = (folder / "wheel").glob("mlpkg-*.whl")
    python = fresh_environment(
        folder,
        "--constraint",
        ROOT / "constraints.txt",
        f"mlpkg[lab,serve] @ {wheel.as_uri()}",
        cwd=folder,
        env=os.environ,
    )
    return Newcomer(folder, python)


@pytest.fixture(scope="module")
def shop(newcomer: Newcomer) -> Newcomer:
    """The project that a newcomer has after the first command."""
    newcomer.run("mlpkg", "new", "shop")
    return newcomer


def test_its_package_is_what_its_notebooks_export(shop: Newcomer):
    before = {path: path.read_bytes() for path in (shop.folder / "shop").rglob("*.*") if path.is_file()}
    shop.run("make", "export", cwd="shop")
    assert {path: path.read_bytes() for path in before} == before


def test_its_own_tests_are_green(shop: Newcomer):
    assert " passed" in shop.run("make", "test", cwd="shop")


def test_its_demo_decides_and_proves(shop: Newcomer):
    output = shop.run("make", "demo", cwd="shop")
    assert "0 mismatches" in output


@pytest.fixture
def service(shop: Newcomer) -> Iterator[Client]:
    """`mlpkg serve shop` on the state of the demo."""
    port, env = free_port(), shop.environment | {"MLPKG_STATE": "build/demo"}
    command = ["mlpkg", "serve", "shop", "--port", str(port)]
    with (shop.folder / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=shop.folder / "shop", env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        yield _client(server, port, shop.folder / "serve.log")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def _client(server: subprocess.Popen[bytes], port: int, log: Path) -> Client:
    """A client of a service that is ready."""
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        try:
            client = Client(port)
            if client.ask("GET", "/v1/ready").status == 200:
                return client
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_its_service_decides_the_example_and_shows_it(shop: Newcomer, service: Client):
    example = json.loads((shop.folder / "shop/services/shop/event.json").read_text())
    example["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    answer = service.ask("POST", "/v1/decide", example)
    assert answer.status == 200 and answer.json["action"] in ("accept", "review"), answer.body
    page = service.ask("GET", "/").body.decode()
    assert "shop" in page and example["id"] in page
