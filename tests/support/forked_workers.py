"""Workers that are there at once, forks of a process that has imported everything: `python forked_workers.py SETTINGS CASE`.

SETTINGS are those of the store as JSON, CASE is a use case as `module:name`. Each line on standard input is a port, on which a new
worker then serves; its process id is the answer.
"""

import ctypes
import gc
import os
import signal
import socket
import sys
import time
from importlib import import_module
from typing import Any

sys.modules |= dict.fromkeys(["sklearn", "pandas"])  # LightGBM would load these if it could, which takes seconds

import uvicorn  # noqa: E402

import mlpkg.decisions  # noqa: E402
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


def work(case: Any, settings: Settings, port: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    app: Any = Application(case, settings)
    uvicorn.Server(configured(app)).run(sockets=[bound(port)])


if __name__ == "__main__":
    settings, (module, _, name) = Settings.model_validate_json(sys.argv[1]), sys.argv[2].partition(":")
    case = getattr(import_module(module), name)
    if settings.store == "cluster":
        import mlpkg.store.cluster.store  # noqa: F401
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    configured(Application(case)).load()  # imports what a server needs
    import uvloop  # noqa: F401

    gc.collect()
    gc.freeze()  # so that a fork does not collect all of it again
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            os.close(0)
            work(case, settings, int(line))
            os._exit(0)
        os.write(1, b"%d\n" % child)
