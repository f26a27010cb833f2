"""Requests written byte by byte, and the memory of the process that reads them."""

import socket

from http_bank import EVENTS, Bank

GROWTH = 24 << 20  # bytes that the worker may have more after all of it


HEAD = b"POST /v1/decide HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


BATCH = f"POST {EVENTS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n".encode()


def connect(bank: Bank, patience: float = 15) -> socket.socket:
    return socket.create_connection(("127.0.0.1", bank.server.port), timeout=patience)


def memory(bank: Bank) -> int:
    return sum(process.memory_info().rss for process in bank.server.family())
