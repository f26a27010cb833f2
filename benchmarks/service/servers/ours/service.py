"""The handbook's decision inside BentoML, as services/fraud/service.py has its own; WORKERS says how many processes."""

import os
import sys
from pathlib import Path

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


handle_all_requests(Ours, Watched(app))
