"""Fixtures of real servers: one of each for a whole run, started by the first test that needs one, shared by all workers.

A test keeps to what is its own on a shared server: topics and keys that begin with its prefix, its database, its bucket. A test
that stops a server, or needs three brokers, has servers of its own from `own_server`.
"""

import fcntl
import os
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import pytest
from local_servers import parts
from local_servers.guard import remove_all
from local_servers.parts import Missing
from paths import SUPPORT

if TYPE_CHECKING:
    from local_servers.connect_server import Connect
    from local_servers.kafka_server import Kafka
    from local_servers.postgres_server import Postgres
    from local_servers.redis_server import Redis
    from local_servers.s3_server import S3

    from mlpkg.settings import Settings

FOLDER = "TEST_SERVERS"  # the variable that says to the workers where the servers of this run are
STARTER = "TEST_SERVERS_STARTER"  # and which process removes them in the end
MISSING = "is missing; get it with: "


class _Server(Protocol):
    def start(self) -> Self: ...
    def remove(self) -> None: ...


T = TypeVar("T")
Kind = TypeVar("Kind", bound=_Server)


def pytest_configure() -> None:
    """Choose a folder for the servers of this run, which a user of the system who is not us can enter."""
    if FOLDER not in os.environ:
        os.environ[FOLDER] = str(Path(tempfile.gettempdir()) / f"mlpkg-servers-{secrets.token_hex(8)}")
        os.environ[STARTER] = str(os.getpid())


def pytest_unconfigure() -> None:
    if os.environ.get(STARTER) == str(os.getpid()):
        remove_all(Path(os.environ.pop(FOLDER)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the parts that were not there, with the commands that get them."""
    reasons = [str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])]
    missing = Counter(reason.removeprefix("Skipped: ") for reason in reasons if MISSING in reason)
    if missing:
        terminalreporter.section("tests left out, as a server was not there")
        for reason, number in sorted(missing.items()):
            terminalreporter.line(f"{number:5} left out: {reason}")


def _folder() -> Path:
    """The folder of this run; a guard removes its servers should this run be killed."""
    folder = Path(os.environ[FOLDER])
    try:
        folder.mkdir(mode=0o711)
    except FileExistsError:
        return folder
    guard = [sys.executable, "-m", "local_servers.guard", str(folder), os.environ[STARTER]]
    subprocess.Popen(
        guard,
        cwd=SUPPORT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ).returncode = 0  # nobody waits for it
    return folder


def _got(get: Callable[[], T]) -> T:
    """Get a part; where it is missing, leave the test out, or let it fail where CI is set."""
    try:
        return get()
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


def _shared(kind: Callable[[Path], Kind], name: str) -> Kind:
    folder = _folder()
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _got(kind(folder / name).start)


@pytest.fixture(scope="session")
def java() -> Path:
    """The Java that a local Spark needs."""
    return _got(parts.java)


@pytest.fixture(scope="session")
def kafka_server() -> "Kafka":
    """The Kafka of this run, one broker: `client_settings()` is what clients of confluent-kafka need."""
    from local_servers.kafka_server import Kafka

    patience = {"broker.session.timeout.ms": 30_000}  # nobody kills it, and a busy machine lets it wait
    return _shared(lambda folder: Kafka(folder, options=patience), "kafka")


@pytest.fixture(scope="session")
def connect_server(kafka_server: "Kafka") -> "Connect":
    """The Kafka Connect of this run, with Debezium's connector for PostgreSQL."""
    from local_servers.connect_server import Connect

    return _shared(lambda folder: Connect(folder, kafka_server), "connect")


@pytest.fixture(scope="session")
def redis_server() -> "Redis":
    """The Redis of this run."""
    from local_servers.redis_server import Redis

    return _shared(Redis, "redis")


@pytest.fixture(scope="session")
def postgres_server() -> "Postgres":
    """The PostgreSQL of this run."""
    from local_servers.postgres_server import Postgres

    return _shared(Postgres, "postgres")


@pytest.fixture(scope="session")
def s3_server() -> "S3":
    """The object storage of this run: `storage_options()` is what deltalake needs."""
    from local_servers.s3_server import S3

    return _shared(S3, "s3")


def _own_name() -> str:
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def kafka_prefix(kafka_server: "Kafka") -> Iterator[str]:
    """What the topics of one test begin with; they are deleted after it."""
    prefix = f"{_own_name()}-"
    yield prefix
    kafka_server.delete_topics(prefix)


@pytest.fixture
def redis_prefix(redis_server: "Redis") -> Iterator[str]:
    """What the keys of one test begin with; they are deleted after it."""
    prefix = f"{_own_name()}:"
    yield prefix
    redis_server.delete_keys(prefix)


@pytest.fixture
def postgres_url(postgres_server: "Postgres") -> Iterator[str]:
    """The URL of an empty database for one test."""
    name = _own_name()
    yield postgres_server.make_database(name)
    postgres_server.drop_database(name)


@pytest.fixture
def bucket(s3_server: "S3") -> str:
    """The URL of an empty bucket for one test."""
    return s3_server.make_bucket(_own_name())


@pytest.fixture
def on_servers(
    kafka_server: "Kafka", redis_server: "Redis", postgres_server: "Postgres", tmp_path: Path
) -> Iterator["Settings"]:
    """The settings of a new, empty store on the servers of this run; what it holds is removed after the test."""
    from mlpkg.settings import Settings
    from mlpkg.store.opening import store_place

    servers: dict[str, Any] = kafka_server.settings() | redis_server.settings() | postgres_server.settings()
    own: dict[str, Any] = {"namespace": _own_name(), "kafka_protocol": "SASL_PLAINTEXT"}
    settings = Settings(state=tmp_path / "on-servers", store="cluster", **own, **servers)
    yield settings
    store_place(settings).remove()  # type: ignore[attr-defined]


def _own_servers() -> Iterator[Callable[..., _Server]]:
    servers: list[_Server] = []

    def start(kind: Callable[..., Kind], **options: object) -> Kind:
        server = kind(_folder() / _own_name(), **options)
        servers.append(server)
        return _got(server.start)

    yield start
    for server in servers:
        server.remove()


@pytest.fixture
def own_server() -> Iterator[Callable[..., _Server]]:
    """A function that starts a server for this test alone: `own_server(Kafka, brokers=3)`."""
    yield from _own_servers()


@pytest.fixture(scope="module")
def module_server() -> Iterator[Callable[..., _Server]]:
    """A function that starts a server for the tests of this module."""
    yield from _own_servers()
