"""The demo of card payments on Kafka, Redis, PostgreSQL, object storage and Spark: `python tests/support/demo_platform.py`.

It runs mlpkg.examples.fraud.demo as `make demo` does, on servers of its own below build/demo-platform, with a process that keeps
the archive up to date. Then it makes one training set in three ways, decides the log again on an embedded store, and exits 1 if
anything differs. Its options are those of the demo.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from local_servers import parts
from local_servers.__main__ import SERVERS
from local_servers.guard import remove_all

from mlpkg.examples.fraud.policy import fraud
from mlpkg.lab.training import fingerprint
from mlpkg.store import decisions_of, open_store
from mlpkg.times import DAY, iso, now

FOLDER = Path(__file__).resolve().parents[2] / "build" / "demo-platform"
MLPKG = [sys.executable, "-m", "mlpkg.cli"]


class Failed(Exception):
    """A line that says what went wrong."""


def tell(what: str, words: str) -> None:
    print(f"  {what:16} {words}", flush=True)


def run(*arguments: str, **settings: str) -> str:
    """Run `mlpkg` with other settings than those of the environment; what it printed."""
    done = subprocess.run([*MLPKG, *arguments], env=os.environ | settings, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Failed(f"mlpkg {' '.join(arguments)} ended with {done.returncode}: {done.stdout.strip()[-2000:]}")
    return done.stdout


@contextmanager
def servers(folder: Path) -> Iterator[None]:
    """Run one server of each kind, named by the environment, and stop them by their process ids."""
    running = {name: kind(folder / name) for name, kind in SERVERS.items()}
    try:
        for server in running.values():
            server.start()
            tell(server.name, f"runs on {server.address}")
            for name, value in server.settings().items():
                os.environ[name.upper() if name.startswith("aws_") else f"MLPKG_{name.upper()}"] = value
        os.environ |= {"MLPKG_STORE": "cluster", "MLPKG_NAMESPACE": "demo", "MLPKG_KAFKA_PROTOCOL": "SASL_PLAINTEXT"}
        yield
    finally:
        for server in running.values():
            server.stop()


@contextmanager
def archive_writer(log: Path) -> Iterator[None]:
    """Keep the archive up to date in a process of its own."""
    with log.open("ab") as file:
        command = ["nice", "-n", "5", *MLPKG, "export", "--delta", "--every", "5"]
        writer = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        yield
        if writer.poll() is not None:
            raise Failed(f"the archive writer ended with {writer.returncode}, see {log}")
    finally:
        writer.terminate()
        writer.wait()


def demo(folder: Path, options: list[str]) -> dict[str, Any]:
    """Run the demo and return its summary."""
    module = [sys.executable, "-m", "mlpkg.examples.fraud.demo", "--folder", str(folder), *options]
    if status := subprocess.run(module).returncode:
        raise Failed(f"the demo ended with {status}")
    os.environ["MLPKG_STATE"] = str(folder / "state")
    return json.loads((folder / "summary.json").read_text("utf-8"))


def compare_training_sets(folder: Path) -> None:
    """Make the training set of five weeks by the local engine, by Spark, and straight from the log."""
    until = now() // DAY * DAY + DAY
    span = ("--from", iso(until - 36 * DAY), "--to", iso(until), "--as-of", iso(until - DAY))
    ways: dict[str, tuple[list[str], dict[str, str]]] = {
        "local engine": ([], {}),
        "Spark": (["--engine", "spark"], {}),
        "from the log": ([], {"MLPKG_ARCHIVE": ""}),
    }
    hashes = {}
    for name, (options, settings) in ways.items():
        began, file = time.monotonic(), folder / f"{name}.parquet"
        run("training-set", "fraud", *span, *options, "-o", str(file), **settings)
        rows = pd.read_parquet(file)
        hashes[name] = fingerprint(rows)
        tell(name, f"{len(rows)} rows in {time.monotonic() - began:.0f} s, content {hashes[name][:16]}")
    if len({*hashes.values()}) > 1:
        raise Failed("the training sets differ")


def compare_with_embedded(folder: Path, decisions: int) -> None:
    """Decide the log in its order on a fresh embedded store, by the models that decided, and compare every bit."""
    store = open_store(create=False)
    first = next(store.read(streams=[decisions_of("fraud")])).arrived
    store.close()
    span = ("--from", iso(first), "--to", iso(now()))
    done = json.loads(run("replay", "fraud", *span, "--into", str(folder), "--model", "recorded", "--json"))
    features = len(fraud.features.names)
    tell(
        "embedded", f"{done['equal']} of {done['decided']} decisions equal: {features} features each, score and action"
    )
    if not decisions == done["decided"] == done["equal"] == done["decisions"]:
        raise Failed(f"{decisions} decisions were acknowledged; the embedded store says {done}")
    settings = {"MLPKG_STORE": "sqlite", "MLPKG_STATE": str(folder)}
    tell("verify", run("verify", "fraud", **settings).strip())


def main(options: list[str]) -> None:
    began = time.monotonic()
    for kind in SERVERS.values():
        kind(FOLDER).find_parts()
    remove_all(FOLDER)  # of the last time
    FOLDER.mkdir(parents=True, mode=0o711)
    with servers(FOLDER / "servers"):
        run("up")
        with archive_writer(FOLDER / "archive.log"):
            summary = demo(FOLDER / "demo", options)
        print("\nThe same on all five engines", flush=True)
        new = json.loads(run("export", "--delta", "--json"))
        tell("archive", f"{new['archive']} has the log up to position {new['position']}")
        compare_training_sets(FOLDER)
        compare_with_embedded(FOLDER / "embedded", summary["decisions"])
    tell("time", f"{time.monotonic() - began:.0f} s; the servers are stopped")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main(sys.argv[1:])
    except parts.Missing as missing:
        sys.exit(f"demo-platform: {missing.part} is missing; get what the servers need with: {parts.INSTALL}")
    except Failed as failure:
        sys.exit(f"demo-platform: {failure}")
    except KeyboardInterrupt:
        sys.exit("demo-platform: stopped")
