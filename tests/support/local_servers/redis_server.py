"""Redis, as Debian ships it: with a password, and with its commands on disk."""

import shutil
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from local_servers import parts
from local_servers.process import HOST, Server, write_private

# One line a setting; nothing but the append-only file brings the data back.
CONFIGURATION = """
bind {host}
port {port}
protected-mode yes
requirepass {password}
dir {data}
appendonly yes
appendfsync everysec
save ""
databases 16
daemonize no
"""


class Redis(Server):
    """One Redis server."""

    name = "Redis"

    def find_parts(self) -> None:
        parts.redis()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{self.address}/0"

    def settings(self) -> dict[str, str]:
        return {"redis": self.url}

    def prepare(self) -> None:
        self.data.mkdir(mode=0o700, exist_ok=True)
        text = CONFIGURATION.format(host=HOST, port=self.port, password=self.password, data=self.data)
        write_private(self.folder / "redis.conf", text)

    def command(self) -> list[str | Path]:
        return [parts.redis(), self.folder / "redis.conf"]

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), socket_timeout=5) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):  # while it reads its data, too
            return False

    def delete_keys(self, prefix: str) -> None:
        """Delete the keys that begin with `prefix`."""
        with self.client() as client:
            for key in client.scan_iter(f"{prefix}*", count=10_000):
                client.unlink(key)

    def lose_data(self) -> None:
        """Kill it and remove what it has on disk; the next start begins with nothing."""
        self.kill()
        shutil.rmtree(self.data)
        self.data.mkdir(mode=0o700)
