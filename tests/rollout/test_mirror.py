"""Staging beside production: the same events, the same bits with the same model, and no write of staging's in production."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import handbook
import numpy as np
import psycopg
import pytest
from bank import Bank, booster, put_live
from environments import Environments, allow_reading, in_files, on_servers
from local_servers.redis_server import Redis
from paths import SUPPORT

from mlpkg.decisions import verify
from mlpkg.errors import MlpkgError, StoreError
from mlpkg.models import adopt, find, promote
from mlpkg.rollout.mirror import Mirror, compare_logs, mirror_until
from mlpkg.store import mirrored_environment, open_read_only, open_store, store_place
from mlpkg.store.kafka.log import KafkaLog
from mlpkg.store.kafka.topics import TopicLayout, login_of
from mlpkg.times import instant

USE_CASE = "fraud = handbook:fraud"
STREAMS = ["transactions", "transactions.fraud"]


@pytest.fixture
def on_cluster(
    kafka_server: Any, redis_server: Any, own_server: Callable[..., Any], postgres_url: str, tmp_path: Path
) -> Iterator[Environments]:
    """Both environments on servers; staging has users and a Redis of its own."""
    with on_servers(
        tmp_path / "project", kafka_server, redis_server, own_server(Redis), postgres_url, USE_CASE
    ) as environments:
        yield environments


@pytest.fixture(params=["cluster", "sqlite"])
def environments(request: pytest.FixtureRequest, tmp_path: Path) -> Environments:
    """Both environments, on servers and in files."""
    if request.param == "sqlite":
        return in_files(tmp_path / "project", USE_CASE)
    made = request.getfixturevalue("on_cluster")
    Bank(handbook.fraud, made.production).store.close()  # with a registry, which the role may read then
    allow_reading(made, request.getfixturevalue("kafka_server"), request.getfixturevalue("postgres_url"))
    return made


def same_model(environments: Environments, version: str) -> None:
    """Make production's model active in staging, too."""
    with closing(open_store(environments.staging)) as store:
        store.register("fraud", handbook.features)
        model = find(environments.production.state, "fraud", version)
        promote(store, adopt(environments.staging.state, model.folder), by="a test", why="as in production")


def contents(store: Any) -> list[tuple[Any, ...]]:
    """What the log has of events and reports; a report is told by its event, as `about` is a position."""
    return [(e.source, e.id, e.time, e.arrived, e.body) for e in store.read(streams=STREAMS)]


def use(bank: Bank, name: str, first_day: int) -> None:
    """Decide at once, late and never; hear about some, before and after their event."""
    for k in range(12):
        body = bank.payment(f"{name}-{k}", first_day + k / 4, customer_id=k % 3, amount=float(k))
        if k % 4 == 3:
            bank.store.accept(handbook.transactions, body, arrived=bank_time(body))
        else:
            bank.decider.decide(body, arrived=bank_time(body))
    bank.decider.decide({"id": f"{name}-3"}, arrived=bank_time(bank.payment("", first_day + 4)))
    for k in range(0, 12, 3):
        bank.hears(f"{name}-{k}", k % 2 == 0, first_day + 5)
    bank.hears(f"{name}-later", True, first_day + 5)
    bank.pays(f"{name}-later", first_day + 6)
    bank.store.report(handbook.frauds, {"id": f"{name}-0", "fraud": False, "corrects": True})


def bank_time(body: dict[str, Any]) -> int:
    return instant(body["time"])


def other_booster() -> Any:
    """A model that has learned something else."""
    rng = np.random.default_rng(1)
    rows = rng.uniform(0, 100, (500, len(handbook.features.names)))
    return booster(handbook.features, rows, rows[:, 0] > 50)


def until_taken(mirror: Mirror, seconds: float = 60) -> None:
    """Step until all that the log has now is taken over."""
    until, limit = mirror.log.newest_position(), time.monotonic() + seconds
    mirror_until(mirror, lambda: mirror.taken >= until or time.monotonic() > limit)
    assert mirror.taken >= until


def test_the_same_events_give_the_same_bits(environments: Environments):
    """Decided at once, later and never, heard about early, late and again, before the mirror began and after."""
    bank = Bank(handbook.fraud, environments.production)
    same_model(environments, bank.version)
    use(bank, "history", 0)
    with (
        closing(bank.store),
        closing(open_read_only(environments.mirrored)) as log,
        closing(open_store(environments.staging)) as staging,
    ):
        mirror = Mirror([handbook.fraud], log, staging, since=0)
        use(bank, "live", 7)
        until_taken(mirror)
        assert (mirror.result.decisions, mirror.result.equal, mirror.result.refused) == (22, 22, 0)
        assert contents(staging) == contents(bank.store)
        assert len(staging.waiting()) == len(bank.store.waiting())
        compared = compare_logs("fraud", log, staging)
        assert (compared.decisions, compared.different, compared.behind, compared.missing) == (22, 0, 0, 0)
        assert compared.is_as_expected and verify(handbook.fraud, staging).mismatches == 0


def test_history_is_loaded_and_only_what_follows_is_decided(environments: Environments):
    bank = Bank(handbook.fraud, environments.production)
    same_model(environments, bank.version)
    use(bank, "history", 0)
    with (
        closing(bank.store),
        closing(open_read_only(environments.mirrored)) as log,
        closing(open_store(environments.staging)) as staging,
    ):
        until_taken(Mirror([handbook.fraud], log, staging))
        assert [*staging.read(streams=["decisions.fraud"])] == []
        use(bank, "live", 7)
        again = Mirror([handbook.fraud], log, staging)
        until_taken(again)
        assert (again.result.decisions, again.result.equal) == (11, 11), "the start is stored"


def test_another_model_differs_and_the_differences_are_listed(environments: Environments):
    bank = Bank(handbook.fraud, environments.production)
    same_model(environments, bank.version)
    with (
        closing(bank.store),
        closing(open_read_only(environments.mirrored)) as log,
        closing(open_store(environments.staging)) as staging,
    ):
        mirror = Mirror([handbook.fraud], log, staging)
        use(bank, "same", 0)
        until_taken(mirror)
        other = put_live(handbook.fraud, staging, other_booster())
        use(bank, "other", 7)
        until_taken(mirror)
        compared = compare_logs("fraud", log, staging)
        assert compared.models == {f"{bank.version} → {bank.version}": 11, f"{bank.version} → {other}": 11}
        assert compared.names["score"] == 11 and {*compared.names} <= {"score", "action"}
        assert compared.different == 11 and compared.unexpected == 0 and compared.is_as_expected
        assert all(d.event.startswith("other-") for d in compared.differences)


def test_nothing_of_stagings_can_be_written_into_production(
    on_cluster: Environments, kafka_server: Any, postgres_url: str
):
    """The servers refuse it; what staging reads production with has no way to write, and no Redis."""
    bank = Bank(handbook.fraud, on_cluster.production)
    bank.pays("one", 0)
    bank.pays("two", 1)  # when it began, the first had ended; that it has ended itself is only known later
    mirrored = on_cluster.mirrored
    with pytest.raises(StoreError, match=r"Topic authorization failed.*mlpkg up --reader"):
        open_read_only(mirrored)
    lines = allow_reading(on_cluster, kafka_server, postgres_url)
    assert len(lines) == 2
    before = [*bank.store.read()]
    with closing(bank.store), closing(open_read_only(mirrored)) as log:
        assert mirrored.redis == ""
        assert [e.id for e in log.read(streams=["transactions"])] == ["one"]
        assert log.summary(["fraud"]).active == {"fraud": bank.version}
        with pytest.raises(MlpkgError, match="address of Redis"):
            open_store(mirrored, create=False)
        as_staging = login_of(mirrored)
        kafka = KafkaLog(mirrored.kafka, mirrored.namespace, TopicLayout(), as_staging)
        for stream in ("transactions", "_control"):
            with pytest.raises(StoreError, match="authorization failed"):
                kafka.append_texts(stream, ["from staging"])
        with pytest.raises(StoreError, match="uthorization failed"):
            kafka.topics.make(["of-staging"])
        with pytest.raises(StoreError, match="uthorization failed"):
            kafka.topics.delete()
        kafka.close()
        schema = on_cluster.production.namespace
        with psycopg.connect(mirrored.postgres, autocommit=True) as connection:
            for statement in (
                f"insert into {schema}.promotion values ('fraud', 9, 9, 9, '{{}}')",
                f"update {schema}.active_model set version = 'other'",
                f"delete from {schema}.contract",
                f"select * from {schema}.token",
                f"drop schema {schema} cascade",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)  # type: ignore[arg-type]
        assert [*bank.store.read()] == before
        assert {t for t in kafka_server.admin.list_topics(timeout=10).topics if t.endswith(".of-staging")} == set()


def test_a_file_that_is_opened_for_reading_cannot_be_written(tmp_path: Path):
    environments = in_files(tmp_path / "project", USE_CASE)
    bank = Bank(handbook.fraud, environments.production)
    bank.pays("one", 0)
    bank.store.close()
    folder = environments.production.state
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}
    log = open_read_only(environments.mirrored)
    assert [e.id for e in log.read(streams=["transactions"])] == ["one"]
    with pytest.raises(MlpkgError):
        log.rows("delete from log")  # type: ignore[attr-defined]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()} == files


def start(environments: Environments, *command: str) -> subprocess.Popen[bytes]:
    """Run a command of staging."""
    environment = {**os.environ, **environments.variables}
    arguments = [sys.executable, "-m", "mlpkg.cli", *command]
    return subprocess.Popen(arguments, cwd=environments.folder, env=environment, stdout=subprocess.PIPE)


def output_of(environments: Environments, *command: str) -> tuple[int, Any]:
    process = start(environments, *command)
    text, _ = process.communicate(timeout=180)
    return process.returncode, json.loads(text)


def grows(position: Callable[[], int], seconds: float = 60) -> None:
    """Wait until a position has grown."""
    before, until = position(), time.monotonic() + seconds
    while position() == before:
        assert time.monotonic() < until
        time.sleep(0.3)


def test_a_mirror_that_is_killed_under_load_loses_and_doubles_nothing(environments: Environments):
    """Twice while two processes decide; then both logs hold the same, and no bit differs."""
    bank = Bank(handbook.fraud, environments.production)
    same_model(environments, bank.version)
    settings = environments.production.model_dump_json()
    deciders = [
        subprocess.Popen(
            [sys.executable, str(SUPPORT / "decide_forever.py"), settings, f"p{n}", "0", "0.02"], stdout=subprocess.PIPE
        )
        for n in range(2)
    ]
    for decider in deciders:
        threading.Thread(target=lambda p=decider: [*p.stdout], daemon=True).start()  # type: ignore[misc]
    grows(lambda: bank.store.last_position())
    try:
        with closing(open_read_only(environments.staging)) as staging:
            for _ in range(2):
                mirror = start(environments, "mirror", "--since", "2000-01-01")
                grows(staging.newest_position)
                assert mirror.poll() is None
                mirror.kill()
                mirror.wait()
    finally:
        for decider in deciders:
            decider.kill()
            decider.wait()
    with closing(bank.store):
        bank.store.start_checkpointer()  # undoes what the deciders had begun, as any process of production does
        time.sleep(5)
        bank.pays("last", 400)
        status, result = output_of(environments, "mirror", "--once", "--json")
        assert status == 0 and result["refused"] == result["failed"] == 0
        with closing(open_store(environments.staging)) as staging:
            ours, theirs = contents(staging), contents(bank.store)
            assert len(theirs) > 100 and ours == theirs
            decided = [[e.id for e in s.read(streams=["decisions.fraud"])] for s in (staging, bank.store)]
            assert decided[0] == decided[1]
        status, report = output_of(environments, "compare-environments", "--json")
        compared = report["decisions"]["fraud"]
        assert status == 0 and report["is_as_expected"], compared
        assert compared["decisions"] == len(decided[0]) and compared["different"] == compared["missing"] == 0


def test_staging_begins_with_a_backup_of_production(tmp_path: Path):
    """It goes on where the backup ends, and decides only what follows."""
    environments = in_files(tmp_path / "project", USE_CASE)
    bank = Bank(handbook.fraud, environments.production)
    use(bank, "before", 0)
    store_place(environments.production).backup(tmp_path / "backup")
    store_place(environments.staging).restore(tmp_path / "backup")
    use(bank, "after", 7)
    with (
        closing(bank.store),
        closing(open_read_only(environments.mirrored)) as log,
        closing(open_store(environments.staging)) as staging,
    ):
        put_live(handbook.fraud, staging, other_booster())  # an entry that production does not have
        mirror = Mirror([handbook.fraud], log, staging, since=0)
        until_taken(mirror)
        assert (mirror.result.decisions, mirror.result.equal) == (11, 0), "those of the backup are there"
        assert contents(staging) == contents(bank.store)
        compared = compare_logs("fraud", log, staging)
        assert (compared.decisions, compared.different, compared.missing, compared.extra) == (11, 11, 0, 0)


def test_a_model_that_is_missing_and_an_environment_that_mirrors_itself_are_errors(tmp_path: Path):
    environments = in_files(tmp_path / "project", USE_CASE)
    Bank(handbook.fraud, environments.production).store.close()
    with closing(open_read_only(environments.mirrored)) as log, closing(open_store(environments.staging)) as staging:
        with pytest.raises(MlpkgError, match="no model is active"):
            Mirror([handbook.fraud], log, staging)
    with pytest.raises(MlpkgError, match="would mirror itself"):
        mirrored_environment(environments.staging.model_copy(update={"state": environments.production.state}))
