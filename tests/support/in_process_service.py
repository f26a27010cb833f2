"""The application of the service in this process, on a disk that a test controls."""

import asyncio
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import handbook
import httpx
from bank import put_live

import mlpkg as ml
from mlpkg.decisions import verify
from mlpkg.serve.app import Application
from mlpkg.settings import Settings
from mlpkg.times import iso, now


class Service:
    """The application in this process, called over ASGI; it remembers what it acknowledged."""

    def __init__(self, state: Path, **settings: Any):
        self.settings = Settings(state=state, trust_loopback=True, **settings)
        self.app = Application(handbook.fraud, self.settings)
        self.acknowledged: dict[str, dict[str, Any]] = {}
        self.undecided: set[str] = set()  # events that were acknowledged without a decision
        self.time = iso(now())

    @property
    def disk(self) -> Any:
        return self.app.store.session.durability.fsync  # type: ignore[attr-defined]

    def payment(self, id: str) -> dict[str, Any]:
        return {"id": id, "time": self.time, "customer_id": len(id), "terminal_id": 3, "amount": 57.16}

    async def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://127.0.0.1") as web:
            return await web.request(method, path, json=body)

    async def decide(self, id: str) -> httpx.Response:
        answer = await self.ask("POST", "/v1/decide", self.payment(id))
        if answer.status_code == 200:
            self.acknowledged[id] = answer.json()
        return answer

    def decides(self, *ids: str) -> list[httpx.Response]:
        async def all_at_once() -> list[httpx.Response]:
            return await asyncio.gather(*(self.decide(id) for id in ids))

        return asyncio.run(all_at_once())

    def ready(self) -> httpx.Response:
        return asyncio.run(self.ask("GET", "/v1/ready"))

    def refuses(self, answer: httpx.Response, *words: str) -> None:
        """It is a 503 with the reason, says when to come again, and so does readiness."""
        for response in (answer, self.ready()):
            assert response.status_code == 503 and response.headers["content-type"] == "application/problem+json", (
                response.text
            )
            assert int(response.headers["retry-after"]) >= 1
            assert all(word in response.json()["reason"] for word in words), response.text
            assert response.json()["detail"] == response.json()["reason"]
        health = asyncio.run(self.ask("GET", "/v1/health"))
        assert health.status_code == 200, "it is alive"

    def works_again(self, id: str) -> None:
        until = time.monotonic() + 10
        while self.ready().status_code != 200:
            assert time.monotonic() < until, self.ready().text
            time.sleep(0.01)
        assert self.decides(id)[0].status_code == 200

    def kept_all(self) -> None:
        """Everything acknowledged is in the log, nothing is half there, and it verifies."""
        with closing(ml.open_store(self.settings)) as store:
            recorded = {e.id: e for e in store.read() if e.source == "decisions.fraud"}
            events = {e.id: e.position for e in store.read() if e.source == "transactions"}
            assert self.acknowledged.keys() <= recorded.keys()
            decided = {id: position for id, position in events.items() if id not in self.undecided}
            assert self.undecided <= events.keys() and {id: e.about for id, e in recorded.items()} == decided
            assert verify(handbook.fraud, store).mismatches == 0

    def close(self) -> None:
        self.app.close()


def another(service: Service) -> Any:
    """Another connection to the store, by the same SQLite library: two copies in a process ignore each other's locks."""
    return apsw.Connection(str(service.settings.store_path))


def stocked(state: Path, **settings: Any) -> Service:
    """A service with an active model."""
    service = Service(state, **settings)
    put_live(handbook.fraud, service.app.store)
    service.app.start()
    return service
