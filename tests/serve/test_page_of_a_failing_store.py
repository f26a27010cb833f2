"""The page for people of a service whose store is busy, gone or damaged; in a module without a browser, which has a loop of its own."""

import asyncio
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import httpx
from hostile_shop import fill, purchase, shop

from mlpkg.serve.app import Application
from mlpkg.settings import Settings


def test_the_page_says_so_when_the_store_is_busy_damaged_or_gone(tmp_path: Path):
    state = fill(tmp_path / "state")
    with closing(Application(shop, Settings(state=state, trust_loopback=True))) as app:
        app.start()

        async def ask(method: str, path: str, body: Any = None) -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as web:  # type: ignore[arg-type]
                return await web.request(method, path, json=body, headers={"accept": "text/html"})

        assert asyncio.run(ask("POST", "/v1/decide", purchase("a"))).status_code == 200

        def page() -> str:
            began = time.monotonic()
            answer = asyncio.run(ask("GET", "/"))
            assert answer.status_code == 200 and time.monotonic() - began < 15, "two seconds, on a machine that is busy"
            return answer.text

        assert "Ready: it decides." in page()
        database = str(state / "mlpkg.db")
        with closing(apsw.Connection(database)) as other:
            other.execute("begin immediate")  # somebody writes for long
            text = page()
            assert "cannot be recorded" in text and "locked" in text and "v1/decisions/a" not in text
            assert "Entries of the log" in text, "what needs no record stays"
            other.execute("rollback")
        until = time.monotonic() + 30
        while "v1/decisions/a" not in page():
            assert time.monotonic() < until
        state.rename(tmp_path / "elsewhere")
        text = page()
        assert "Not ready: " in text and "Ready: it decides." not in text and "v1/decisions/a" not in text
        (tmp_path / "elsewhere").rename(state)
        until = time.monotonic() + 30
        while "v1/decisions/a" not in page():
            assert time.monotonic() < until
        size = (state / "mlpkg.db").stat().st_size
        with (state / "mlpkg.db").open("r+b") as file:
            file.seek(4_096)
            file.write(b"\xff" * (size - 4_096))
        while "damaged" not in page():
            assert time.monotonic() < until
        assert "v1/decisions/a" not in page()
