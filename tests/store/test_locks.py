"""A store that another process has locked, or whose disk hangs: nobody but those who need it waits, and they not for long."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from in_process_service import Service, another, stocked

from mlpkg.serve.batching import RequestBatcher

SECONDS = 3.0  # how long the store is locked, or the disk hangs


async def asked(service: Service) -> tuple[dict[str, list[float]], list[tuple[int, float]]]:
    """How long probes took while forty decisions, ten reports and a batch were asked for, and what these got and when."""
    until, probes = time.monotonic() + SECONDS, dict[str, list[float]]()
    got: list[tuple[int, float]] = []
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30) as web:

        async def probe(path: str) -> None:
            while time.monotonic() < until:
                began = time.monotonic()
                await web.get(path)
                probes.setdefault(path, []).append(time.monotonic() - began)
                await asyncio.sleep(0.01)

        async def ask(path: str, **more: Any) -> None:
            began = time.monotonic()
            answer = await web.post(path, **more)
            status = answer.status_code
            if "ndjson" in answer.headers["content-type"]:
                status = max(line.get("status", 200) for line in map(httpx.Response.json, lines(answer)))
            got.append((status, time.monotonic() - began))

        tasks: list[Coroutine[Any, Any, None]] = [probe("/v1/health"), probe("/v1/ready")]
        tasks += [ask("/v1/decide", json=service.payment(f"tx-{k}")) for k in range(40)]
        tasks += [ask("/v1/outcomes/fraud", json={"id": f"tx-{k}", "fraud": True}) for k in range(10)]
        content = b"\n".join(
            httpx.Request("POST", "http://x", json=service.payment(f"b-{k}")).content for k in range(50)
        )
        batch = {"content": content, "headers": {"content-type": "application/x-ndjson"}}
        tasks += [ask("/v1/events/transactions", **batch)]
        await asyncio.gather(*tasks)
    return probes, got


def lines(answer: httpx.Response) -> list[httpx.Response]:
    return [httpx.Response(200, content=line) for line in answer.content.splitlines()]


def judged(probes: dict[str, list[float]], got: list[tuple[int, float]]) -> None:
    for path, took in probes.items():
        assert len(took) > 10 and max(took) < 0.5, (path, max(took))
    assert {status for status, _ in got} == {503}
    assert max(took for _, took in got) < 2, "all that waited have waited together"


def begins_a_write(service: Service) -> Any:
    other = another(service)
    other.execute("begin immediate")
    return other


def locks_it_for_itself(service: Service) -> Any:
    """As those do who mean to keep out readers too."""
    other = another(service)
    other.execute("begin exclusive")
    return other


@pytest.mark.parametrize("lock", [begins_a_write, locks_it_for_itself])
def test_a_locked_store_holds_up_no_probe_and_all_who_wait_wait_together(
    tmp_path: Path, lock: Callable[[Service], Any]
):
    with closing(stocked(tmp_path / "state")) as service:
        service.works_again("tx-first")
        with closing(lock(service)) as other:
            judged(*asyncio.run(asked(service)))
            assert service.ready().status_code == 503
            assert asyncio.run(service.ask("GET", "/metrics")).status_code == 200
            other.execute("rollback")
        service.works_again("tx-1")
        service.kept_all()


def test_a_disk_that_hangs_holds_up_no_probe(tmp_path: Path):
    with closing(stocked(tmp_path / "state", durability="disk")) as service:
        service.works_again("tx-first")
        flush = service.disk.flush
        service.disk.flush = lambda descriptor: (time.sleep(2 * SECONDS), flush(descriptor))
        judged(*asyncio.run(asked(service)))
        assert service.ready().status_code == 503
        service.disk.flush = flush
        service.works_again("tx-1")


def test_the_very_first_decision_holds_up_no_probe_either(tmp_path: Path):
    with closing(stocked(tmp_path / "state", durability="disk")) as service:
        flush = service.disk.flush
        service.disk.flush = lambda descriptor: (time.sleep(2 * SECONDS), flush(descriptor))
        judged(*asyncio.run(asked(service)))
        service.disk.flush = flush
        service.works_again("tx-1")


def test_who_waits_for_a_lock_and_then_for_the_disk_waits_no_longer(tmp_path: Path):
    with closing(stocked(tmp_path / "state", durability="disk")) as service:
        service.works_again("tx-first")
        flush = service.disk.flush
        service.disk.flush = lambda descriptor: (time.sleep(3), flush(descriptor))

        async def unlocked_late() -> tuple[int, float]:
            with closing(begins_a_write(service)) as other:
                began = time.monotonic()
                waits = asyncio.create_task(service.decide("tx-1"))
                await asyncio.sleep(0.6)
                other.execute("rollback")
                return (await waits).status_code, time.monotonic() - began

        status, took = asyncio.run(unlocked_late())
        assert status == 503 and took < 1.4
        service.disk.flush = flush
        service.works_again("tx-1")
        service.kept_all()


def test_a_lock_that_is_short_is_waited_for(tmp_path: Path):
    with closing(stocked(tmp_path / "state")) as service:
        service.works_again("tx-first")

        async def for_a_moment() -> list[int]:
            with closing(begins_a_write(service)) as other:
                waiting = [asyncio.create_task(service.decide(f"tx-{k}")) for k in range(20)]
                await asyncio.sleep(0.3)
                other.execute("rollback")
                return [answer.status_code for answer in await asyncio.gather(*waiting)]

        assert set(asyncio.run(for_a_moment())) == {200}
        assert isinstance(service.app.batcher, RequestBatcher) and not service.app.batcher._locked
        service.kept_all()
