"""How long probes and decisions take while another process has the store locked, and while an fsync takes six seconds.

    python benchmarks/service/stuck.py [--full] [-o FILE]

One worker under uvicorn. Two clients ask for decisions, one for /v1/health and one for /v1/ready, for five seconds (twenty in full).
"""

import argparse
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from http.client import HTTPConnection

import numpy as np
from served import Server, Servers, ValidatedEvent, main, payments, row

FORMS = {
    "another process has the store locked": {},
    "an fsync takes 6 s longer": {"MLPKG_DURABILITY": "disk", "SLOWER": "6"},
}


def asked(server: Server, path: str, seconds: float, found: dict[str, list[float]], statuses: set[int]) -> None:
    """Ask one thing again and again; how long each answer took, and for a decision its status."""
    until, connection = time.monotonic() + seconds, HTTPConnection("127.0.0.1", server.port, timeout=30)
    while time.monotonic() < until:
        began = time.perf_counter()
        body = payments(1)[0] if path == server.path else None
        connection.request("POST" if body else "GET", path, body, {"content-type": "application/json"} if body else {})
        answer = connection.getresponse()
        answer.read()
        found.setdefault(path, []).append(time.perf_counter() - began)
        if body:
            statuses.add(answer.status)
        time.sleep(0.01)
    connection.close()


def measure(given: argparse.Namespace) -> Iterator[ValidatedEvent]:
    seconds = 20.0 if given.full else 5.0
    with Servers(given.folder) as servers:
        for what, more in FORMS.items():
            server = servers.ours("uvicorn", **more)
            server.wait()
            assert server.state is not None
            found: dict[str, list[float]] = {}
            statuses: set[int] = set()
            lock = nullcontext() if more else closing(sqlite3.connect(server.state / "mlpkg.db", isolation_level=None))
            with lock as store:
                if store is not None:
                    store.execute("begin immediate")
                paths = ("/v1/health", "/v1/ready", server.path, server.path)
                threads = [threading.Thread(target=asked, args=(server, p, seconds, found, statuses)) for p in paths]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            ready = np.quantile(found["/v1/ready"], 0.99) * 1e3
            note = f"{len(found['/v1/health'])} probes; /v1/ready {ready:.1f} ms, largest of health {max(found['/v1/health']) * 1e3:.1f}"
            health = float(np.quantile(found["/v1/health"], 0.99)) * 1e3
            yield row(f"/v1/health while {what}: p99", health, "", None, "ours <= 50", "ms", note)
            note = f"answered with {', '.join(map(str, sorted(statuses)))}"
            yield row(f"a decision while {what}: longest", max(found[server.path]), "", None, "ours <= 1", "s", note)
            server.stop()


if __name__ == "__main__":
    main(__doc__ or "", measure)
