"""A free port, and services that run beside a test until it ends."""

import contextlib
import os
import random
import socket
import subprocess
import time
from urllib.request import urlopen


def free_port() -> int:
    """A free port below the range that the system gives to clients, so that no client takes it."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Background:
    """Services that listen on `MLPKG_PORT`; each is waited for when it starts, and all are stopped together."""

    def __init__(self) -> None:
        self.services: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str) -> None:
        """Start a service and wait until it is ready."""
        service = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.services.append(service)
        until = time.monotonic() + 180
        while time.monotonic() < until and service.poll() is None:
            with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{os.environ['MLPKG_PORT']}/v1/ready"):
                return
            time.sleep(0.1)
        self.stop()
        raise AssertionError(f"{command} did not become ready")

    def stop(self) -> None:
        """Stop all of them."""
        for service in self.services:
            service.terminate()
            service.wait(60)
