"""The application of the service for a benchmark, with one more path that reports what its worker does.

`python watched.py PORT` runs it under bare uvicorn, with the settings of the environment.
"""

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handbook import handbook, payment

from mlpkg import decisions, models
from mlpkg.schema import Source
from mlpkg.serve.app import Application
from mlpkg.settings import Settings

pieces: dict[str, list[int]] = {}  # nanoseconds, if TIMED is set


def fsync_of(app: Application) -> Any:
    """Return the fsync that the threads of the application share; None if a commit needs none, or the store is on servers."""
    durability = getattr(getattr(app.store, "session", None), "durability", None)
    return durability and durability.fsync


def application(settings: Settings) -> Application:
    """The application.

    Environment variables change it. An fsync takes SLOWER seconds longer. With TIMED the pieces of a decision are timed. With
    SINGLY requests are decided singly instead of in groups.
    """
    app = Application(handbook(), settings)
    if os.environ.get("SINGLY"):
        app.batcher.take = app.batcher.read  # type: ignore[method-assign]
    start = app.start

    def started() -> None:
        start()
        disk = fsync_of(app)
        if disk is not None and (slower := float(os.environ.get("SLOWER", "0"))):
            flush = disk.flush
            disk.flush = lambda descriptor: (time.sleep(slower), flush(descriptor))
        if os.environ.get("TIMED"):
            _time_pieces(app)

    app.start = started  # type: ignore[method-assign]
    return app


def _timed(name: str, inside: Callable[..., Any]) -> Callable[..., Any]:
    taken = pieces.setdefault(name, [])

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter_ns()
        try:
            return inside(*args, **kwargs)
        finally:
            taken.append(time.perf_counter_ns() - began)

    return timed


def _time_pieces(app: Application) -> None:
    row = app.use_case.on.parse(payment("-", random.Random(0)))
    unit: Any = type(app.store.decision(app.use_case.name, app.use_case.on, row, 0))
    for what, name, label in (
        (Source, "parse", "parse"),
        (unit, "__enter__", "transaction"),
        (decisions, "evaluate", "features"),
        (models.LightGBM, "score", "score"),
        (unit, "record", "record"),
        (unit, "__exit__", "write"),
        (Application, "decide", "decision"),
    ):
        setattr(what, name, _timed(label, getattr(what, name)))


class Watched:
    """ASGI middleware: GET /watch reports the process, its fsyncs, its memory, and the time of each piece of a decision."""

    def __init__(self, app: Application):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope.get("path") != "/watch":
            if not pieces:
                return await self.app(scope, receive, send)
            return await self._timed(scope, receive, send)
        disk = fsync_of(self.app)
        status = {
            "pid": os.getpid(),
            "syncs": disk.syncs if disk else 0,
            "memory": _memory(),
            "pieces": {name: statistics.median(taken) / 1000 for name, taken in pieces.items() if taken},
        }
        for taken in pieces.values():
            taken.clear()
        body = json.dumps(status).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _timed(self, scope: Any, receive: Any, send: Any) -> None:
        began = time.perf_counter_ns()
        answered: list[int] = []

        async def sent(message: Any) -> None:
            answered.append(time.perf_counter_ns())
            await send(message)
            answered.append(time.perf_counter_ns())

        await self.app(scope, receive, sent)
        if len(answered) == 4:  # the head of the answer, and its body
            pieces.setdefault("application", []).append(answered[2] - began)
            pieces.setdefault("afterwards", []).append(time.perf_counter_ns() - answered[3])


def _memory() -> dict[str, float]:
    """Return the resident memory of this process by kind, in megabytes; empty if the system does not say."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return {
            name: int(value.split()[0]) / 1024
            for name, _, value in (line.partition(":") for line in lines)
            if name in ("VmRSS", "RssAnon", "RssFile", "RssShmem")
        }
    return {}


if __name__ == "__main__":
    import uvicorn

    app = Watched(application(Settings.load()))
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="warning", access_log=False)
