"""A restore is killed at whatever step: afterwards there is the store from before or the one that was restored, and never an empty one."""

import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import handbook
import pytest
from bank import Bank, put_live
from command import Command
from paths import SUPPORT

import mlpkg as ml
from mlpkg.decisions import Decider, verify
from mlpkg.errors import MlpkgError
from mlpkg.settings import Settings
from mlpkg.times import iso, now


def payment(id: str) -> dict[str, Any]:
    return {"id": id, "time": iso(now()), "customer_id": 1, "terminal_id": 3, "amount": 5.0}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """A backup with one decision, and states with two and another model whose restore was killed, by step; the last was not."""
    from mlpkg.store.sqlite.backup import backup

    folder = tmp_path_factory.mktemp("killed")
    settings = Settings(state=folder / "state")
    with closing(ml.open_store(settings)) as store:
        put_live(handbook.fraud, store)
        Decider(handbook.fraud, store).decide(payment("tx-1"))
        (settings.state / "pseudonyms.key").write_bytes(b"old" * 10)
        backup(settings, folder / "backup")
        (settings.state / "pseudonyms.key").write_bytes(b"new" * 10)
        put_live(handbook.fraud, store, auc=0.9)
        Decider(handbook.fraud, store).decide(payment("tx-2"))
        before = folder / "before"
        shutil.copytree(settings.state, before, ignore=shutil.ignore_patterns("*-shm"))  # as if it had been killed
    command = [sys.executable, SUPPORT / "kill_restore.py", before, folder / "backup", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return folder, folder / "backup", int(done.stdout)


def what_is_there(state: Path) -> tuple[list[str], str]:
    with closing(ml.open_store(Settings(state=state))) as store:
        result = verify(handbook.fraud, store)
        decided = [e.id for e in store.read(streams=["decisions.fraud"])]
        assert (result.decisions, result.mismatches) == (len(decided), 0), "with the models that it was decided by"
        assert store.active_version("fraud") in {p.name for p in (state / "models" / "fraud").iterdir()}
    return decided, (state / "pseudonyms.key").read_text()[:3]


BEFORE, RESTORED = (["tx-1", "tx-2"], "new"), (["tx-1"], "old")


def test_whoever_starts_next_finds_one_store_or_the_other(killed: tuple[Path, Path, int], tmp_path: Path):
    folder, _, steps = killed
    states = []
    for step in range(steps + 1):
        state = Path(shutil.copytree(folder / str(step), tmp_path / str(step)))
        states.append(what_is_there(state))
        assert not (state / "mlpkg.restoring").exists() or states[-1] == BEFORE
    assert set(map(repr, states)) == {repr(BEFORE), repr(RESTORED)} and states[-1] == RESTORED
    turned = states.index(RESTORED)
    assert states == [BEFORE] * turned + [RESTORED] * (steps + 1 - turned), "from one step on"
    unfinished = [step for step in range(steps) if (folder / str(step) / "mlpkg.restoring").exists()]
    assert len(unfinished) > 5 and any(not (folder / str(s) / "mlpkg.db").exists() for s in unfinished)


def test_the_next_restore_goes_through(killed: tuple[Path, Path, int], tmp_path: Path, cli: Command):
    folder, backup, steps = killed
    for step in range(steps + 1):
        state = Path(shutil.copytree(folder / str(step), tmp_path / str(step)))
        assert cli("restore", backup, "--replace", state=state).status == 0
        assert what_is_there(state) == RESTORED
        assert not [p.name for p in state.iterdir() if p.name.startswith((".restore", "mlpkg.restoring"))]


def test_a_restore_right_after_another_keeps_what_both_replaced(tmp_path: Path):
    """Within one second, and so by the same time in the names of the folders."""
    from mlpkg.store.sqlite.backup import backup, restore

    settings = Settings(state=tmp_path / "state")
    for k in range(4):
        if k:
            restore(settings, tmp_path / "backup", replace=True)
        with closing(ml.open_store(settings)) as store:
            store.accept(handbook.fraud.on, payment(f"tx-{k}"))
        if not k:
            backup(settings, tmp_path / "backup")
    kept = set()
    for folder in (settings.state, *settings.state.glob("before-restore-*")):
        with closing(ml.open_store(Settings(state=folder))) as store:
            kept |= {e.id for e in store.read()}
    assert kept == {"tx-0", "tx-1", "tx-2", "tx-3"}


def test_while_it_is_under_way_nobody_opens_or_makes_a_store(bank: Bank, tmp_path: Path, monkeypatch: Any):
    from mlpkg.store.sqlite import backup as module

    state, refusals = bank.store.settings.state, []
    bank.store.close()
    module.backup(bank.store.settings, tmp_path / "backup")

    def look(store: Path) -> None:
        for create in (True, False):
            with pytest.raises(MlpkgError, match="under way") as why:
                ml.open_store(Settings(state=state), create=create)
            refusals.append(why.value)

    monkeypatch.setattr(module, "_check_unused", look)
    module.restore(bank.store.settings, tmp_path / "backup", replace=True)
    assert len(refusals) == 2
    ml.open_store(Settings(state=state), create=False).close()
