"""Workers that are there at once, forks of a process that has imported everything: `python forked_workers.py STATE DURABILITY`.

Each line on standard input is a port, on which a new worker then serves; its process id is the answer.
"""

import ctypes
import gc
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.modules |= dict.fromkeys(["sklearn", "pandas"])  # LightGBM would load these if it could, which takes seconds

import uvicorn  # noqa: E402

import mlpkg.decisions  # noqa: E402, F401
from mlpkg.examples.fraud.policy import fraud  # noqa: E402
from mlpkg.serve.app import Application  # noqa: E402
from mlpkg.settings import Settings  # noqa: E402


def bound(port: int) -> socket.socket:
    """A socket on the port, which the kernel may just be taking from one that was killed."""
    for _ in range(500):
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(("127.0.0.1", port))
            return made
        except OSError:
            made.close()
            time.sleep(0.01)
    raise SystemExit(f"port {port} is not free")


def configured(app: Any) -> uvicorn.Config:
    return uvicorn.Config(app, loop="uvloop", http="httptools", lifespan="on", log_level="warning", access_log=False)


def work(settings: Settings, port: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    app: Any = Application(fraud, settings)
    uvicorn.Server(configured(app)).run(sockets=[bound(port)])


if __name__ == "__main__":
    state, durability = sys.argv[1:]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    configured(Application(fraud)).load()  # imports what a server needs
    import uvloop  # noqa: F401

    gc.collect()
    gc.freeze()  # so that a fork does not collect all of it again
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            os.close(0)
            work(Settings(state=Path(state), durability=durability, trust_loopback=True), int(line))  # type: ignore[arg-type]
            os._exit(0)
        os.write(1, b"%d\n" % child)
