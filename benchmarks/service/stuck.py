"""Probes and decisions while another process has the store locked, and while an fsync takes six seconds.

    python benchmarks/service/stuck.py [--full] [-o FILE]

One worker runs under uvicorn. For five seconds (twenty in full), two clients ask for decisions, one for /v1/health and one for
/v1/ready.
"""

import argparse
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from http.client import HTTPConnection

import numpy as np
from served import BenchmarkRow, Server, Servers, main, payments, row

FORMS = {
    "another process has the store locked": {},
    "an fsync takes 6 s longer": {"MLPKG_DURABILITY": "disk", "SLOWER": "6"},
}


def keep_asking(
    server: Server, path: str, seconds: float, latencies: dict[str, list[float]], statuses: set[int]
) -> None:
    """Send one request again and again. Keep how long each answer took, and the status of each decision."""
    until, connection = time.monotonic() + seconds, HTTPConnection("127.0.0.1", server.port, timeout=30)
    while time.monotonic() < until:
        began = time.perf_counter()
        body = payments(1)[0] if path == server.path else None
        connection.request("POST" if body else "GET", path, body, {"content-type": "application/json"} if body else {})
        answer = connection.getresponse()
        answer.read()
        latencies.setdefault(path, []).append(time.perf_counter() - began)
        if body:
            statuses.add(answer.status)
        time.sleep(0.01)
    connection.close()


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    seconds = 20.0 if options.full else 5.0
    with Servers(options.folder) as servers:
        for what, more in FORMS.items():
            server = servers.ours("uvicorn", **more)
            server.wait()
            assert server.state is not None
            latencies: dict[str, list[float]] = {}
            statuses: set[int] = set()
            lock = nullcontext() if more else closing(sqlite3.connect(server.state / "mlpkg.db", isolation_level=None))
            with lock as store:
                if store is not None:
                    store.execute("begin immediate")
                paths = ("/v1/health", "/v1/ready", server.path, server.path)
                threads = [
                    threading.Thread(target=keep_asking, args=(server, p, seconds, latencies, statuses)) for p in paths
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            ready = np.quantile(latencies["/v1/ready"], 0.99) * 1e3
            probes = latencies["/v1/health"]
            note = f"{len(probes)} probes; /v1/ready {ready:.1f} ms, largest of health {max(probes) * 1e3:.1f}"
            health = float(np.quantile(probes, 0.99)) * 1e3
            yield row(f"/v1/health while {what}: p99", health, "", None, "ours <= 50", "ms", note)
            note = f"answered with {', '.join(map(str, sorted(statuses)))}"
            yield row(
                f"a decision while {what}: longest", max(latencies[server.path]), "", None, "ours <= 1", "s", note
            )
            server.stop()


if __name__ == "__main__":
    main(__doc__ or "", measure)
