"""A backup of a store on which decisions go on, and the way back."""

import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import handbook
from bank import Bank
from command import Command
from paths import SUPPORT
from project import Project

import mlpkg as ml
from mlpkg.decisions import verify
from mlpkg.settings import Settings

PAYMENT = '{"id": "new", "time": "2018-06-09T12:00:00Z", "customer_id": 5, "terminal_id": 3, "amount": 57.16}'
DECIDE = ("decide", "fraud", PAYMENT, "--arrived", "2018-06-09T12:00:00Z")


def test_a_backup_of_a_store_in_use_is_the_log_up_to_one_moment(bank: Bank, cli: Command, tmp_path: Path):
    """Two processes decide while it is made, three times; each copy verifies, and is a prefix of the log."""
    state = bank.store.settings.state
    command = [sys.executable, SUPPORT / "decide_forever.py", bank.store.settings.model_dump_json()]
    writers = [subprocess.Popen([*command, own, "0"], stdout=subprocess.DEVNULL) for own in ("one", "two")]
    made = []
    try:
        begun = time.monotonic()
        while bank.store.last_position() < 500 and time.monotonic() < begun + 60:
            time.sleep(0.01)
        for number in range(3):
            answer = cli("backup", "-o", tmp_path / f"copy-{number}", "--json", state=state)
            assert answer.status == 0, answer.err
            made.append(answer.json)
        after = bank.store.last_position()
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert 0 < made[0]["position"] < made[1]["position"] < made[2]["position"] < after, "nobody waited for it"
    log = list(bank.store.read())
    for number, backup in enumerate(made):
        restored = tmp_path / f"restored-{number}"
        answer = cli("restore", tmp_path / f"copy-{number}", state=restored)
        assert answer.status == 0, answer.err
        with closing(ml.open_store(Settings(state=restored))) as store:
            assert list(store.read()) == log[: backup["position"]]
            result = verify(handbook.fraud, store)
            assert result.decisions > 200 and result.mismatches == 0


def test_a_restored_store_decides_as_the_one_it_was_made_from(stocked: Project, cli: Command, tmp_path: Path):
    (stocked.state / "pseudonyms.key").write_bytes(b"k" * 32)
    assert cli("backup", "-o", "copy").status == 0
    assert cli("restore", "copy", state=tmp_path / "other").status == 0
    assert (tmp_path / "other" / "pseudonyms.key").read_bytes() == b"k" * 32
    here, restored = (cli(*DECIDE, "--json", state=s).json for s in (stocked.state, tmp_path / "other"))
    assert here | {"latency_us": 0} == restored | {"latency_us": 0}
    modes = {oct(p.stat().st_mode & 0o077) for p in (stocked.folder / "copy").rglob("*")}
    assert modes == {"0o0"}, "nobody else may read it"


def test_a_backup_is_not_written_over_another_nor_restored_over_a_store(stocked: Project, cli: Command):
    assert cli("backup", "-o", "copy").status == 0
    cli("backup", "-o", "copy").said_one_line("exists already")
    cli("restore", "copy").said_one_line("--replace")
    cli("restore", "nowhere").said_one_line("no backup")
    assert cli(*DECIDE).status == 0
    with closing(ml.open_store(stocked.settings)) as store:
        last = store.last_position()
    assert cli("restore", "copy", "--replace").status == 0
    with closing(ml.open_store(stocked.settings)) as store:
        assert store.last_position() == last - 2
    (aside,) = stocked.state.glob("before-restore-*")
    with closing(ml.open_store(Settings(state=aside))) as store:
        assert store.last_position() == last, "what was there is moved aside, not lost"


def test_a_store_that_a_process_has_open_is_not_replaced(bank: Bank, project: Project, cli: Command, tmp_path: Path):
    state = bank.store.settings.state
    bank.pays("tx-1", 1)
    assert cli("backup", "-o", tmp_path / "copy", state=state).status == 0
    answer = project.run("restore", tmp_path / "copy", "--replace", state=state)
    answer.said_one_line("is in use", "stop")
    bank.pays("tx-2", 2)
    assert verify(handbook.fraud, bank.store).mismatches == 0


def test_a_restored_store_has_nothing_of_what_a_killed_process_left(bank: Bank, cli: Command, tmp_path: Path):
    """A write-ahead log that belongs to the store before must not be played into the one that takes its place."""
    state = bank.store.settings.state
    bank.pays("tx-1", 1)
    assert cli("backup", "-o", tmp_path / "copy", state=state).status == 0
    bank.pays("tx-2", 2)
    killed = tmp_path / "killed"
    killed.mkdir()
    for path in state.iterdir():  # as if all its processes had been killed now
        if path.is_file() and not path.name.endswith("-shm"):
            (killed / path.name).write_bytes(path.read_bytes())
    assert (killed / "mlpkg.db-wal").stat().st_size > 0
    assert cli("restore", tmp_path / "copy", "--replace", state=killed).status == 0
    with closing(ml.open_store(Settings(state=killed))) as store:
        assert [e.id for e in store.read(streams=["transactions"])] == ["tx-1"]
    (aside,) = killed.glob("before-restore-*")
    with closing(ml.open_store(Settings(state=aside))) as store:
        assert [e.id for e in store.read(streams=["transactions"])] == ["tx-1", "tx-2"]


def test_a_damaged_backup_is_not_restored(stocked: Project, cli: Command, tmp_path: Path):
    assert cli("backup", "-o", "copy").status == 0
    store = stocked.folder / "copy" / "mlpkg.db"
    whole = store.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-5] + b"other"):
        store.write_bytes(damaged)
        cli("restore", "copy", state=tmp_path / "other").said_one_line("is damaged: mlpkg.db", "take another")
        assert not list((tmp_path / "other").iterdir())
