"""A bank whose payments are decided over HTTP, and what the service may answer."""

import json
from typing import Any

import httpx
from serving import Server

import mlpkg as ml
from mlpkg.settings import Settings

LINES = {"content-type": "application/x-ndjson"}


EVENTS = "/v1/events/transactions"


class Bank:
    """A client of the service that can also look into its store."""

    def __init__(self, server: Server):
        self.server = server
        self.http = httpx.Client(base_url=server.address, timeout=120)
        self.store: Any = ml.open_store(Settings(state=server.state))

    @property
    def size(self) -> tuple[int, int, int]:
        """The last position, and the numbers of dead letters and of reports that wait."""
        return self.store.last_position(), len(self.store.dead_letters()), len(self.store.waiting())

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()  # httpx would not send NaN
        return self.http.post(path, content=data, headers={"content-type": "application/json"} | headers)

    def decide(self, body: Any) -> httpx.Response:
        return self.post("/v1/decide", body)

    def lines(self, path: str, *bodies: Any) -> list[dict[str, Any]]:
        data = b"\n".join(b if isinstance(b, bytes) else json.dumps(b).encode() for b in bodies)
        answer = self.http.post(path, content=data, headers=LINES)
        assert answer.status_code == 200 and answer.headers["content-type"] == LINES["content-type"]
        return [json.loads(line) for line in answer.text.splitlines()]

    def close(self) -> None:
        self.http.close()
        self.store.close()


def refused(answer: httpx.Response, status: int, field: str, value: str = "", reason: str = "") -> dict[str, Any]:
    """A problem document that says what was wrong, where and why, and nothing of the inside."""
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.status_code == body["status"]
    return problem(body, status, field, value, reason)


def problem(body: dict[str, Any], status: int, field: str, value: str = "", reason: str = "") -> dict[str, Any]:
    assert {"type", "title", "status", "detail", "field", "value", "reason"} <= body.keys()
    assert (body["status"], body["field"]) == (status, field), body
    assert str(body["value"]).startswith(value) and reason in body["reason"], body
    assert body["reason"] and body["detail"] and len(json.dumps(body)) < 3_000
    assert "Traceback" not in str(body) and ".py" not in str(body)
    return body
