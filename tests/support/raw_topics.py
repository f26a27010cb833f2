"""An application that writes straight to Kafka, and processes of `mlpkg stream` that decide what it writes."""

import atexit
import json
import os
import subprocess
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from mlpkg.settings import Settings


def variables(settings: Settings, use_cases: str = "fraud = handbook:fraud") -> dict[str, str]:
    """The environment in which a process has these settings."""
    values = settings.model_dump(exclude={"env", "root", "use_cases"}, exclude_defaults=True)
    return {f"MLPKG_{name.upper()}": str(value) for name, value in values.items()} | {"MLPKG_USE_CASES": use_cases}


class RawTopics:
    """Writes raw events, as an application does that knows nothing of mlpkg but the names of the topics."""

    def __init__(self, settings: Settings, server: Any, **options: Any):
        self.settings = settings
        self.producer = Producer(server.client_settings() | {"linger.ms": 5, "log_level": 0} | options)

    def send(
        self,
        stream: str,
        body: Mapping[str, Any] | bytes | None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Write one message."""
        value = json.dumps(body).encode() if isinstance(body, Mapping) else body
        topic, pairs = f"{self.settings.namespace}.raw.{stream}", [*(headers or {}).items()]
        self.producer.produce(topic, value, key, headers=pairs)  # type: ignore[arg-type]
        self.producer.poll(0)

    def flush(self) -> None:
        """Wait until all are acknowledged."""
        assert self.producer.flush(30) == 0


class StreamProcess:
    """A process of `mlpkg stream fraud`; it ends with the process of the tests at the latest."""

    def __init__(self, settings: Settings, folder: Path, *options: str, use_case: str = "fraud"):
        command = [str(Path(sysconfig.get_path("scripts"), "mlpkg")), "stream", use_case, *options]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | variables(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.process.kill)

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.communicate()

    def stop(self) -> str:
        """End it as an operator does; return what it printed."""
        self.process.terminate()
        return self.wait()

    def wait(self) -> str:
        """Wait until it ends by itself; return what it printed."""
        out, err = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, err
        return out


def until(is_true: Any, seconds: float = 90) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)
