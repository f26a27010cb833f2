"""A store that another process has locked, or whose disk hangs: only requests that need the store wait, and not for long."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from in_process_service import Service, another, stocked

from mlpkg.serve.batching import RequestBatcher

SECONDS = 1.2  # how long probes go on while the store is locked, or the disk hangs
PATIENCE = 0.8  # seconds that the service waits for a lock or for the disk before it refuses


@dataclass
class Answered:
    """What a service answered while its store was locked or its disk hung, in the order of the answers."""

    probes: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)  # seconds
    probes_before: Counter[str] = field(default_factory=Counter)  # the probes answered before the first refusal


async def answered(service: Service) -> Answered:
    """Send forty decisions, ten reports and a batch at once, and probes for as long as these wait, and longer."""
    until, all_answers = time.monotonic() + SECONDS, Answered()
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30) as web:

        async def probe(path: str) -> None:
            while time.monotonic() < until or not all_answers.statuses:
                await web.get(path)
                all_answers.probes.append(path)
                await asyncio.sleep(0.01)

        async def ask(path: str, **more: Any) -> None:
            began = time.monotonic()
            answer = await web.post(path, **more)
            if not all_answers.statuses:
                all_answers.probes_before = Counter(all_answers.probes)
            status = answer.status_code
            if "ndjson" in answer.headers["content-type"]:
                status = max(line.get("status", 200) for line in map(httpx.Response.json, lines(answer)))
            all_answers.statuses.append(status)
            all_answers.waited.append(time.monotonic() - began)

        tasks: list[Coroutine[Any, Any, None]] = [probe("/v1/health"), probe("/v1/ready")]
        tasks += [ask("/v1/decide", json=service.payment(f"tx-{k}")) for k in range(40)]
        tasks += [ask("/v1/outcomes/fraud", json={"id": f"tx-{k}", "fraud": True}) for k in range(10)]
        content = b"\n".join(
            httpx.Request("POST", "http://x", json=service.payment(f"b-{k}")).content for k in range(50)
        )
        batch = {"content": content, "headers": {"content-type": "application/x-ndjson"}}
        tasks += [ask("/v1/events/transactions", **batch)]
        await asyncio.gather(*tasks)
    return all_answers


def lines(answer: httpx.Response) -> list[httpx.Response]:
    return [httpx.Response(200, content=line) for line in answer.content.splitlines()]


def check_answers(answers: Answered) -> None:
    """Probes are answered while the others wait; the others wait together, and all are refused."""
    assert answers.probes_before.keys() == {"/v1/health", "/v1/ready"}, "probes waited as long as the requests"
    assert set(answers.statuses) == {503} and len(answers.statuses) == 51
    in_a_row = len(answers.waited) * PATIENCE
    assert max(answers.waited) < in_a_row / 10, "requests waited one after the other"


def begins_a_write(service: Service) -> Any:
    other = another(service)
    other.execute("begin immediate")
    return other


def locks_it_for_itself(service: Service) -> Any:
    """As a process does that keeps out readers too."""
    other = another(service)
    other.execute("begin exclusive")
    return other


@contextmanager
def hanging(service: Service) -> Iterator[None]:
    """A disk that hangs until the block ends."""
    flush, goes_on = service.disk.flush, threading.Event()
    service.disk.flush = lambda descriptor: (goes_on.wait(60), flush(descriptor))
    try:
        yield
    finally:
        service.disk.flush = flush
        goes_on.set()


@pytest.mark.parametrize("lock", [begins_a_write, locks_it_for_itself])
def test_a_locked_store_holds_up_no_probe_and_all_who_wait_wait_together(
    tmp_path: Path, lock: Callable[[Service], Any]
):
    with closing(stocked(tmp_path / "state")) as service:
        service.works_again("tx-first")
        with closing(lock(service)) as other:
            check_answers(asyncio.run(answered(service)))
            assert service.ready().status_code == 503
            assert asyncio.run(service.ask("GET", "/metrics")).status_code == 200
            other.execute("rollback")
        service.works_again("tx-1")
        service.kept_all()


def test_a_disk_that_hangs_holds_up_no_probe(tmp_path: Path):
    with closing(stocked(tmp_path / "state", durability="disk")) as service:
        service.works_again("tx-first")
        with hanging(service):
            check_answers(asyncio.run(answered(service)))
            assert service.ready().status_code == 503
        service.works_again("tx-1")


def test_the_very_first_decision_holds_up_no_probe_either(tmp_path: Path):
    with closing(stocked(tmp_path / "state", durability="disk")) as service:
        with hanging(service):
            check_answers(asyncio.run(answered(service)))
        service.works_again("tx-1")


def test_a_wait_for_a_lock_shortens_the_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with closing(stocked(tmp_path / "state", durability="disk")) as service:
        service.works_again("tx-first")
        durable, left = service.app.durable, list[float]()

        async def noted(timeout: float = PATIENCE) -> None:
            left.append(timeout)
            await durable(timeout)

        async def unlocked_late() -> int:
            with closing(begins_a_write(service)) as other:
                waits = asyncio.create_task(service.decide("tx-1"))
                await asyncio.sleep(0.5)
                other.execute("rollback")
                return (await waits).status_code

        monkeypatch.setattr(service.app, "durable", noted)
        with hanging(service):
            assert asyncio.run(unlocked_late()) == 503
        assert left and all(timeout < PATIENCE - 0.4 for timeout in left), "of its time, the lock took half a second"
        monkeypatch.undo()
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
