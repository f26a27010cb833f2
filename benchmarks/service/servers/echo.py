"""The least that a server does for a request: `python echo.py PORT LENGTH` answers every request with LENGTH bytes."""

import sys
from typing import Any

import uvicorn

BODY = b"x" * int(sys.argv[2])
HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(BODY))]}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Read the request and answer."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send(HEAD)
        await send({"type": "http.response.body", "body": BODY})


uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="critical", access_log=False)
