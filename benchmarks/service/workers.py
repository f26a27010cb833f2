"""Two workers on one store against one, and what clients notice when one of two is killed.

    python benchmarks/service/workers.py [--full] [-o FILE]

Both services run as `mlpkg serve` runs them, and take turns; each of the two workers has half of the connections. For the
kill, each client sends one payment after the other. It sends a payment again if the connection breaks or no answer comes. The
silence is the longest time that any payment waited for its answer. The killed worker is back when another process answers in its
place.
"""

import argparse
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from statistics import median

from load import Connection, post
from served import BenchmarkRow, Server, Servers, json, main, payments, row

CLIENTS, PATIENCE = 8, 20.0


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    rounds, size, kills = (20, 10_000, 10) if options.full else (6, 1500, 2)
    with Servers(options.folder) as servers:
        single, pair = servers.ours(), servers.ours(WORKERS="2")
        for server in (single, pair):
            server.wait()
        workers_of(pair, 2)
        rates: dict[str, list[float]] = {"one": [], "two": []}
        p99s: dict[str, list[float]] = {"one": [], "two": []}
        for number in range(rounds + 1):
            for name, server, count in (("one", single, 1), ("two", pair, 2))[:: 1 if number % 2 else -1]:
                connections = connected(server, 16, count)
                result = server.ask(payments(size), connections)
                for connection in connections:
                    connection.close()
                if number:
                    rates[name].append(result.rate)
                    p99s[name].append(result.p99 / 1000)
        work, note = "two workers on one store, 16 at once", "any answer but 200 would have ended it: 0 errors"
        rate, p99 = ({name: median(turns) for name, turns in each.items()} for each in (rates, p99s))
        yield row(f"{work}: throughput", rate["two"], "one", rate["one"], "ours / theirs >= 0.95", "a second", note)
        yield row(f"{work}: p99", p99["two"], "one", p99["one"], "ours / theirs <= 2", "ms")
        single.stop()

        silences, backs = [], []
        for _ in range(kills):
            silence, back = kill_one(pair)
            silences.append(silence)
            backs.append(back)
        work, note = "a worker killed, two running", f"{kills} kills, {CLIENTS} clients that retry"
        yield row(f"{work}: longest silence", max(silences), "", None, "ours <= 0.5", "s", note)
        yield row(f"{work}: the killed one is back after", max(backs), "", None, "ours <= 10", "s", note)


def who(connection: Connection) -> int:
    """Return the id of the process at the other end of a connection."""
    return json.loads(connection.ask(b"GET /watch HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"))["pid"]


def connected(server: Server, number: int, workers: int) -> list[Connection]:
    """Open connections, the same number to each worker."""
    by_worker: dict[int, list[Connection]] = {}
    until = time.monotonic() + PATIENCE
    while sum(len(c[: number // workers]) for c in by_worker.values()) < number:
        if time.monotonic() > until:
            raise RuntimeError(f"{len(by_worker)} of {workers} workers answer")
        connection = Connection(server.port)
        by_worker.setdefault(who(connection), []).append(connection)
    for connections in by_worker.values():
        for connection in connections[number // workers :]:
            connection.close()
    return [c for each in zip(*(c[: number // workers] for c in by_worker.values()), strict=True) for c in each]


def workers_of(server: Server, number: int, others: frozenset[int] = frozenset()) -> set[int]:
    """Wait until `number` processes answer, and return their ids."""
    seen: set[int] = set()
    until = time.monotonic() + PATIENCE
    while len(seen) < number:
        if time.monotonic() > until:
            raise RuntimeError(f"after {PATIENCE:g} s, {len(seen)} of {number} workers answer")
        with suppress(OSError, RuntimeError):
            connection = Connection(server.port, 1.0)
            seen |= {who(connection)} - others
            connection.close()
        time.sleep(0.01)
    return seen


def kill_one(server: Server) -> tuple[float, float]:
    """Kill a worker. Return the longest wait for an answer, and the time until another worker answers, in seconds."""
    before = workers_of(server, 2)
    over, waited = threading.Event(), []
    clients = [threading.Thread(target=lambda: waited.append(keep_asking(server, over))) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    time.sleep(1)
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    began = time.monotonic()
    workers_of(server, 2, frozenset({killed}))
    back = time.monotonic() - began
    time.sleep(0.5)
    over.set()
    for client in clients:
        client.join()
    return max(waited), back


def keep_asking(server: Server, over: threading.Event) -> float:
    """Send payments, each until it is answered. Return the longest wait in seconds."""
    connection: Connection | None = None
    longest = 0.0
    while not over.is_set():
        request = post(server.path, payments(1)[0])
        began = time.monotonic()
        while True:
            try:
                connection = connection or Connection(server.port, 1.0)
                connection.ask(request)
                break
            except OSError:
                connection = None
                if time.monotonic() - began > PATIENCE:
                    raise
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.005)  # so that eight threads leave this process time
    return longest


if __name__ == "__main__":
    main(__doc__ or "", measure)
