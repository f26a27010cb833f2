"""Workers on one store, for tests that kill them, let them stand still, and have them back at once."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from paths import SUPPORT
from serving import LOST, Client, environment

from mlpkg.settings import Settings


class Workers:
    """Workers that decide for a use case `module:name`, each on a port of its own; `log` gets what they say."""

    def __init__(self, settings: Settings, case: str, log: Path, ports: list[int]):
        self.ports = ports
        command = [sys.executable, SUPPORT / "forked_workers.py", settings.model_dump_json(), case]
        with log.open("ab") as err:
            pipe = subprocess.PIPE
            env = environment(settings.state, PYTHONPATH=os.environ.get("PYTHONPATH", ""))
            self._parent = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=err, text=True, bufsize=1, env=env)
        self._pids = {port: self._start(port) for port in ports}

    def _start(self, port: int) -> int:
        assert self._parent.stdin and self._parent.stdout
        self._parent.stdin.write(f"{port}\n")
        return int(self._parent.stdout.readline())

    def kill(self, *ports: int) -> None:
        for port in ports:
            os.kill(self._pids[port], signal.SIGKILL)
        for port in ports:
            self._pids[port] = self._start(port)

    def pause(self, port: int) -> None:
        """Let one stand still; its connections stay open."""
        os.kill(self._pids[port], signal.SIGSTOP)

    def resume(self, port: int) -> None:
        os.kill(self._pids[port], signal.SIGCONT)

    def wait(self) -> None:
        """Until all of them answer."""
        give_up = time.monotonic() + 60
        for port in self.ports:
            while time.monotonic() < give_up:
                try:
                    with closing(Client(port)) as client:
                        if client.ask("GET", "/v1/ready").status == 200:
                            break
                except LOST:
                    time.sleep(0.01)

    def stop(self) -> None:
        self._parent.kill()  # and with it its forks
        self._parent.wait()
        time.sleep(0.1)
