"""The service as it runs in production: a bento, BentoML in processes of its own, and clients that speak HTTP to it."""

import compileall
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest
from background import free_port
from bank import put_live
from paths import ROOT

import mlpkg as ml
from mlpkg.cli.main import mlpkg as verbs
from mlpkg.examples.fraud.demo import payments
from mlpkg.examples.fraud.policy import fraud
from mlpkg.lab.ingest import ingest_file
from mlpkg.serve.bento.package import Bento
from mlpkg.serve.bento.run import start_server, stop_server, wait_until_up
from mlpkg.settings import Settings
from mlpkg.times import iso, now

SCRIPTS = Path(sysconfig.get_path("scripts"))
LOST = (OSError, HTTPException, json.JSONDecodeError)  # what a client sees when the server is gone
CUSTOMERS, TERMINALS = 120, 150


def environment(state: Path, **more: str) -> dict[str, str]:
    """What a process that a test starts has in its environment: no settings but where its state lies."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLPKG_", "BENTOML_"))}
    clean.pop("PYTHONPATH", None)
    store = {"MLPKG_STATE": str(state), "BENTOML_HOME": str(state / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    return clean | store | more


def run(*command: object, env: dict[str, str], cwd: Path = ROOT) -> str:
    """Run a command that has to succeed; its output."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def mlpkg(*arguments: object, state: Path) -> Any:
    """What the command says as JSON; in this process, as one of its own would take seconds to load what is loaded here."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        for name in [name for name in os.environ if name.startswith("MLPKG_")]:
            patch.delenv(name)
        patch.setenv("MLPKG_STATE", str(state))
        patch.chdir(ROOT)
        patch.setattr(sys, "path", [*sys.path])  # to which the command adds the folder of the settings
        try:
            verbs([*map(str, arguments), "--json"], standalone_mode=False)
        except SystemExit as end:
            assert not end.code, output.getvalue()
    return json.loads(output.getvalue())


@dataclass(frozen=True)
class Packaged:
    """A bento of the checkout, and a store with two months of payments up to now, where its model was never live."""

    built: Bento  # as `mlpkg package` makes it
    bento: Bento  # with its wheel unpacked and compiled, so that each start of a service is a second shorter
    history: Path

    @property
    def version(self) -> str:
        assert self.bento.model
        return self.bento.model

    def state(self, folder: Path) -> Path:
        """A copy of the store."""
        return Path(shutil.copytree(self.history, folder))


def make_package(folder: Path) -> None:
    """Make a bento of a model of noise by `mlpkg package`, and a store with the history of payments."""
    made, history, built = folder / "made", folder / "history", folder / "built"
    store = ml.open_store(Settings(state=made))
    put_live(fraud, store)
    store.close()
    run(SCRIPTS / "mlpkg", "package", "fraud", "-o", built, env=environment(made))
    unpack_wheel(Bento(built).copy_to(folder / "bento"))

    past, _ = payments(CUSTOMERS, TERMINALS, days=60, seed=5, live=0)
    past.to_parquet(folder / "payments.parquet", index=False)
    store = ml.open_store(Settings(state=history))
    ingest_file(fraud, folder / "payments.parquet", store)
    store.close()
    # that the model can be loaded was found when it was put live; no service has to find it again
    shutil.copytree(made / "isolated_loads", history / "isolated_loads")


def unpack_wheel(bento: Bento) -> None:
    """Put a folder with compiled modules in the place of the wheel of a bento."""
    assert bento.wheel
    wheel = bento.wheel.read_bytes()
    bento.wheel.unlink()
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        archive.extractall(bento.folder / "env" / "python" / "wheels" / "mlpkg-unpacked.whl")
    assert bento.wheel
    compileall.compile_dir(bento.wheel, quiet=1)


def package_in(folder: Path) -> Packaged:
    """What `make_package` made in a folder."""
    return Packaged(Bento(folder / "built"), Bento(folder / "bento"), folder / "history")


def payment(id: str, **fields: Any) -> dict[str, Any]:
    """A payment that is made just now."""
    return {"id": id, "time": iso(now()), "customer_id": 17, "terminal_id": 23, "amount": 57.16} | fields


@dataclass(frozen=True)
class HttpAnswer:
    """An answer of the service."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection that is kept open, as the cash desk of a bank would have."""

    def __init__(self, port: int):
        self.connection = HTTPConnection("127.0.0.1", port, timeout=20)

    def ask(self, method: str, path: str, body: Any = None, lines: bool = False) -> HttpAnswer:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = {"content-type": "application/x-ndjson" if lines else "application/json"} if data is not None else {}
        self.connection.request(method, path, data, kind)
        answer = self.connection.getresponse()
        return HttpAnswer(answer.status, answer.read())

    def close(self) -> None:
        self.connection.close()


class Server:
    """BentoML on a bento, with a state and a log file."""

    def __init__(
        self, bento: Bento, state: Path, log: Path, port: int | None = None, host: str = "127.0.0.1", **more: str
    ):
        self.bento, self.state, self.log, self.port, self.host = bento, state, log, port or free_port(), host
        self.more = more
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def start(self) -> dict[str, object]:
        """Start it and wait until it answers; its readiness."""
        with self.log.open("ab") as log, pytest.MonkeyPatch.context() as patch:
            for name in set(os.environ) - environment(self.state).keys():
                patch.delenv(name)
            for name, value in self.more.items():
                patch.setenv(name, value)
            self.process = start_server(self.bento, Settings(state=self.state, port=self.port, host=self.host), log)
        try:
            return wait_until_up(self.process, self.address)
        except BaseException:
            self.kill()
            raise AssertionError(self.output) from None

    def family(self) -> list[psutil.Process]:
        """The supervisor and its workers."""
        assert self.process is not None
        try:
            supervisor = psutil.Process(self.process.pid)
            return [supervisor, *supervisor.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """Kill all of its processes, and wait until nothing of them is there, so that the port is free."""
        if self.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(self.process.pid).suspend()  # it replaces no worker from here on
        family = self.family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        until = time.monotonic() + 20
        while any(map(_runs, family)):
            assert time.monotonic() < until, "nothing of it goes on"
            time.sleep(0.01)
        self.process = None

    def stop(self) -> None:
        """End it in order."""
        if self.process is not None:
            family = self.family()
            stop_server(self.process)
            for process in psutil.wait_procs(family, timeout=5)[1]:
                process.kill()
            self.process = None


def _runs(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits for somebody to ask how it ended does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def serving(bento: Bento, state: Path, log: Path, host: str = "127.0.0.1", **more: str) -> Iterator[Server]:
    """A server for as long as the block runs; killed afterwards, as its orderly end takes two seconds."""
    server = Server(bento, state, log, None, host, **more)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def places_named_in(bento: Path, *built: Path) -> set[str]:
    """The folders of this machine that the files of a bento name, files inside its wheels included."""
    places = [f"{place}/" for place in (ROOT, SCRIPTS.parent, Path.home(), *built) if len(place.parts) > 1]
    places.append(f"{tempfile.gettempdir()}/tmp")  # where it was put together
    files = [p for p in bento.rglob("*") if p.is_file() and "__pycache__" not in p.parts]  # those come where it runs
    texts = [path.read_bytes() for path in files if path.suffix != ".whl"]
    for wheel in bento.rglob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            texts += [archive.read(name) for name in archive.namelist()]
    return {place for place in places if any(place.encode() in text for text in texts)}
