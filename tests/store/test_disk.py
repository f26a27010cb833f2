"""A disk that is full, read-only, slow or broken under the service: it says so, acknowledges nothing that is not kept, and recovers."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import handbook
import httpx
import pytest
from bank import put_live
from in_process_service import Service, another, stocked

import mlpkg as ml
from mlpkg.settings import Settings
from mlpkg.times import iso, now


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with three megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_a_full_disk_is_said_and_nothing_is_acknowledged_that_is_not_stored(small: Path, durability: str):
    ballast = small / "ballast"
    ballast.write_bytes(bytes(1_500_000))
    with closing(stocked(small / "state", durability=durability)) as service:
        for k in range(5_000):
            answer = service.decides(f"tx-{k}")[0]
            if answer.status_code != 200 and service.ready().status_code != 200:
                break
        assert len(service.acknowledged) > 20
        service.refuses(answer, "mlpkg.db is full", "make room")
        event = service.payment("tx-event")
        sent = asyncio.run(service.ask("POST", "/v1/events/transactions", event)).status_code
        reported = asyncio.run(service.ask("POST", "/v1/outcomes/fraud", {"id": "tx-1", "fraud": True})).status_code
        assert {sent, reported} <= {200, 503}, "what is smaller than a decision may still find room"
        service.undecided = {"tx-event"} if sent == 200 else set()
        ballast.unlink()
        service.works_again("tx-after")
        service.kept_all()


def test_a_file_system_that_is_read_only_is_said_and_noticed_when_it_is_not(small: Path):
    with closing(stocked(small / "state")) as before:
        assert before.decides("tx-1")[0].status_code == 200
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    with closing(Service(small / "state")) as service:
        service.app.start()
        service.refuses(service.decides("tx-2")[0], "cannot be written", "permissions")
        subprocess.run(["mount", "-o", "remount,rw", small], check=True)
        service.works_again("tx-2")
        service.kept_all()


def test_a_store_locked_by_another_process_is_said_soon_and_answers_when_it_is_not(tmp_path: Path):
    with (
        closing(stocked(tmp_path / "state")) as service,
        closing(another(service)) as other,
    ):
        service.works_again("tx-1")
        other.execute("begin immediate")
        began = time.monotonic()
        answer = service.decides("tx-2")[0]
        assert time.monotonic() - began < 2
        service.refuses(answer, "locked by another process", "try again")
        other.execute("rollback")
        service.works_again("tx-2")
        service.kept_all()


def test_a_damaged_page_is_said_and_the_service_is_not_ready_from_then_on(tmp_path: Path):
    with closing(stocked(tmp_path / "state")) as service:
        service.decides(*(f"tx-{k}" for k in range(300)))
    store = service.settings.store_path
    with closing(Service(tmp_path / "state")) as again:
        again.works_again("tx-300")
        again.app.close()
        with store.open("r+b") as file:  # some of the pages, none of those that tell what there is
            for page in range(24, store.stat().st_size // 4096):
                file.seek(page * 4096)
                file.write(os.urandom(4096))
        answers = again.decides(*(f"tx-{k}" for k in range(1000, 1020)))
        assert {a.status_code for a in answers} <= {200, 503}
        answer = next(a for a in answers if a.status_code == 503)
        again.refuses(answer, "mlpkg.db is damaged", "restore")


def broken(descriptor: int) -> None:
    raise OSError(5, "Input/output error")


def test_when_the_disk_fails_everyone_who_waits_is_told_and_nothing_is_acknowledged(tmp_path: Path):
    with closing(stocked(tmp_path / "state", durability="disk")) as service:
        service.works_again("tx-first")
        flush, service.disk.flush = service.disk.flush, broken
        ids = [f"tx-{k}" for k in range(8)]
        answers = service.decides(*ids)
        assert {a.status_code for a in answers} == {503} and len(service.acknowledged) == 1
        assert all("Input/output error" in a.json()["reason"] for a in answers)
        lines = asyncio.run(send_lines(service, "tx-a", "tx-b"))
        assert {line["status"] for line in lines} == {503} and lines[0]["line"] == 1
        service.disk.flush = flush
        service.works_again("tx-last")
        assert {a.status_code for a in service.decides(*ids, "tx-a", "tx-b")} == {200}, "sent again with their ids"
        service.kept_all()


async def send_lines(service: Service, *ids: str) -> list[Any]:
    content = b"\n".join(httpx.Request("POST", "http://x", json=service.payment(id)).content for id in ids)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app), base_url="http://127.0.0.1") as web:
        headers = {"content-type": "application/x-ndjson"}
        answer = await web.post("/v1/events/transactions", content=content, headers=headers)
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_failed_fsync_is_not_tried_again_before_the_log_was_written_afresh(tmp_path: Path):
    """After a failed fsync the kernel drops the pages: a second fsync that succeeds has written nothing."""
    with closing(stocked(tmp_path / "state", durability="disk")) as service:
        store: Any = service.app.store
        flush, service.disk.flush = service.disk.flush, broken
        assert service.decides("tx-1")[0].status_code == 503
        service.disk.flush = flush
        with closing(another(service)) as reader:  # so that the log cannot be emptied
            reader.execute("begin")
            reader.execute("select count(*) from log").fetchall()
            store.lock_timeout = 0.1
            service.refuses(service.decides("tx-2")[0], "did not take what was written")
        service.works_again("tx-2")
        assert service.settings.store_path.with_name("mlpkg.db-wal").stat().st_size < 200_000, "it was emptied"
        service.kept_all()


@pytest.mark.parametrize("at_once", [1, 32])
def test_requests_share_an_fsync(tmp_path: Path, at_once: int):
    with closing(stocked(tmp_path / "state", durability="disk")) as service:
        flush, service.disk.flush = service.disk.flush, lambda descriptor: (time.sleep(0.01), flush(descriptor))
        service.works_again("tx-warm")
        before = service.disk.syncs

        async def client(number: int) -> None:
            for k in range(10):
                assert (await service.decide(f"tx-{number}-{k}")).status_code == 200

        async def clients() -> None:
            await asyncio.gather(*map(client, range(at_once)))

        asyncio.run(clients())
        each = (service.disk.syncs - before) / (at_once * 10)
        assert each == 1 if at_once == 1 else each <= 0.2


def test_in_process_a_decision_and_a_batch_are_on_the_disk_when_they_return(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("MLPKG_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("MLPKG_DURABILITY", "disk")
    with closing(ml.open_store(Settings.load())) as store:
        put_live(handbook.fraud, store)
        before = store.session.durability.fsync.syncs  # type: ignore[attr-defined]
        store.accept(
            handbook.fraud.on, {"id": "e", "time": iso(now()), "customer_id": 1, "terminal_id": 3, "amount": 1}
        )
        assert store.session.durability.fsync.syncs == before + 1  # type: ignore[attr-defined]
    case = ml.UseCase("fraud", handbook.fraud.features, policy=handbook.fraud.policy)
    case.decide({"id": "tx", "time": iso(now()), "customer_id": 1, "terminal_id": 3, "amount": 5.0})
    decided_on: Any = case._of_thread.get(case).store
    assert decided_on.session.durability.fsync.syncs >= 2
    decided_on.close()


def test_what_is_acknowledged_was_in_the_files_when_they_were_last_synced(tmp_path: Path):
    """As after a loss of power: nothing that was written since the last fsync is there, in whichever file it was by then."""
    with closing(stocked(tmp_path / "state", durability="disk")) as service:
        flush, path = service.disk.flush, service.settings.store_path
        kept: dict[str, bytes] = {}

        def flushed(descriptor: int) -> None:
            kept.update((name, path.with_name(name).read_bytes()) for name in ("mlpkg.db", "mlpkg.db-wal"))
            flush(descriptor)

        service.works_again("tx-first")
        service.disk.flush = flushed
        for number in range(6):
            service.decides(*(f"tx-{number}-{k}" for k in range(number + 1)))
            after = Service(tmp_path / f"after-{number}")
            after.settings.state.mkdir()
            for name, content in kept.items():
                (after.settings.state / name).write_bytes(content)
            with closing(ml.open_store(after.settings)) as store:
                assert service.acknowledged.keys() <= {e.id for e in store.read(streams=["decisions.fraud"])}
            another(service).execute("pragma wal_checkpoint(restart)").fetchall()  # the log begins again
