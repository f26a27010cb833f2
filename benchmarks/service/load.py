"""The load generator: one process, open connections, and bodies that were made before. It times each request.

`python benchmarks/service/load.py` measures how fast it is itself, against an application that answers at once.
"""

import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

_PATIENCE = 20.0  # seconds without any answer
_EARLY = 0.0001  # seconds before a request is due that are not slept


@dataclass
class LoadResult:
    """The seconds of each request, in order, the answers, and the seconds of all requests together."""

    seconds: np.ndarray
    answers: list[bytes]
    took: float

    @property
    def p50(self) -> float:
        """The median, in microseconds."""
        return float(np.median(self.seconds)) * 1e6

    @property
    def p99(self) -> float:
        """The 99th percentile, in microseconds."""
        return float(np.percentile(self.seconds, 99)) * 1e6

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.answers) / self.took


class Connection:
    """A connection with at most one request under way."""

    def __init__(self, port: int, patience: float = _PATIENCE):
        self.socket = socket.create_connection(("127.0.0.1", port), patience)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._got, self._whole = b"", 0
        self.number, self.due = 0, 0.0

    def receive(self) -> bytes | None:
        """Read what has arrived. Return the content of the answer when it is complete, else None."""
        data = self.socket.recv(262_144)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self._got = got = self._got + data if self._got else data
        if not self._whole:
            end = got.find(b"\r\n\r\n")
            if end < 0:
                return None
            self._whole = end + 4 + int(got[:end].lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(got) < self._whole:
            return None
        self._got, self._whole = b"", 0
        if not got.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"answer: {got[:1000].decode('utf-8', 'replace')}")
        return got[got.find(b"\r\n\r\n") + 4 :]

    def ask(self, request: bytes) -> bytes:
        """Send a request and wait for the content of its answer."""
        self.socket.sendall(request)
        while (content := self.receive()) is None:
            pass
        return content

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


def post(path: str, body: bytes) -> bytes:
    """Return an HTTP request."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def ask(
    port: int,
    path: str,
    bodies: Sequence[bytes],
    connections: int | Sequence[Connection] = 1,
    rate: float | None = None,
) -> LoadResult:
    """Send all requests; each connection sends the next one as soon as it has an answer.

    With a `rate`, request k is due k / rate seconds after the beginning. It is timed from then on, even if no connection is free.
    """
    requests = [post(path, body) for body in bodies]
    seconds, answers = np.empty(len(requests)), [b""] * len(requests)
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.SelectSelector())  # its timeout is exact
        idle = deque(
            connections if not isinstance(connections, int) else [Connection(port) for _ in range(connections)]
        )
        for connection in idle:
            if isinstance(connections, int):
                stack.callback(connection.close)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        sent = done = 0
        began = heard = time.perf_counter()
        while done < len(requests):
            now = time.perf_counter()
            while idle and sent < len(requests):
                due = now if rate is None else began + sent / rate
                if due > now:
                    break
                connection = idle.popleft()
                connection.number, connection.due = sent, due
                connection.socket.sendall(requests[sent])
                sent += 1
            # without a sleep this process would take processor time from the server
            until = began + sent / rate - _EARLY if rate and idle and sent < len(requests) else now + _PATIENCE
            for key, _ in selector.select(max(0, until - time.perf_counter())):
                connection = key.data
                if (content := connection.receive()) is not None:
                    heard = time.perf_counter()
                    seconds[connection.number] = heard - connection.due
                    answers[connection.number] = content
                    done += 1
                    idle.append(connection)
            if time.perf_counter() - max(heard, now) > _PATIENCE:
                raise RuntimeError(f"no answer in {_PATIENCE:g} s")
        return LoadResult(seconds, answers, time.perf_counter() - began)


_ECHO = """
import sys, uvicorn
async def app(scope, receive, send):
    if scope["type"] == "http":
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="critical", access_log=False)
"""


def main() -> None:
    """Measure against an application that returns each body."""
    port = 3399
    echo = subprocess.Popen([sys.executable, "-c", _ECHO, str(port)])
    try:
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        for connections in (1, 16):
            result = ask(port, "/", [b"x" * 130] * 20_000, connections)
            print(
                f"{connections:>3} at once: {result.rate:,.0f} a second, p50 {result.p50:.0f} µs, p99 {result.p99:.0f} µs"
            )
        result = ask(port, "/", [b"x" * 130] * 10_000, 16, rate=2000)
        print(
            f"2,000 a second: p50 {result.p50:.0f} µs, p99 {result.p99:.0f} µs, longest {result.seconds.max() * 1e3:.1f} ms"
        )
    finally:
        echo.kill()
        echo.wait()


if __name__ == "__main__":
    main()
