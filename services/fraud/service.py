"""Card fraud over HTTP: an example of a service of one's own, which `mlpkg package fraud` takes instead of the one it makes."""

from pathlib import Path

import bentoml

from mlpkg.serve.app import Application
from mlpkg.serve.bento.worker import OPTIONS, handle_all_requests, settings, start

HERE = Path(__file__).parent
app = Application("fraud", settings(HERE))


@bentoml.service(name="fraud", **OPTIONS)
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
