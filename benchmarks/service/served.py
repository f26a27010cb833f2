"""What the benchmarks of the service share: servers in other processes, those of mlpkg and of peers, and the requests to them."""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil

HERE = Path(__file__).resolve().parent
SERVERS = HERE / "servers"
sys.path.insert(0, str(HERE.parent))

from bench import ROOT, BenchmarkRow, Missing, arguments, environment, report, row, run_all  # noqa: E402
from handbook import handbook, make_model, make_store, payment  # noqa: E402, F401
from load import LoadResult, ask  # noqa: E402

from mlpkg.serve.bento.package import Bento  # noqa: E402
from mlpkg.serve.bento.run import start_server, stop_server  # noqa: E402
from mlpkg.settings import Settings  # noqa: E402

__all__ = ["ROOT", "BenchmarkRow", "LoadResult", "Missing", "ask", "row", "run_all"]

_PATIENCE = 90.0  # seconds for a server to answer


def main(doc: str, measure: Callable[[argparse.Namespace], Iterator[BenchmarkRow]]) -> None:
    """Run a benchmark as a script."""
    options = arguments(doc).parse_args()
    build = ROOT / "build"  # on a real disk, as a temporary folder need not be
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=build) as folder:
        options.folder = Path(folder)
        measured = list(measure(options))
    report(measured, options.output)


def free_port() -> int:
    """A port on which nothing listens, from below those that the system gives to clients."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@dataclass
class Server:
    """A running server, its address, and how its answers are read."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    path: str
    log: Path
    score: Callable[[Any], float]  # of an answer
    state: Path | None = None  # of ours

    def ask(self, bodies: Sequence[bytes], connections: Any = 1, rate: float | None = None) -> LoadResult:
        """Send requests; see `load.ask`."""
        return ask(self.port, self.path, bodies, connections, rate)

    def scores(self, result: LoadResult) -> list[float]:
        """Return the scores of the answers."""
        return [self.score(json.loads(answer)) for answer in result.answers]

    def watch(self) -> dict[str, Any]:
        """Return what a watched worker of mlpkg reports about itself."""
        with urlopen(f"http://127.0.0.1:{self.port}/watch", timeout=10) as answer:
            return json.load(answer)

    def wait(self) -> None:
        """Wait until it listens and, if it is a service of mlpkg, can decide.

        Raises
        ------
        Missing
            When it ends, or does not answer in time.
        """
        until = time.monotonic() + _PATIENCE
        while self.process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError):
                if self.state:
                    urlopen(f"http://127.0.0.1:{self.port}/v1/ready", timeout=5).close()
                else:
                    socket.create_connection(("127.0.0.1", self.port), 5).close()
                return
            time.sleep(0.05)
        lines = self.log.read_text("utf-8", "replace").strip().splitlines() or [""]
        raise Missing(f"{self.name} does not answer: {lines[-1].strip()[:200]}")

    def stop(self) -> None:
        """End the server and all processes that it has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
            stop_server(self.process)
            for child in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


class Servers(contextlib.ExitStack):
    """Starts servers of one model; those of mlpkg have a history. They end with the block. Call `wait` on each before use.

    With `settings` all services of mlpkg decide on that store, whose state lies in ``made``, else each on a copy of an embedded one.
    """

    def __init__(self, folder: Path, settings: Settings | None = None):
        super().__init__()
        self.folder, self.made = folder, folder / "made"
        self.model = make_store(settings or self.made)

    def ours(self, within: str = "BentoML", **more: str) -> Server:
        """Start the service on its own store, inside BentoML or under bare uvicorn; `more` goes into its environment."""
        state, port = Path(tempfile.mkdtemp(dir=self.folder)), free_port()
        shutil.copytree(self.made, state, dirs_exist_ok=True)
        name = f"ours, {within}"
        if within == "uvicorn":
            command = [sys.executable, str(SERVERS / "watched.py"), str(port)]
            return self._start(name, command, "/v1/decide", port, _of_a_decision, state, MLPKG_STATE=str(state), **more)
        settings, log = Settings.load(state=state, port=port), state / "log"
        with _environment(more), log.open("wb") as file:
            process = start_server(Bento(SERVERS / "ours"), settings, file)
        return self._tend(Server(name, process, port, "/v1/decide", log, _of_a_decision, state))

    def plain(self, service: str) -> Server:
        """Start a plain BentoML service that only predicts: ``Plain`` or ``Asynchronous``."""
        port = free_port()
        command = [sys.executable, "-m", "bentoml", "serve", f"plain.py:{service}", "--port", str(port)]
        return self._start(f"BentoML, {service}", command, "/predict", port, BENTOML_HOME=str(self.folder / "bentoml"))

    def peer(
        self, name: str, script: str, peers: str, path: str = "/predict", score: Callable[[Any], float] = float
    ) -> Server:
        """Start a server of a peer, in the peer's environment, that only predicts."""
        port = free_port()
        return self._start(name, [environment(peers), script, str(port)], path, port, score)

    def _start(
        self,
        name: str,
        command: Sequence[str],
        path: str,
        port: int,
        score: Callable[[Any], float] = float,
        state: Path | None = None,
        **more: str,
    ) -> Server:
        log = self.folder / f"{name} {port}.log"
        more |= {"MODEL": str(self.model.folder / "model.txt"), "BENTOML_DO_NOT_TRACK": "True"}
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=SERVERS, env=os.environ | more, stdout=file, stderr=file)
        return self._tend(Server(name, process, port, path, log, score, state))

    def _tend(self, server: Server) -> Server:
        self.callback(server.stop)
        return server


def _of_a_decision(answer: Any) -> float:
    return answer["score"]


@contextlib.contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# -- requests --------------------------------------------------------------------------------------------------------

_random = random.Random(3)
_count = itertools.count()


def payments(number: int) -> list[bytes]:
    """Make the bodies of new payments."""
    return [payment(f"b-{next(_count)}", _random) for _ in range(number)]


def rows_of(result: LoadResult) -> list[bytes]:
    """Make the same requests for a server that only predicts."""
    return [json.dumps({"features": features_of(answer)}).encode() for answer in result.answers]


def features_of(answer: bytes) -> list[float]:
    """Return the features of a decision."""
    return list(json.loads(answer)["features"].values())
