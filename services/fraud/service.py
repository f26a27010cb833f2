"""Card fraud over HTTP. `mlpkg package fraud` makes a bento of this folder, `mlpkg serve fraud` runs it."""

from pathlib import Path

import bentoml

from mlpkg.serve.app import Application
from mlpkg.serve.bento.worker import handle_all_requests, settings, start

HERE = Path(__file__).parent
app = Application("fraud", settings(HERE))


@bentoml.service(
    name="fraud",
    workers=1,  # one writer: a decision is one short transaction
    http={"host": "127.0.0.1"},  # type: ignore[arg-type]
    # layers of BentoML, which a request passes only if uvicorn does not use httptools
    traffic={"timeout": 1},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    tracing={"excluded_urls": ".*"},
)
@bentoml.asgi_app(app)
class Fraud:
    """POST /v1/decide takes a card payment and answers approve, review or decline; GET /openapi.json lists the rest."""

    def __init__(self) -> None:
        start(app, HERE / "model")

    async def __is_ready__(self) -> bool:
        return app.is_ready()

    @bentoml.on_shutdown
    def close(self) -> None:
        app.close()


handle_all_requests(Fraud, app)
