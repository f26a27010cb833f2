"""Requests written byte by byte, and the memory and the pace of the service that reads them."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from http_bank import EVENTS, Bank
from serving import Packaged, payment, serving

GROWTH = 24 << 20  # bytes that the worker may have more after all of it
SLOWED = 1.0  # seconds within which single events are decided, whatever else comes in, on a machine that is not busy
HEAD = b"POST /v1/decide HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
CLOSE = b"connection: close\r\n"
BATCH = f"POST {EVENTS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n".encode()


def connect(bank: Bank, patience: float = 60) -> socket.socket:
    return socket.create_connection(("127.0.0.1", bank.server.port), timeout=patience)


@contextlib.contextmanager
def attacked_bank(made: Packaged, folder: Path) -> Iterator[Bank]:
    """A service that has decided one payment, to be attacked by the tests of a module."""
    with serving(made.bento, made.state(folder / "state"), folder / "log") as server, closing(Bank(server)) as bank:
        bank.decide(payment("tx-1"))
        yield bank


def opened(stack: ExitStack, bank: Bank, n: int, *pieces: bytes) -> None:
    """Open connections that send the pieces as far as they are taken, and read nothing."""
    for _ in range(n):
        client = stack.enter_context(connect(bank))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        for piece in pieces:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                client.sendall(piece)


def read_all(client: socket.socket) -> bytes:
    """All that comes until the service closes the connection."""
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(1 << 20):
            pieces.append(piece)
    return b"".join(pieces)


def decide_singly(bank: Bank, n: int = 50) -> float:
    """Have single events decided, by new connections and by one that is kept; the slowest but one in fifty, in seconds."""
    took = []
    for k in range(n):
        began = time.perf_counter()
        body = json.dumps(payment(f"desk-{time.monotonic_ns()}")).encode()
        if k % 2:
            assert bank.decide(body).status_code == 200
        else:
            with connect(bank) as client:
                client.sendall(HEAD + CLOSE + b"content-length: %d\r\n\r\n" % len(body))
                client.sendall(body)
                response = read_all(client)
                assert response.startswith(b"HTTP/1.1 200"), response[:500]
        took.append(time.perf_counter() - began)
        time.sleep(0.005)
    return sorted(took)[-1 - n // 50]


@contextlib.contextmanager
def not_slowed(bank: Bank) -> Iterator[list[float]]:
    """Collect what `decide_singly` measured inside the block; outside it, compare with the pace that the machine allows.

    A busy machine is slow with and without an attack, so the bound is a second or ten times the pace without one.
    """
    meanwhile: list[float] = []
    yield meanwhile
    assert meanwhile, "nothing was decided meanwhile"
    if max(meanwhile) >= SLOWED:
        alone = decide_singly(bank)
        assert max(meanwhile) < 10 * alone, f"{max(meanwhile):.2f} s, without an attack {alone:.2f} s"


def memory(bank: Bank) -> int:
    return sum(process.memory_info().rss for process in bank.server.family())
