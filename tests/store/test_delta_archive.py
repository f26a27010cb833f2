"""The archive is the log, once: whoever writes it is killed, has company, or writes to the archive of another store."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import handbook
import pytest
from archive_rows import rows_of_archive
from bank import START, Bank
from paths import SUPPORT

import mlpkg as ml
from mlpkg.errors import MlpkgError
from mlpkg.settings import Settings
from mlpkg.store import open_archive
from mlpkg.store.delta.stream_table import LogSpan, rows_in_span
from mlpkg.times import DAY, HOUR, iso

if TYPE_CHECKING:
    from local_servers.s3_server import S3

COLUMNS = ["position", "id", "time", "arrived", "about", "body"]


def hash_of(rows: Any) -> str:
    return hashlib.sha256("\n".join(map(repr, sorted(rows))).encode()).hexdigest()


def hash_of_log(store: Any) -> str:
    return hash_of((e.position, e.source, e.id, e.time, e.arrived, e.about, e.body) for e in store.read())


def hash_of_archive(location: str, store: Any) -> str:
    """The hash of all rows of all tables, each as often as it is there."""
    return hash_of(
        (e.position, e.source, e.id, e.time, e.arrived, e.about, e.body) for e in rows_of_archive(location, store)
    )


def fill(store: Any, first: int, count: int) -> None:
    """Payments of some days, each with a report."""
    for number in range(first, first + count):
        moment = START + number * HOUR
        body = {"id": f"p{number}", "time": iso(moment), "customer_id": number % 7, "terminal_id": 3, "amount": 1.25}
        store.accept(handbook.transactions, body, arrived=moment)
        store.report(handbook.frauds, {"id": f"p{number}", "fraud": number % 3 == 0}, arrived=moment + DAY)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    with closing(ml.open_store(Settings(state=tmp_path / "state"))) as store:
        store.register("fraud", handbook.features)
        yield store


def test_a_writer_that_is_killed_at_any_moment_leaves_nothing_twice(store: Any, tmp_path: Path):
    """Real processes are killed at random moments, while the log grows; each goes on where the one before was."""
    rng, archive = random.Random(5), str(tmp_path / "archive")
    kills, ends, longest = 0, 0, 2.0
    rounds = 200 if os.environ.get("MLPKG_LONG") else 8
    while kills + ends < rounds or ends == 0:
        fill(store, 300 * (kills + ends), 300)
        command = [sys.executable, SUPPORT / "write_archive.py", store.settings.model_dump_json(), archive]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout and process.stderr and process.stdout.readline() == "begin\n"
        began, last = time.monotonic(), kills + ends >= rounds
        if not last:
            time.sleep(rng.uniform(0, longest))
            process.send_signal(signal.SIGKILL)
        out, err = process.communicate()
        assert not err, err
        finished = "end" in out
        longest = max(0.5, 0.9 * (time.monotonic() - began)) if finished else longest * 1.1
        kills, ends = kills + (not finished), ends + finished
    assert kills >= rounds // 4, f"{kills} of {rounds} were killed while they wrote"
    open_archive(archive).write(store)
    assert hash_of_archive(archive, store) == hash_of_log(store)


def test_two_writers_at_once_write_each_row_once(store: Any, tmp_path: Path):
    fill(store, 0, 900)
    command = [sys.executable, SUPPORT / "write_archive.py", store.settings.model_dump_json(), tmp_path / "archive"]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for writer in writers:
        out, err = writer.communicate()
        assert out == "begin\nend\n" and not err, err
    assert hash_of_archive(str(tmp_path / "archive"), store) == hash_of_log(store)


def test_the_archive_of_another_store_is_refused(store: Any, tmp_path: Path):
    """Two stores with the same entries at the same positions are two stores."""
    fill(store, 0, 3)
    archive = open_archive(str(tmp_path / "archive"))
    archive.write(store)
    with closing(ml.open_store(Settings(state=tmp_path / "other"))) as other:
        other.register("fraud", handbook.features)
        fill(other, 0, 3)
        with pytest.raises(MlpkgError, match="belongs to another store"):
            archive.write(other)
        with pytest.raises(MlpkgError, match="belongs to another store"):
            archive.log(other).history([handbook.transactions], [])


def copy_store(store: Any, folder: Path) -> Any:
    """A store as if it had been restored from a backup."""
    from mlpkg.store.sqlite.backup import backup, restore

    backup(store.settings, folder / "backup")
    restore(Settings(state=folder / "restored"), folder / "backup")
    return ml.open_store(Settings(state=folder / "restored"))


def test_a_store_that_was_restored_and_went_another_way_is_refused(store: Any, tmp_path: Path):
    fill(store, 0, 3)
    archive = open_archive(str(tmp_path / "archive"))
    with closing(copy_store(store, tmp_path)) as restored:
        archive.write(restored)
        assert archive.write(store)["transactions"] == 0, "a copy is the same log"
        fill(store, 3, 2)
        archive.write(store)
        with pytest.raises(MlpkgError, match="is ahead"):
            archive.write(restored)
        fill(restored, 10, 4)
        with pytest.raises(MlpkgError, match="contradicts the log"):
            archive.write(restored)


def test_small_files_are_merged_and_no_row_changes(store: Any, tmp_path: Path):
    archive = open_archive(str(tmp_path / "archive"))
    for step in range(10):
        fill(store, step, 1)
        archive.write(store)
    assert max(partition.files for partition in archive.view("transactions").partitions()) < 8
    assert hash_of_archive(archive.location, store) == hash_of_log(store)


def test_a_decision_keeps_what_it_saw_and_every_byte(tmp_path: Path):
    bank = Bank(handbook.fraud, tmp_path / "state")
    with closing(bank.store) as store:
        bank.pays("p0", 0)
        bank.hears("p0", True, 1)
        body = bank.payment("later", 2)
        store.accept(handbook.transactions, body, arrived=START + 2 * DAY)
        bank.pays("p1", 2)
        bank.decider.decide(body, arrived=START + 2 * DAY)  # its decision saw more than precedes the event
        archive = open_archive(str(tmp_path / "archive"))
        archive.write(store)
        log = archive.log(store)
        saw, truth = (sorted(zip(*map(list, reader.decided("fraud")))) for reader in (log, store))
        assert saw == truth and len(saw) == 3
        rows = rows_in_span(archive.view("decisions.fraud"), ["position", "action", "score"], LogSpan()).to_pylist()
        assert len(rows) == 3 and {row["action"] for row in rows} <= {"approve", "review", "decline"}
        assert hash_of_archive(archive.location, store) == hash_of_log(store)


def test_a_folder_that_is_no_archive_is_refused(store: Any, tmp_path: Path):
    import pyarrow as pa
    from deltalake import write_deltalake

    fill(store, 0, 1)
    write_deltalake(tmp_path / "archive" / "transactions", pa.table({"x": [1]}))
    with pytest.raises(MlpkgError, match="is no archive of a log"):
        open_archive(str(tmp_path / "archive")).write(store)
    shutil.rmtree(tmp_path / "archive")
    (tmp_path / "archive").write_text("a file")
    with pytest.raises(MlpkgError) as refused:
        open_archive(str(tmp_path / "archive")).write(store)
    assert refused.value.hint and "\n" not in str(refused.value)
    with pytest.raises(MlpkgError, match="cannot lie there"):
        open_archive("ftp://somewhere/archive")


@pytest.fixture
def s3_keys(s3_server: "S3", monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put the keys of the object storage into the environment."""

    def put(**options: str) -> None:
        for name, text in (s3_server.storage_options() | options).items():
            if name != "aws_conditional_put":
                monkeypatch.setenv(name.upper(), text)

    return put


def test_the_archive_lies_on_object_storage(store: Any, bucket: str, s3_keys: Callable[..., None]):
    s3_keys()
    fill(store, 0, 40)
    archive = open_archive(f"{bucket}/archive")
    assert archive.write(store)["transactions"] == 40
    command = [sys.executable, SUPPORT / "write_archive.py", store.settings.model_dump_json(), archive.location]
    fill(store, 40, 400)
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for writer in writers:
        out, err = writer.communicate()
        assert out == "begin\nend\n" and not err, err
    assert hash_of_archive(archive.location, store) == hash_of_log(store)
    log = archive.log(store).history([handbook.transactions], [handbook.frauds])
    assert len(log.events["transactions"]) == 440


def test_wrong_keys_of_object_storage_are_one_line(store: Any, bucket: str, s3_keys: Callable[..., None]):
    fill(store, 0, 1)
    s3_keys(aws_secret_access_key="wrong")
    with pytest.raises(MlpkgError) as refused:
        open_archive(f"{bucket}/archive").write(store)
    assert "AWS_ACCESS_KEY_ID" in refused.value.hint and "\n" not in str(refused.value)
