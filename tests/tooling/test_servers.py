"""The servers of tests and of `make servers`: they keep their data, name what is missing, and end with who started them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import psycopg
import pytest
import redis
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import NewTopic
from local_servers import parts
from local_servers.kafka_server import Kafka
from local_servers.parts import Missing
from local_servers.postgres_server import Postgres
from local_servers.process import Server, ServerError
from local_servers.redis_server import Redis
from local_servers.s3_server import S3
from paths import ROOT, SUPPORT
from redis.backoff import NoBackoff
from redis.retry import Retry

RUN = """
import os, sys, time
def test_one(redis_server):
    with redis_server.client() as client:
        assert client.ping()
    print("READY", os.environ["TEST_SERVERS"], redis_server.pid, file=sys.stderr, flush=True)
    time.sleep(float(os.environ.get("WAIT", 0)))
"""


def pytest_in(folder: Path, **variables: str) -> tuple[list[str], dict[str, str]]:
    """The command of a run of the tests in a folder, and its environment: a run of its own, with its own servers."""
    (folder / "test_one.py").write_text(RUN)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TEST_SERVERS", "CI"))}
    command = [sys.executable, "-m", "pytest", "-p", "servers", "-p", "no:cacheprovider", "-q", "-s", "test_one.py"]
    return command, env | {"PYTHONPATH": str(SUPPORT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | variables


def ended(pid: int) -> bool:
    """Wait until a process has ended."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_redis_has_its_data_after_a_kill_and_nothing_after_a_loss(own_server: Callable[..., Redis]):
    server = own_server(Redis)
    with server.client() as client:
        client.config_set("appendfsync", "always")  # and not every second, for which this would have to wait
        client.set("a", 1)
    server.kill()
    assert not server.is_running
    with server.start().client() as client:
        assert client.get("a") == b"1"
    server.lose_data()
    with server.start().client() as client:
        assert client.get("a") is None
    with (
        pytest.raises(redis.AuthenticationError),
        redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as stranger,
    ):
        stranger.ping()


def test_a_server_that_stands_still_answers_when_it_goes_on(own_server: Callable[..., Redis]):
    server = own_server(Redis)
    server.pause()
    with redis.Redis.from_url(server.url, socket_timeout=0.3) as client:
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        assert client.ping()
    server.pause()
    server.stop()  # not before it goes on
    assert not server.is_running


def test_postgres_has_what_was_committed_after_a_kill(own_server: Callable[..., Postgres]):
    server = own_server(Postgres)
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE a AS SELECT 1 AS b")
    with pytest.raises(psycopg.OperationalError), psycopg.connect(server.url) as connection:
        connection.execute("INSERT INTO a VALUES (2)")
        server.kill()  # before the commit
    with psycopg.connect(server.start().url) as connection:
        assert connection.execute("SELECT b FROM a").fetchall() == [(1,)]
        assert connection.execute("SHOW wal_level").fetchone() == ("logical",)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(server.url.replace(server.password, "guess"))


def test_s3_lets_in_who_has_the_key(s3_server: S3, bucket: str):
    """And what is written through deltalake is a table."""
    from deltalake import DeltaTable, write_deltalake
    from pyarrow import table

    options = s3_server.storage_options()
    write_deltalake(f"{bucket}/numbers", table({"a": [1, 2]}), storage_options=options)
    s3_server.start()  # which runs already
    assert DeltaTable(f"{bucket}/numbers", storage_options=options).to_pyarrow_table().num_rows == 2
    with pytest.raises(HTTPError, match="403"):
        urlopen(f"{s3_server.endpoint}/{bucket.removeprefix('s3://')}/numbers")


def test_kafka_has_what_was_acknowledged_after_a_kill(own_server: Callable[..., Kafka]):
    """And a user that it does not know is refused, one that may do nothing sees no topic."""
    server = own_server(Kafka)
    server.admin.create_topics([NewTopic("events", 1)])["events"].result()
    producer = Producer(server.client_settings() | {"acks": "all"})
    errors: list[object] = []
    producer.produce("events", b"one", on_delivery=lambda error, message: errors.append(error))
    assert producer.flush(60) == 0 and errors == [None]
    consumer = Consumer(server.client_settings() | {"group.id": "a", "auto.offset.reset": "earliest"})
    server.kill()
    server.start()
    consumer.subscribe(["events"])
    message = consumer.poll(60)
    assert message is not None and message.value() == b"one"
    consumer.close()
    limited = Consumer(server.add_user("limited") | {"group.id": "b"})
    assert "events" not in limited.list_topics(timeout=30).topics
    limited.close()
    stranger = Consumer(server.client_settings("limited", "guess") | {"group.id": "c", "log_level": 0})
    with pytest.raises(KafkaException):
        stranger.list_topics(timeout=1)
    stranger.close()


def test_tests_share_a_server_and_find_nothing_of_each_other(
    redis_server: Redis, redis_prefix: str, postgres_server: Postgres, postgres_url: str
):
    again = Redis(redis_server.folder)
    assert again.start().pid == redis_server.pid
    with redis_server.client() as client:
        client.set(f"{redis_prefix}a", 1)
        client.set("another:a", 1)
        redis_server.delete_keys(redis_prefix)
        assert client.get(f"{redis_prefix}a") is None and client.get("another:a") == b"1"
        client.delete("another:a")
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE a (b int)")
    with psycopg.connect(postgres_server.url) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("SELECT * FROM a")


def test_a_process_that_has_the_id_of_a_server_by_chance_is_left_alone(own_server: Callable[..., Redis]):
    server = own_server(Redis)
    server.stop()
    with subprocess.Popen(["sleep", "60"]) as bystander:
        server.remember(pid=bystander.pid)
        assert not server.is_running
        server.stop()
        server.kill()
        assert bystander.poll() is None
        bystander.kill()


def test_a_server_that_ends_at_once_says_why(own_server: Callable[..., Redis]):
    server = own_server(Redis)
    server.stop()
    with (server.folder / "redis.conf").open("a") as file:
        file.write("no-such-setting 1\n")
    with pytest.raises(ServerError, match=r"(?s)Redis ended; its log .*no-such-setting"):
        server.start()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Kafka, "Java 17 is missing; get it with: apt-get install -y --no-install-recommends openjdk-17-jre-headless"),
        (Redis, "Redis is missing; get it with: apt-get install -y --no-install-recommends redis-server"),
        (Postgres, "PostgreSQL is missing; get it with: apt-get install -y --no-install-recommends postgresql"),
        (S3, "the S3 server s3s-fs is missing; get it with: make servers-install"),
    ],
)
def test_a_missing_part_is_named_with_the_command_that_gets_it(
    kind: type[Server] | type[Kafka], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(parts, "POSTGRES", "/nowhere/*/bin")
    with pytest.raises(Missing, match=re.escape(message)):
        kind(tmp_path / "server").start()


def test_jars_and_their_maven_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        Missing, match="the folder with the jars of kafka is missing; get it with: make servers-install"
    ):
        parts.jars("kafka")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(parts, "CARGO", Path("/nowhere"))
    missing = [str(part) for part in parts.install()]
    assert "Maven is missing; get it with: apt-get install -y --no-install-recommends maven" in missing
    assert any("cargo" in part for part in missing)


def test_what_was_left_out_is_listed_and_fails_where_ci_is_set(tmp_path: Path):
    command, env = pytest_in(tmp_path, PATH="")
    left_out = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert left_out.returncode == 0
    assert "1 left out: Redis is missing; get it with: apt-get install" in left_out.stdout
    failed = subprocess.run(command, cwd=tmp_path, env=env | {"CI": "true"}, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "Redis is missing; get it with: apt-get install" in failed.stdout


def test_servers_end_with_the_run_also_when_it_is_killed(redis_server: Redis, tmp_path: Path):
    command, env = pytest_in(tmp_path)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    _, folder, pid = re.search(r"(READY) (\S+) (\d+)", done.stderr).groups()  # type: ignore[union-attr]
    assert int(pid) != redis_server.pid and ended(int(pid)) and not Path(folder).exists()
    with subprocess.Popen(
        command, cwd=tmp_path, env=env | {"WAIT": "60"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as run:
        line = next(line for line in run.stderr or () if line.startswith("READY"))
        run.send_signal(signal.SIGKILL)
    _, folder, pid = line.split()
    assert ended(int(pid))
    until = time.monotonic() + 30
    while Path(folder).exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(folder).exists()


def test_make_servers_starts_what_can_be_had_and_make_servers_stop_stops_it(tmp_path: Path):
    """In a copy of the folder, and with an empty cache: without Kafka and S3, which are named."""
    checkout = tmp_path / "checkout"
    shutil.copytree(SUPPORT, checkout / "tests" / "support", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "Makefile", checkout)
    (checkout / ".venv").symlink_to(ROOT / ".venv")  # of which `make clean` removes the link

    def make(target: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of the `make` that runs these tests
            env.pop(name, None)
        command = ["make", "-o", ".venv/.installed", target]
        return subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True)

    started = make("servers")
    running = [Redis(checkout / "build/servers/redis"), Postgres(checkout / "build/servers/postgres")]
    pids = [server.pid for server in running]
    try:
        assert started.returncode != 0  # as two are missing
        assert "S3: the S3 server s3s-fs is missing; get it with: make servers-install" in started.stderr
        assert (
            "Kafka: the folder with the jars of kafka is missing; get it with: make servers-install" in started.stderr
        )
        assert f"redis = {running[0].url}\n" in started.stdout and f"postgres = {running[1].url}\n" in started.stdout
        again = make("servers")
        assert len(re.findall(r"^(Redis|PostgreSQL) +runs on ", again.stdout, re.MULTILINE)) == 2
        assert pids == [server.pid for server in running] and None not in pids
    finally:
        stopped = make("servers-stop")
    assert stopped.returncode == 0 and "Redis      stopped" in stopped.stdout
    assert not any(server.is_running for server in running)
    assert make("servers-stop").stdout == ""
    home = running[1].home  # outside the folder if the user who runs it cannot enter that
    assert home.exists() and make("clean").returncode == 0 and not home.exists()
