"""What the control plane says, and goes on doing, when PostgreSQL is wrong, old, or away."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from threading import Thread

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from local_servers.postgres_server import Postgres

from mlpkg.errors import StoreError
from mlpkg.store.postgres.control_plane import ControlPlane
from mlpkg.store.postgres.database import Database, upgrade
from mlpkg.store.postgres.tables import metadata
from mlpkg.store.records import Token


def promote(control: ControlPlane, version: str) -> None:
    control.change_model(
        "fraud",
        lambda before: {"change": "promote", "version": version, "active": version, "by": "ada", "why": "better"},
    )


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds
        time.sleep(0.01)
    return time.monotonic() - began


def test_the_versions_make_the_tables_that_statements_use(postgres_url: str) -> None:
    assert upgrade(postgres_url, "mlpkg") == ["0001"] and upgrade(postgres_url, "mlpkg") == []
    with contextlib.closing(ControlPlane(postgres_url)) as control, control.database.engine.connect() as connection:
        connection.exec_driver_sql("set search_path to mlpkg")
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, metadata)
    assert [d for d in differences if "alembic_version" not in str(d)] == []


def test_a_database_of_another_version_is_refused(postgres_url: str) -> None:
    with pytest.raises(StoreError, match="no tables in the schema mlpkg; run: mlpkg up"):
        ControlPlane(postgres_url)
    upgrade(postgres_url)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("update mlpkg.alembic_version set version_num = '9999'")
    for opening in (ControlPlane, upgrade):
        with pytest.raises(StoreError, match=r"newer mlpkg, as it is of version 9999; upgrade mlpkg"):
            opening(postgres_url)


def test_two_upgrades_at_once_apply_each_version_once(postgres_url: str) -> None:
    applied: list[list[str]] = []
    upgrades = [Thread(target=lambda: applied.append(upgrade(postgres_url))) for _ in range(3)]
    for thread in upgrades:
        thread.start()
    for thread in upgrades:
        thread.join()
    assert sorted(applied) == [[], [], ["0001"]]


def test_an_error_names_host_and_user_and_no_password(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    password = postgres_url.partition("mlpkg:")[2].partition("@")[0]
    place = postgres_url.partition("@")[2]
    wrong = {
        postgres_url.replace(password, "hushhush"): f"mlpkg@{place} refused the user or the password",
        postgres_url + "-nowhere": "does not exist",
        postgres_url.replace("mlpkg:", "nobody:"): f"nobody@{place} refused the user or the password",
        postgres_url + "?sslmode=require": "has no TLS",
        f"postgresql://mlpkg:{password}@nowhere.invalid/shop": "nowhere.invalid/shop cannot be reached",
        f"postgresql://mlpkg:{password}@127.0.0.1:1/shop": "127.0.0.1:1/shop cannot be reached",
    }
    for url, words in wrong.items():
        with pytest.raises(StoreError) as refused:
            ControlPlane(url)
        shown = f"{refused.value}{refused.value!r}"
        assert words in shown and refused.value.hint
        assert password not in shown and "hushhush" not in shown
    assert password not in caplog.text and "hushhush" not in caplog.text


def test_no_value_of_a_statement_is_shown(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    upgrade(postgres_url)
    with contextlib.closing(ControlPlane(postgres_url)) as control:
        control.put_token(Token("t1", hash="a secret hash", role="caller", name="checkout", by="ada", created=0))
        with pytest.raises(StoreError) as refused:
            control.put_token(Token("t2", hash="a secret hash\0", role="caller", name="checkout", by="ada", created=0))
    assert "secret hash" not in str(refused.value) and "secret hash" not in caplog.text


@pytest.fixture
def server(own_server: Callable[..., Postgres]) -> Postgres:
    return own_server(Postgres)


@pytest.fixture
def control(server: Postgres) -> Iterator[ControlPlane]:
    upgrade(server.url)
    with contextlib.closing(ControlPlane(server.url)) as opened:
        promote(opened, "v1")
        assert opened.active_version("fraud") == "v1"
        yield opened


def test_decisions_go_on_while_postgres_is_away(server: Postgres, control: ControlPlane) -> None:
    """The last snapshot stays, checks say so, and after a restart nobody has to be restarted."""
    control.put_token(Token("t1", hash="9f86d0", role="caller", name="checkout", by="ada", created=0))
    assert "t1" in control.tokens()
    server.restart()
    promote(control, "v2")  # the connections of the pool were closed by the server
    assert control.active_version("fraud") == "v2"
    server.kill()
    for call in (control.check, lambda: control.promotions("fraud"), lambda: promote(control, "v3")):
        with pytest.raises(StoreError, match="cannot be reached"):
            call()
    assert control.active_version("fraud") == "v2" and "t1" in control.tokens()
    server.start()
    with contextlib.closing(ControlPlane(server.url)) as other:
        promote(other, "v3")
    assert wait_until(lambda: control.active_version("fraud") == "v3") < 5
    control.check()
    assert [c["version"] for c in control.promotions("fraud")] == ["v1", "v2", "v3"]


def test_a_server_that_stands_still_fails_the_check(server: Postgres, control: ControlPlane) -> None:
    server.pause()
    try:
        wait_until(lambda: control.watcher.current.age() > 5.1)
        began = time.monotonic()
        with pytest.raises(StoreError, match="does not answer; decisions use what was known"):
            control.check()
        assert control.active_version("fraud") == "v1" and time.monotonic() - began < 1
    finally:
        server.resume()
    wait_until(lambda: control.watcher.current.age() < 2)
    control.check()


def test_a_snapshot_of_a_restored_database_is_taken_as_it_is(postgres_url: str) -> None:
    """The generation of a copy may be smaller than the one in memory."""
    upgrade(postgres_url)
    with contextlib.closing(ControlPlane(postgres_url)) as control:
        promote(control, "v1")
        promote(control, "v2")
        assert control.active_version("fraud") == "v2"
        with psycopg.connect(postgres_url) as connection:
            connection.execute("update mlpkg.active_model set version = 'v1'")
            connection.execute("update mlpkg.control set generation = 0")
        assert wait_until(lambda: control.active_version("fraud") == "v1") < 5


def test_a_closed_control_plane_leaves_no_connection(postgres_url: str) -> None:
    upgrade(postgres_url)
    control = ControlPlane(postgres_url)
    control.tokens()
    control.close()
    database = Database(control.database.address)
    with database.read() as connection:
        others = (
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
            "and backend_type = 'client backend'"
        )
        assert wait_until(lambda: connection.exec_driver_sql(others).scalar_one() == 0) < 5
    database.close()
