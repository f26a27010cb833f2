"""Batches, slow readers and slow senders: memory stays flat, nobody waits for ever, and single decisions go on."""

import json
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from http_bank import EVENTS, Bank, problem
from raw_http import (
    BATCH,
    CLOSE,
    GROWTH,
    HEAD,
    attacked_bank,
    connect,
    decide_singly,
    memory,
    not_slowed,
    opened,
    read_all,
)
from serving import Packaged, payment

from mlpkg.errors import MlpkgError
from mlpkg.serve.metrics import Metrics
from mlpkg.settings import Settings

DECIDE = b"POST /v1/decide HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n"


@pytest.fixture(scope="module")
def bank(made: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    with attacked_bank(made, tmp_path_factory.mktemp("batches")) as bank:
        yield bank


REFUSED = b'{"id": "a"}\n'  # a line that is answered much faster than a decision is made


def lines_of(prefix: str, n: int) -> bytes:
    return b"".join(json.dumps(payment(f"{prefix}-{k}", customer_id=k % 40)).encode() + b"\n" for k in range(n))


def answers_of(response: bytes) -> list[Any]:
    """The lines of a chunked answer."""
    head, _, rest = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return [json.loads(line) for line in body.splitlines()]


# Memory


@pytest.mark.parametrize("path", ["/v1/decide", EVENTS, "/v1/outcomes/fraud"])
@pytest.mark.parametrize("line", [b"x", b"\xff\x00", b"[1, 2", b"nonsense, " * 20], ids=repr)
def test_a_batch_of_nonsense_ends_soon_and_keeps_nothing(bank: Bank, path: str, line: bytes):
    """Of four MiB a thousand lines are answered, one by one, and the rest is not read."""
    body = (line + b"\n") * ((4 << 20) // (len(line) + 1))
    before, size = memory(bank), bank.size
    answers = bank.lines(path, body)
    assert len(answers) == 1_001 and {a["status"] for a in answers} == {400}
    assert [a["line"] for a in answers] == list(range(1, 1_002))
    problem(answers[-1], 400, "body", reason="1000 lines in a row are not JSON; nothing from here on was taken")
    assert memory(bank) - before < GROWTH and bank.size == size


def test_a_good_line_among_nonsense_is_taken(bank: Bank):
    nonsense = b"x\n" * 900
    good = [json.dumps(payment(f"tx-among-{k}")).encode() + b"\n" for k in range(4)]
    answers = bank.lines(EVENTS, nonsense.join(good))
    assert len(answers) == 3 * 900 + 4
    assert [a["id"] for a in answers if "status" not in a] == [f"tx-among-{k}" for k in range(4)]


def test_refused_lines_cost_no_more_memory_than_good_ones(bank: Bank):
    """Every answer is read only after all of them were made."""
    bank.lines(EVENTS, b'{"id": "a"}\n' * 3_000)
    before = memory(bank)
    answers = bank.lines(EVENTS, b'{"id": "a"}\n' * 20_000)
    assert len(answers) == 20_000 and {a["status"] for a in answers} == {422}
    assert memory(bank) - before < GROWTH


def test_blank_lines_are_passed_over_and_counted(bank: Bank):
    before, blank = memory(bank), 3_200_000
    assert blank * 8 > GROWTH, "if each line that was read were kept, it would show"
    last = json.dumps(payment("tx-blank", amount=-1)).encode()
    (answer,) = bank.lines(EVENTS, b"\n" * blank + b" \r\n" * 100 + last)
    assert answer["line"] == blank + 101 and answer["status"] == 422
    assert memory(bank) - before < GROWTH


# Who reads late, or never


@pytest.mark.parametrize("head", [DECIDE, BATCH], ids=["decide", "events"])
def test_a_client_that_sends_all_before_it_reads_gets_all_answers(bank: Bank, head: bytes):
    """Also where they are more than the connection holds."""
    n, before, prefix = 800, memory(bank), f"all-{len(head)}"
    body = b"".join(line + REFUSED * 19 for line in lines_of(prefix, n).splitlines(keepends=True))
    with not_slowed(bank) as meanwhile, connect(bank, 60) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.sendall(head + CLOSE + b"content-length: %d\r\n\r\n" % len(body))
        client.sendall(body)
        time.sleep(1)
        meanwhile.append(decide_singly(bank, 20))
        assert memory(bank) - before < GROWTH
        answers = answers_of(read_all(client))
    assert [a["event" if head == DECIDE else "id"] for a in answers[::20]] == [f"{prefix}-{k}" for k in range(n)]
    assert len(answers) == 20 * n and sum(a.get("status") == 422 for a in answers) == 19 * n
    assert sum(map(len, map(json.dumps, answers))) > 4 << 20, "a connection holds four MiB"


def test_an_answer_comes_before_the_next_line_is_sent(bank: Bank):
    with connect(bank) as client:
        client.sendall(BATCH + CLOSE + b"transfer-encoding: chunked\r\n\r\n")
        response = b""
        for k in range(5):
            line = json.dumps(payment(f"tx-turns-{k}")).encode() + b"\n"
            client.sendall(b"%x\r\n%s\r\n" % (len(line), line))
            while b'"id":"tx-turns-%d"' % k not in response:
                response += client.recv(65_536)
        client.sendall(b"0\r\n\r\n")
        assert [a["id"] for a in answers_of(response + read_all(client))] == [f"tx-turns-{k}" for k in range(5)]


def test_a_batch_whose_answers_nobody_reads_is_ended(bank: Bank):
    """With all it had sent; what was not taken before is not taken any more, and nothing of it is kept."""
    before, n = memory(bank), 500
    *first, last = lines_of("tx-unread", n).splitlines(keepends=True)
    body = b"".join(first) + REFUSED * 40_000 + last
    with connect(bank, 60) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        began = time.monotonic()
        client.sendall(DECIDE + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert memory(bank) - before < GROWTH + len(body)
        while established(bank, client):
            assert time.monotonic() < began + 120, "the service never ends it"
            time.sleep(0.2)
        assert time.monotonic() - began > 5, "the client had no time to read"
        assert not read_all(client).endswith(b"0\r\n\r\n")
    assert bank.store.entry("transactions", "tx-unread-0")
    assert bank.store.entry("transactions", f"tx-unread-{n - 1}") is None


def established(bank: Bank, client: socket.socket) -> bool:
    """Whether the server still has the connection of a client."""
    connections = [c for p in bank.server.family() for c in p.net_connections("tcp") if c.raddr]
    return any(c.laddr.port == bank.server.port and c.raddr.port == client.getsockname()[1] for c in connections)


# Single decisions meanwhile


def requests(path: bytes, n: int) -> bytes:
    return (b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % path) * n


@pytest.mark.parametrize(
    ("n", "pieces"),
    [
        (16, (BATCH + b"content-length: 1000000\r\n\r\n\n",)),
        (40, (DECIDE + b'content-length: 1000000\r\n\r\n{"id": ',)),
        (16, (DECIDE + b"content-length: 1000000\r\n\r\n" + lines_of("tx-silent", 100),)),
        (300, (HEAD + b"content-length: 1000\r\n\r\n",)),
        (300, (HEAD + b'transfer-encoding: chunked\r\n\r\n5\r\n{"id"\r\n',)),
        (300, (BATCH + b"content-length: 1000\r\n\r\n",)),
        (260, (requests(b"/v1/openapi.json", 100),)),
        (260, (requests(b"/v1/decisions?limit=1000", 5),)),
        (260, (requests(b"/v1/catalog", 100),)),
    ],
    ids=[
        *(
            "silent batches",
            "batches that stop",
            "batches that stop later",
            "bodies that do not come",
            "bodies that stop",
        ),
        *("batches that do not come", "readers", "readers of much", "readers of what takes a thread"),
    ],
)
def test_clients_that_wait_take_no_place_of_others(bank: Bank, n: int, pieces: Iterable[bytes]):
    with not_slowed(bank) as meanwhile, ExitStack() as stack:
        before = memory(bank)
        opened(stack, bank, n, *pieces)
        meanwhile.append(decide_singly(bank))
        assert memory(bank) - before < 4 * GROWTH


def test_single_decisions_go_on_while_batches_are_worked_on(bank: Bank):
    with not_slowed(bank) as meanwhile, ExitStack() as stack:
        for k in range(16):
            body = lines_of(f"tx-busy-{k}", 1_000)
            client = stack.enter_context(connect(bank, 60))
            client.sendall(DECIDE + b"content-length: %d\r\n\r\n" % len(body) + body)
        meanwhile.append(decide_singly(bank, 40))


# Metrics


def test_thousands_of_actions_leave_room_for_statuses(tmp_path: Path):
    """Actions of several models, actions with long names, and the counts after a restart of the worker are bounded, too."""
    for begin in (0, 5_000):
        metrics = Metrics(Settings(state=tmp_path))
        for k in range(begin, begin + 5_000):
            model = {"version": f"v{k // 100}"}
            action = f"action {k}" if k % 2 else "long " * k
            metrics.decided(SimpleNamespace(use_case="fraud", action=action, model=model, fallback=None))
        metrics.answered("/v1/decide", 429, 0.1)
        text = metrics.text(MlpkgError("no store"))
        metrics.close()
    assert 'mlpkg_requests_total{route="/v1/decide",status="429"} 2' in text
    samples = [line.rpartition(" ") for line in text.splitlines() if line.startswith("mlpkg_decisions_total{")]
    assert sum(float(n) for _, _, n in samples) == 10_000 and len(samples) <= 1_000
    assert any('action="other"' in name for name, _, _ in samples)
    (uncounted,) = [line for line in text.splitlines() if line.startswith("mlpkg_uncounted_total")]
    assert float(uncounted.split()[-1]) > 8_000


# Other protocols


@pytest.mark.parametrize("offer", [b"h2c", b"websocket", b"HTTP/3", b"h2c, TLS/1.2"])
@pytest.mark.parametrize("cut", [0, 30, 100, 180])
def test_a_request_that_offers_another_protocol_is_answered(bank: Bank, offer: bytes, cut: int):
    """As curl with `--http2` and Java's client send it; the connection goes on."""
    id = f"tx-{offer.decode()}-{cut}"
    body = json.dumps(payment(id)).encode()
    head = HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\nHTTP2-Settings: AAMAAABk\r\n" % offer
    whole = head + b"content-length: %d\r\n\r\n" % len(body) + body
    with connect(bank) as client:
        client.sendall(whole[:cut])
        time.sleep(0.02)
        client.sendall(whole[cut:] + b"GET /v1/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        response = read_all(client)
    assert response.count(b"HTTP/1.1 200") == 2 and json.dumps(id).encode() in response and b"alive" in response


def test_nothing_unexpected_happened_inside(bank: Bank):
    """This test stands last: it reads the log of the service that all tests above used."""
    assert "Traceback" not in bank.server.output and "unexpected" not in bank.server.output, bank.server.output[-3_000:]
