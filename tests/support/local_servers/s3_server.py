"""Object storage that speaks S3, on a folder: s3s-fs, a server of the crate s3s."""

import contextlib
import secrets
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from local_servers import parts
from local_servers.process import HOST, Server


class S3(Server):
    """An S3 server; a bucket is a folder of `data`."""

    name = "S3"

    def find_parts(self) -> None:
        parts.s3()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def key(self) -> str:
        return self.remembered("key", lambda: secrets.token_hex(8))

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}"

    def storage_options(self) -> dict[str, str]:
        """What deltalake needs to write here."""
        return {
            "aws_access_key_id": self.key,
            "aws_secret_access_key": self.password,
            "aws_endpoint_url": self.endpoint,
            "aws_region": "us-east-1",
            "aws_allow_http": "true",
            "aws_conditional_put": "etag",
        }

    def settings(self) -> dict[str, str]:
        return {"archive": "s3://mlpkg/archive", **self.storage_options()}

    def make_bucket(self, name: str) -> str:
        """Make an empty bucket and return its URL."""
        (self.data / name).mkdir()
        return f"s3://{name}"

    def prepare(self) -> None:
        self.data.mkdir(mode=0o700, exist_ok=True)
        (self.data / "mlpkg").mkdir(exist_ok=True)

    def command(self) -> list[str | Path]:
        keys = ["--access-key", self.key, "--secret-key", self.password]
        return [parts.s3(), "--host", HOST, "--port", str(self.port), *keys, self.data]

    def answers(self) -> bool:
        with contextlib.suppress(URLError, ConnectionError):
            try:
                urlopen(self.endpoint, timeout=5).close()
            except HTTPError as error:
                return error.code == 403  # it runs, and does not know us
        return False
