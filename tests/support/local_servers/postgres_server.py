"""PostgreSQL, which refuses to run as root: then it runs as the user that Debian made for it."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import LiteralString, Self

import psycopg
from psycopg import sql

from local_servers import parts
from local_servers.process import HOST, PATIENCE, Server, ServerError, write_private

USER = "mlpkg"
CONFIGURATION = """
listen_addresses = '{host}'
port = {port}
unix_socket_directories = ''
max_connections = 200
shared_buffers = 64MB
wal_level = logical
"""
# Who reads the changes of a database, and from where on.
FOLLOWERS = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = %s AND active"
SLOTS = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s AND NOT active"


class Postgres(Server):
    """One PostgreSQL server with a database and a superuser `mlpkg`; its write-ahead log can be decoded."""

    name = "PostgreSQL"
    stop_signal = signal.SIGINT  # ends sessions; SIGTERM waits for them

    def find_parts(self) -> None:
        parts.postgres("initdb")

    @property
    def user(self) -> str | None:
        return _other_user() if os.geteuid() == 0 else None

    @property
    def home(self) -> Path:
        """The folder that belongs to `user`: with the data, and elsewhere if the user cannot enter ours."""
        return (self.folder / "home").resolve()

    def url_of(self, database: str) -> str:
        return f"postgresql://{USER}:{self.password}@{self.address}/{database}"

    @property
    def url(self) -> str:
        return self.url_of(USER)

    def settings(self) -> dict[str, str]:
        return {"postgres": self.url}

    def prepare(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)  # of a start that was cut off
        if self.user and not all(folder.stat().st_mode & 0o001 for folder in (self.folder, *self.folder.parents)):
            elsewhere = tempfile.mkdtemp(prefix="mlpkg-postgres-")
            (self.folder / "home").unlink(missing_ok=True)
            (self.folder / "home").symlink_to(elsewhere)
        self.home.mkdir(mode=0o700, exist_ok=True)
        secret = self.home / "password"
        write_private(secret, self.password)
        if self.user:
            shutil.chown(self.home, self.user, self.user)
            shutil.chown(secret, self.user, self.user)
        self._initdb(secret)
        secret.unlink()
        with (self.home / "data" / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION.format(host=HOST, port=self.port))

    def _initdb(self, secret: Path) -> None:
        options = ["--username", USER, "--auth", "scram-sha-256", "--pwfile", secret]
        locale = ["--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync", "--no-instructions"]
        made = subprocess.run(
            [parts.postgres("initdb"), "--pgdata", self.home / "data", *options, *locale],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            **self.owner(),
        )
        if made.returncode:
            raise ServerError(f"initdb failed:\n{made.stdout}{made.stderr}")

    def command(self) -> list[str | Path]:
        return [parts.postgres("postgres"), "-D", self.home / "data"]

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url_of("postgres"), connect_timeout=5).close()
            return True
        except psycopg.OperationalError:
            return False

    def start(self) -> Self:
        super().start()
        if not self.state().get("database"):
            self.make_database(USER)
            self.remember(database=USER)
        return self

    def make_database(self, name: str) -> str:
        """Make an empty database and return its URL."""
        self._execute("CREATE DATABASE {}", name)
        return self.url_of(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, also one that somebody uses or follows."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                with psycopg.connect(self.url_of("postgres"), autocommit=True) as connection:
                    connection.execute(FOLLOWERS, [name])
                    connection.execute(SLOTS, [name])
                self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
                return
            except psycopg.errors.ObjectInUse:  # a follower takes a moment to end
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def _execute(self, statement: LiteralString, database: str) -> None:
        with psycopg.connect(self.url_of("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(database)))


def _other_user() -> str:
    """The user that a server runs as which we, as root, start."""
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        raise parts.Missing("the user postgres", "useradd --system --user-group postgres") from None
