"""`mlpkg lab`: JupyterLab on a project anywhere, on this machine alone, with a token, and with the kernel of the project."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from jupyter_client import BlockingKernelClient
from serving import SCRIPTS, environment, free_port

SETTINGS = "[DEFAULT]\nstate = kept\nuse_cases =\n    shop = shop:shop\n"


class Lab:
    """A JupyterLab that `mlpkg lab` started in a project."""

    def __init__(self, folder: Path, port: int):
        self.folder, self.address, self.log = folder, f"http://127.0.0.1:{port}", folder / "log"
        env = environment(folder)
        del env["MLPKG_STATE"]
        env |= {f"JUPYTER_{place}_DIR": str(folder / "jupyter") for place in ("CONFIG", "DATA", "RUNTIME")}
        command = [SCRIPTS / "mlpkg", "lab", "--port", str(port), "--no-browser"]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, cwd=folder / "nbs", env=env, stdout=out, stderr=out)

    def wait_until_up(self) -> str:
        """The token in the address that JupyterLab prints."""
        until = time.monotonic() + 120
        while f"{self.address}/lab?token=" not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)
        return self.log.read_text().partition("?token=")[2].split()[0]

    def stop(self) -> None:
        """End it and its kernels."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            for process in psutil.wait_procs(family, timeout=5)[1]:
                process.kill()
            self.process.kill()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("project").resolve()
    (folder / "nbs").mkdir()
    (folder / "settings.ini").write_text(SETTINGS)
    (folder / "shop.py").write_text("shop = 'the module of the project'\n")
    (folder / "nbs" / "json.py").write_text("raise ImportError('in the place of a module of Python')\n")
    lab = Lab(folder, free_port())
    try:
        yield lab
    finally:
        lab.stop()


def test_without_the_token_nothing_is_readable(lab: Lab):
    token = lab.wait_until_up()
    for headers, status in (
        ({}, 403),
        ({"Authorization": "token wrong"}, 403),
        ({"Authorization": f"token {token}"}, 200),
    ):
        assert httpx.get(f"{lab.address}/api/contents/nbs", headers=headers).status_code == status
    page = httpx.get(f"{lab.address}/lab?token={token}").text
    assert '"preferredPath": "nbs"' in page, "it opens the notebooks"
    assert "/login" in httpx.get(f"{lab.address}/lab").headers["location"]
    listening = {
        c.laddr.ip for c in psutil.Process(lab.process.pid).net_connections() if c.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def wait_for(client: BlockingKernelClient) -> None:
    """Wait for a kernel; a client takes one whose heart does not beat yet for a dead one."""
    until = time.monotonic() + 60
    while True:
        try:
            return client.wait_for_ready(10)
        except RuntimeError:
            assert time.monotonic() < until


def test_a_kernel_has_the_state_and_the_modules_of_the_project(lab: Lab):
    headers = {"Authorization": f"token {lab.wait_until_up()}"}
    body = {"name": "python3", "path": "nbs/look.ipynb"}
    kernel = httpx.post(f"{lab.address}/api/kernels", headers=headers, json=body, timeout=60).raise_for_status().json()
    client = BlockingKernelClient(connection_file=str(lab.folder / "jupyter" / f"kernel-{kernel['id']}.json"))
    client.load_connection_file()
    client.start_channels()
    try:
        wait_for(client)
        code = "import os, json, shop\nprint(json.dumps([shop.shop, os.environ['MLPKG_STATE'], os.environ['BENTOML_HOME']]))"
        printed: list[str] = []
        client.execute_interactive(code, timeout=60, output_hook=lambda m: printed.append(m["content"].get("text", "")))
    finally:
        client.stop_channels()
    kept = str(lab.folder / "kept")
    assert json.loads("".join(printed)) == ["the module of the project", kept, f"{kept}/bentoml"]


def test_a_port_that_is_taken_is_an_error(lab: Lab):
    lab.wait_until_up()
    second = Lab(lab.folder, int(lab.address.rpartition(":")[2]))
    assert second.process.wait(120) != 0
