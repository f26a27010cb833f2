"""`python -m local_servers start|stop|remove FOLDER`, `python -m local_servers install`."""

import fcntl
import sys
from pathlib import Path

from local_servers import parts
from local_servers.guard import remove_all
from local_servers.kafka_server import Kafka
from local_servers.parts import Missing
from local_servers.postgres_server import Postgres
from local_servers.process import ServerError
from local_servers.redis_server import Redis
from local_servers.s3_server import S3

SERVERS: dict[str, type[Kafka | Redis | Postgres | S3]] = {
    "kafka": Kafka,
    "redis": Redis,
    "postgres": Postgres,
    "s3": S3,
}


def start(folder: Path) -> list[str]:
    """Start one of each that can be had, and say how to reach them; return what was wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the second of two commands finds that they run
        return _start_all(folder)


def _start_all(folder: Path) -> list[str]:
    problems, settings = [], {"store": "cluster", "kafka_protocol": "SASL_PLAINTEXT"}
    for name, kind in SERVERS.items():
        server = kind(folder / name)
        ran = server.is_running
        try:
            server.start()
        except (Missing, ServerError) as error:
            problems.append(f"{server.name}: {error}")
            continue
        print(
            f"{server.name:<11}{'runs' if ran else 'started'} on {server.address}, its log is {server.log}", flush=True
        )
        settings |= server.settings()
    _show(settings)
    return problems


def _show(settings: dict[str, str]) -> None:
    """Print what leads to the servers: settings, and the variables that clients of object storage read."""
    variables = {name.upper(): settings.pop(name) for name in [*settings] if name.startswith("aws_")}
    if "archive" in settings:
        settings["models"] = "s3://mlpkg/models"
    lines = ["", "For [local] in settings.ini:", *(f"{name} = {value}" for name, value in settings.items())]
    if variables:
        lines += ["", "For the shell, as archive and models lie in S3:"]
        lines += [f"export {name}={value}" for name, value in variables.items()]
    print("\n".join([*lines, "", "Then: mlpkg up"]))


def stop(folder: Path) -> list[str]:
    """Stop those that run; their data stay."""
    for name, kind in SERVERS.items():
        if (folder / name).is_dir() and (server := kind(folder / name)).is_running:
            server.stop()
            print(f"{server.name:<11}stopped", flush=True)
    return []


def remove(folder: Path) -> list[str]:
    """Kill those that run, and remove the folder."""
    remove_all(folder)
    return []


def install() -> list[str]:
    """Get what needs no administrator; return what is still missing."""
    return [str(missing) for missing in parts.install()]


if __name__ == "__main__":
    action, *folders = sys.argv[1:]
    problems = {"start": start, "stop": stop, "remove": remove, "install": install}[action](*map(Path, folders))
    if problems:
        sys.exit("\n".join(problems))
