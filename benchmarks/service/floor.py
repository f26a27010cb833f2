"""One decision beside its floor: the cost of the same work without mlpkg.

    python benchmarks/service/floor.py [--full] [-o FILE]

The floor is the sum of three parts. A bare HTTP echo under uvicorn reads a request and sends an answer of the same sizes. A
bare SQLite commit writes the same rows into a copy of the same store. A bare model call is LightGBM's fast call on a row that is
an array of C already. A decision in this process has no HTTP, so its floor has none either. All take turns, one request at a
time; figures are medians of turns.
"""

import argparse
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import apsw
from served import SERVERS, BenchmarkRow, Server, Servers, free_port, main, payments, row, sys

from mlpkg.decisions import Decider
from mlpkg.settings import Settings
from mlpkg.store import open_store

sys.path.insert(0, str(SERVERS))

from fast import Fast  # noqa: E402
from handbook import handbook  # noqa: E402

Statement = tuple[str, Any]  # SQL and its bindings
TURN = 200  # decisions of one way before the next one has its turn


class Recorder:
    """Records what a store writes: the pragmas of its connections and the statements of each transaction."""

    def __init__(self) -> None:
        self.pragmas: list[str] = []
        self.transactions: list[list[Statement]] = []

    def __enter__(self) -> "Recorder":
        apsw.connection_hooks.append(self._watch)
        return self

    def __exit__(self, *error: object) -> None:
        apsw.connection_hooks.remove(self._watch)

    def _watch(self, connection: apsw.Connection) -> None:
        connection.exec_trace = self._record

    def _record(self, cursor: Any, sql: str, bindings: Any) -> bool:
        verb = sql.split(maxsplit=1)[0].lower()
        if verb == "begin":
            self.transactions.append([])
        elif verb == "pragma" and "=" in sql:
            self.pragmas.append(sql)
        elif verb in ("insert", "update", "delete", "replace") and self.transactions:
            self.transactions[-1].append((sql, bindings))
        return True


def record_writes(state: Path, bodies: Sequence[bytes]) -> tuple[list[str], list[list[Statement]]]:
    """The pragmas of a store, and what it writes for each decision."""
    transactions = []
    with Recorder() as recorder:
        store = open_store(Settings(state=state))
        decider = Decider(handbook(), store)
        for body in bodies:
            recorder.transactions.clear()
            decider.decide(body)
            transactions.append([statement for written in recorder.transactions for statement in written])
        store.close()
    return list(dict.fromkeys(recorder.pragmas)), transactions


def committer(file: Path, pragmas: Sequence[str]) -> Callable[[Sequence[Statement]], None]:
    """A function that writes statements into a store in one transaction."""
    connection = apsw.Connection(str(file))
    for pragma in pragmas:
        connection.execute(pragma)
    execute = connection.cursor().execute

    def commit(statements: Sequence[Statement]) -> None:
        execute("begin immediate")
        for sql, bindings in statements:
            execute(sql, bindings)
        execute("commit")

    return commit


def start_echo(servers: Servers, length: int) -> Server:
    """A server that answers with so many bytes."""
    port, log = free_port(), servers.folder / "echo.log"
    with log.open("wb") as file:
        command = [sys.executable, "echo.py", str(port), str(length)]
        process = subprocess.Popen(command, cwd=SERVERS, stdout=file, stderr=file)
    server = Server("echo", process, port, "/", log, float)
    servers.callback(server.stop)
    server.wait()
    return server


def time_calls(call: Callable[[Any], Any], arguments: Sequence[Any]) -> float:
    """The median microseconds of a call."""
    durations = []
    for argument in arguments:
        began = time.perf_counter_ns()
        call(argument)
        durations.append(time.perf_counter_ns() - began)
    return median(durations) / 1000


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    turns = 50 if options.full else 10
    with Servers(options.folder) as servers:
        copies = {name: options.folder / name for name in ("recorded", "replayed", "measured")}
        for folder in copies.values():
            shutil.copytree(servers.made, folder)
        pragmas, transactions = record_writes(copies["recorded"], payments((turns + 1) * TURN))
        commit = committer(Settings(state=copies["replayed"]).store_path, pragmas)
        store = open_store(Settings(state=copies["measured"]))
        decider = Decider(handbook(), store)
        fast = Fast(str(servers.model.folder / "model.txt"))
        service = servers.ours()
        service.wait()
        echo = start_echo(servers, len(service.ask(payments(1)).answers[0]))
        figures: dict[str, list[float]] = {}
        for number in range(turns + 1):
            rows = [decider.decide(body).features.values() for body in payments(TURN)]
            turn = {
                "process": time_calls(decider.decide, payments(TURN)),
                "commit": time_calls(commit, transactions[number * TURN : (number + 1) * TURN]),
                "model": time_calls(fast.call, [fast.row(*values) for values in rows]),
                "service": service.ask(payments(TURN)).p50,
                "echo": echo.ask(payments(TURN)).p50,
            }
            if number:  # the first one warms up
                for name, figure in turn.items():
                    figures.setdefault(name, []).append(figure)
        store.close()
        yield from rows_of_table({name: median(values) for name, values in figures.items()})


def rows_of_table(p50: dict[str, float]) -> Iterator[BenchmarkRow]:
    """Both ways beside their floors."""
    commit, model, echo = p50["commit"], p50["model"], p50["echo"]
    work, note = "one decision", f"floor: commit {commit:.1f} µs, model call {model:.1f} µs"
    floor = commit + model
    yield row(f"{work} in this process, p50", p50["process"], "floor of commit and model", floor, "stated", "µs", note)
    floor, note = floor + echo, f"{note}, HTTP echo {echo:.0f} µs"
    peer = "floor of echo, commit and model"
    yield row(f"{work} over HTTP, one at a time, p50", p50["service"], peer, floor, "stated", "µs", note)


if __name__ == "__main__":
    main(__doc__ or "", measure)
