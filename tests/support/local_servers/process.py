"""One server: a process that survives who started it, and is found again by its folder."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
from background import free_port

READY = 120.0  # seconds that a start may take: a busy machine needs several times the usual three
PATIENCE = 20.0  # seconds that a server has to stop by itself
HOST = "127.0.0.1"


class ServerError(Exception):
    """A server did not start, or does not answer."""


class Remembered:
    """What a folder remembers: another process that names the folder has the same ports, passwords and process ids."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @property
    def port(self) -> int:
        return self.remembered("port", free_port)

    @property
    def password(self) -> str:
        return self.remembered("password", lambda: secrets.token_hex(16))

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def state(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.folder / "state.json").read_text("utf-8"))
        return {}

    def remember(self, **values: object) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_private(self.folder / "state.json", json.dumps(self.state() | values))

    def remembered(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a value, made when it is needed first."""
        if name not in self.state():
            self.remember(**{name: make()})
        return self.state()[name]


class Server(Remembered):
    """A server whose data, log and state lie in `folder`."""

    name = "a server"
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._child: subprocess.Popen[Any] | None = None

    # ---- what a kind of server says of itself

    def find_parts(self) -> None:
        """Raise `Missing` if a program is not there."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Write what the first start needs."""
        raise NotImplementedError

    def command(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def answers(self) -> bool:
        """Ask the server something that it answers only when it is ready."""
        raise NotImplementedError

    def settings(self) -> dict[str, str]:
        """The lines of settings.ini that lead to this server."""
        raise NotImplementedError

    @property
    def user(self) -> str | None:
        """Whose process it is, if not ours; the group has the same name."""
        return None

    def owner(self) -> dict[str, Any]:
        """What `subprocess` is to be called with, so that the process belongs to `user`."""
        return {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}

    # ---- the process

    def _process(self) -> psutil.Process | None:
        """The process, if it runs: its id alone proves nothing, another process may have it by now."""
        state = self.state()
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            if "pid" in state and started(state["pid"]) == state["started"]:
                process = psutil.Process(state["pid"])
                return process if _lives(process) else None
        return None

    @property
    def pid(self) -> int | None:
        process = self._process()
        return process.pid if process else None

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def is_running(self) -> bool:
        return self._process() is not None

    def start(self) -> Self:
        """Start it if it does not run, and wait until it answers."""
        self.launch()
        self.wait_until_ready()
        return self

    def launch(self) -> None:
        """Start it if it does not run."""
        if self.is_running:
            return
        self.find_parts()
        if not self.state().get("prepared"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.prepare()
            self.remember(prepared=True)
        with self.log.open("ab") as log:
            child: subprocess.Popen[Any] = subprocess.Popen(
                [str(part) for part in self.command()],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self.owner(),
            )
        self._child = child
        self.remember(pid=child.pid, started=started(child.pid))

    def wait_until_ready(self, seconds: float = READY) -> None:
        """Wait until it answers; raise `ServerError` with the end of its log if it ends, or does not answer in time."""
        until = time.monotonic() + seconds
        while not self.answers():
            if not self.is_running or time.monotonic() > until:
                what = "does not answer" if self.is_running else "ended"
                raise ServerError(f"{self.name} {what}; its log {self.log} ends with:\n{self.end_of_log()}")
            time.sleep(0.05)

    def end_of_log(self, lines: int = 15) -> str:
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        if process := self._process():
            self._signal(signal.SIGCONT)
            process.send_signal(self.stop_signal)
            if not self._has_ended([process], PATIENCE):
                self.kill()

    def kill(self) -> None:
        """End it and its children at once; what they wrote to files before stays."""
        self._has_ended(self._signal(signal.SIGKILL), PATIENCE)

    def remove(self) -> None:
        """Kill it and remove its folder."""
        self.kill()
        if (home := self.folder / "home").is_symlink():
            shutil.rmtree(home.resolve(), ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def restart(self) -> Self:
        """Start it, after stopping it if it runs."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """Let it stand still; its connections stay open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> list[psutil.Process]:
        """Send a signal to the process and its children, and return them."""
        process = self._process()
        family = [process, *process.children(recursive=True)] if process else []
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)
        return family

    def _has_ended(self, processes: list[psutil.Process], seconds: float) -> bool:
        """Wait until all have ended; who their new parent is, and when it asks for them, does not matter."""
        until = time.monotonic() + seconds
        while any(map(_lives, processes)):
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        if self._child:
            self._child.poll()
        return True


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def started(pid: int) -> str:
    """When a process started, on a clock that nobody sets; with its id it says which process that is."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else str(psutil.Process(pid).create_time())


def write_private(path: Path, text: str) -> None:
    """Write a file that nobody else reads: in one step, so that who reads it meanwhile has the old text or the new."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.touch(0o600)
    beside.write_text(text, "utf-8")
    beside.replace(path)
