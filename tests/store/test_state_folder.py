"""The state folder is moved, deleted or replaced while it is open: no write is acknowledged that the new folder lacks."""

import asyncio
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import handbook
import httpx
import pytest
from bank import Bank, put_live
from in_process_service import Service, stocked

import mlpkg as ml
from mlpkg import lab
from mlpkg.decisions import Decider, UseCase, verify
from mlpkg.errors import MlpkgError, StoreMoved
from mlpkg.lab.frames import find_store
from mlpkg.settings import Settings
from mlpkg.times import instant, iso, now

Change = Callable[[Path], None]


def moved(state: Path) -> None:
    state.rename(state.with_name("aside"))


def deleted(state: Path) -> None:
    shutil.rmtree(state)


def emptied(state: Path) -> None:
    for path in state.glob("mlpkg.db*"):
        path.unlink()


def replaced_by_a_copy(state: Path) -> None:
    moved(state)
    shutil.copytree(state.with_name("aside"), state)


def replaced_by_another(state: Path) -> None:
    moved(state)
    with closing(ml.open_store(Settings(state=state))) as store:
        put_live(handbook.fraud, store)


def led_elsewhere(state: Path) -> None:
    """The state was a link all along, and is one to another folder now."""
    state.unlink()
    state.symlink_to(state.with_name("elsewhere"))


gone = pytest.mark.parametrize("change", [moved, deleted, emptied])
replaced = pytest.mark.parametrize("change", [replaced_by_a_copy, replaced_by_another, led_elsewhere])


def ask(service: Service, path: str) -> httpx.Response:
    return asyncio.run(service.ask("GET", path))


@pytest.fixture
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    state = tmp_path / "state"
    if getattr(request, "param", None) == "link":
        for name in ("here", "elsewhere"):
            with closing(ml.open_store(Settings(state=tmp_path / name))) as store:
                put_live(handbook.fraud, store)
        state.symlink_to(tmp_path / "here")
    with closing(stocked(state)) as made:
        made.works_again("tx-first")
        yield made


@gone
def test_nothing_is_acknowledged_into_a_store_that_is_gone(
    service: Service, change: Change, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING, "mlpkg.serve")
    change(service.settings.state)
    answers = [service.decides(f"tx-{k}")[0] for k in range(20)]
    assert {a.status_code for a in answers} == {503}
    service.refuses(answers[-1], "mlpkg.db is gone", "until it is back")
    event = asyncio.run(service.ask("POST", "/v1/events/transactions", service.payment("tx-event")))
    report = asyncio.run(service.ask("POST", "/v1/outcomes/fraud", {"id": "tx-first", "fraud": True}))
    assert {event.status_code, report.status_code} == {503}
    for path in ("/v1/decisions", "/v1/decisions/tx-first", "/v1/features?customer_id=3", "/v1/access", "/v1/models"):
        assert ask(service, path).status_code == 503, "nothing is read from a file that is gone"
    assert "mlpkg_up 0" in ask(service, "/metrics").text
    assert ask(service, "/v1/health").status_code == 200
    time.sleep(1.2)
    assert not service.settings.store_path.exists(), "none is made in its place"
    assert len([r for r in caplog.records if "is gone" in r.message]) == 1, [r.message for r in caplog.records]


def test_a_store_that_comes_back_is_gone_on_with_and_nothing_is_lost(service: Service):
    state = service.settings.state
    moved(state)
    assert service.decides("tx-1")[0].status_code == 503
    assert service.ready().status_code == 503
    state.with_name("aside").rename(state)
    service.works_again("tx-1")
    assert ask(service, "/v1/decisions/tx-first").status_code == 200
    service.kept_all()


@pytest.mark.parametrize(
    ("service", "change"),
    [(None, replaced_by_a_copy), (None, replaced_by_another), ("link", led_elsewhere)],
    indirect=["service"],
)
def test_a_store_in_the_place_of_another_is_opened_afresh(service: Service, change: Change):
    before = service.app.store
    change(service.settings.state)
    asyncio.run(service.ask("POST", "/v1/decide", service.payment("tx-lost")))  # not acknowledged, or in the new one
    service.works_again("tx-lost")
    assert service.app.store is not before
    if change is not replaced_by_a_copy:
        service.acknowledged.pop("tx-first")
    service.works_again("tx-next")
    assert ask(service, "/v1/decisions/tx-next").status_code == 200
    service.kept_all()
    with closing(ml.open_store(service.settings)) as store:
        assert store.active_version("fraud") == service.acknowledged["tx-next"]["model"]["version"]


def test_several_workers_find_it_again(tmp_path: Path):
    with closing(stocked(tmp_path / "state")) as first, closing(Service(tmp_path / "state")) as other:
        other.app.start()
        other.time = first.time
        first.works_again("tx-1")
        other.works_again("tx-2")
        deleted(first.settings.state)
        assert {w.decides("tx-3")[0].status_code for w in (first, other)} == {503}
        with closing(ml.open_store(first.settings)) as store:
            put_live(handbook.fraud, store)
        for worker in (first, other):
            worker.acknowledged.clear()
            worker.works_again("tx-4")
        assert first.acknowledged == other.acknowledged, "one of them decided it, and the other knows that"
        first.kept_all()


def test_waiting_for_the_disk_is_no_time_to_lose_the_store(tmp_path: Path):
    """What was committed before the folder went, and was not acknowledged yet, is not acknowledged after."""
    with closing(stocked(tmp_path / "state", durability="disk")) as service:
        service.works_again("tx-1")
        flush = service.disk.flush

        def slowly(descriptor: int) -> None:
            if service.settings.state.exists():
                moved(service.settings.state)
            flush(descriptor)

        service.disk.flush = slowly
        assert service.decides("tx-2")[0].status_code == 503
        service.settings.state.with_name("aside").rename(service.settings.state)
        service.disk.flush = flush
        service.works_again("tx-2")
        service.kept_all()


def test_a_write_ahead_log_that_was_deleted_is_said_and_what_it_held_is_kept(service: Service):
    service.decides(*(f"tx-{k}" for k in range(30)))
    service.settings.store_path.with_name("mlpkg.db-wal").unlink()
    service.refuses(service.decides("tx-lost")[0], "has lost its write-ahead log", "stop every process")
    service.close()
    again = Service(service.settings.state)
    again.acknowledged, again.time = service.acknowledged, service.time
    with closing(again):
        again.app.start()
        again.works_again("tx-lost")
        again.kept_all()


def payment(id: str) -> dict[str, Any]:
    return {"id": id, "time": iso(now()), "customer_id": 1, "terminal_id": 3, "amount": 5.0}


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A use case in this process, on a store of its own."""
    monkeypatch.setenv("MLPKG_STATE", str(tmp_path / "state"))
    with closing(ml.open_store(Settings.load())) as store:
        put_live(handbook.fraud, store)
    made = UseCase("fraud", handbook.fraud.features, policy=handbook.fraud.policy)
    yield made
    if decider := made._of_thread.decider:
        decider.store.close()


@gone
def test_in_process_nothing_is_decided_on_a_store_that_is_gone(case: Any, change: Change, tmp_path: Path):
    state = tmp_path / "state"
    case.decide(payment("tx-1"))
    change(state)
    for id in ("tx-1", "tx-2"):
        with pytest.raises(StoreMoved, match=r"mlpkg\.db is gone"):
            case.decide(payment(id))
    assert not (state / "mlpkg.db").exists()
    if change is not moved:
        return
    (tmp_path / "aside").rename(state)
    case.decide(payment("tx-2"))
    with closing(ml.open_store(Settings(state=state))) as store:
        assert verify(case, store).decisions == 2


@pytest.mark.parametrize("change", [replaced_by_a_copy, replaced_by_another])
def test_in_process_another_store_is_opened_afresh(case: Any, change: Change, tmp_path: Path):
    first = case.decide(payment("tx-1"))
    change(tmp_path / "state")
    case.decide(payment("tx-2"))
    with closing(ml.open_store(Settings(state=tmp_path / "state"))) as store:
        stored = [e.id for e in store.read(streams=["decisions.fraud"])]
        assert stored == (["tx-1", "tx-2"] if change is replaced_by_a_copy else ["tx-2"]), first
        assert verify(case, store).mismatches == 0


def test_the_decision_under_way_when_the_store_goes_is_not_acknowledged(bank: Bank):
    """It was committed into a file that was moved while it was evaluated."""
    state, policy = bank.store.settings.state, handbook.fraud.policy

    def moving(score: float, event: Any) -> str:
        moved(state)
        return policy(score, event)

    usual, bank.decider = (
        bank.decider,
        Decider(UseCase("fraud", handbook.fraud.features, policy=moving), bank.store),
    )
    with pytest.raises(StoreMoved):
        bank.pays("tx-1", 1)
    bank.decider = usual
    with pytest.raises(StoreMoved):
        bank.pays("tx-1", 1)
    state.with_name("aside").rename(state)
    bank.pays("tx-1", 1)
    assert verify(handbook.fraud, bank.store).mismatches == 0


def test_a_notebook_reads_what_is_in_the_folder_now(case: Any, tmp_path: Path):
    case.decide(payment("tx-1"))
    assert list(lab.decisions(use_case=handbook.fraud).id) == ["tx-1"]
    replaced_by_another(tmp_path / "state")
    assert len(lab.decisions(use_case=handbook.fraud)) == 0
    case.decide(payment("tx-2"))
    assert list(lab.decisions(use_case=handbook.fraud).id) == ["tx-2"]
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(MlpkgError, match="is gone"):
        lab.decisions(use_case=handbook.fraud)
    with pytest.raises(MlpkgError, match="is gone"):
        find_store().last_position()
    (tmp_path / "aside").rename(tmp_path / "state")
    assert list(lab.decisions(use_case=handbook.fraud).id) == ["tx-1"]


def test_a_reader_that_has_begun_does_not_go_on_in_a_file_that_is_gone(bank: Bank):
    for k in range(5_001):  # more than a page
        body = bank.payment(f"e-{k}", k / 1000)
        bank.store.accept(handbook.transactions, body, arrived=instant(body["time"]))
    entries = bank.store.read()
    next(entries)
    shutil.rmtree(bank.store.settings.state)
    with pytest.raises(StoreMoved):
        list(entries)


def modes(folder: Path) -> dict[str, str]:
    return {p.name: oct(stat.S_IMODE(p.stat().st_mode)) for p in [folder, *folder.rglob("*")]}


def test_a_state_is_for_its_owner_alone(tmp_path: Path):
    before = os.umask(0o022)
    try:
        made = Bank(handbook.fraud, tmp_path / "deep" / "state")
        with closing(made.store):
            made.pays("tx-1", 1)
            rights = modes(tmp_path / "deep" / "state")
    finally:
        os.umask(before)
    assert {rights[name] for name in ("mlpkg.db", "mlpkg.db-wal", "mlpkg.db-shm", "model.txt", "manifest.json")} == {
        "0o600"
    }
    assert {rights[name] for name in ("state", "models", "fraud", made.version)} == {"0o700"}


def test_a_state_that_is_more_open_is_tightened_when_it_is_opened(bank: Bank):
    state = bank.store.settings.state
    bank.store.close()
    state.chmod(0o755)
    for path in state.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with closing(ml.open_store(Settings(state=state))) as store:
        assert store.last_position() >= 0
        rights = modes(state)
    assert rights[state.name] == rights["models"] == "0o700"
    assert rights["mlpkg.db"] == rights["mlpkg.db-wal"] == rights["mlpkg.db-shm"] == "0o600"
