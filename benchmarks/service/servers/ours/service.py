"""The handbook's decision inside BentoML, as services/fraud/service.py has its own.

WORKERS is the number of processes. With LAYERS, requests pass the layers of BentoML.
"""

import os
import sys
from pathlib import Path
from typing import Any

import bentoml

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[2])]

from watched import Watched, application  # noqa: E402

from mlpkg.serve.bento.worker import handle_all_requests, settings, start  # noqa: E402

app = application(settings(HERE))


@bentoml.service(
    name="ours",
    workers=int(os.environ.get("WORKERS", "1")),
    http={"host": "127.0.0.1"},  # type: ignore[arg-type]
    traffic={"timeout": 1},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    tracing={"excluded_urls": ".*"},
)
@bentoml.asgi_app(app)
class Ours:
    """POST /v1/decide."""

    def __init__(self) -> None:
        start(app, HERE / "model")

    async def __is_ready__(self) -> bool:
        return app.is_ready()

    @bentoml.on_shutdown
    def close(self) -> None:
        app.close()


class Innermost:
    """ASGI middleware that gives every request to the application, below the layers of BentoML."""

    def __init__(self, inner: Any, app: Any):
        self.inner, self.app = inner, app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        await (self.inner if scope["type"] == "lifespan" else self.app)(scope, receive, send)


if os.environ.get("LAYERS"):
    Ours.add_asgi_middleware(Innermost, app=Watched(app))
else:
    handle_all_requests(Ours, Watched(app))
