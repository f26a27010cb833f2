"""Bodies, heads and connections that mean no good: a refusal or a closed connection, flat memory, and others served as before."""

import contextlib
import gzip
import json
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from http_bank import EVENTS, Bank, problem, refused
from raw_http import BATCH, GROWTH, HEAD, attacked_bank, connect, decide_singly, memory, not_slowed, opened, read_all
from serving import Packaged, payment, serving


@pytest.fixture(scope="module")
def bank(made: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    with attacked_bank(made, tmp_path_factory.mktemp("hostile")) as bank:
        yield bank


@pytest.fixture(scope="module")
def bomb() -> bytes:
    return gzip.compress(b" " * 100_000_000)


@pytest.fixture(scope="module", autouse=True)
def stopped(bank: Bank) -> Iterator[Future[tuple[bytes, float]]]:
    """A batch that stops in the middle, while the tests go on: its answer, and the seconds until it was ended."""
    batch = BATCH + b"content-length: 1000000\r\n\r\n" + text(id="tx-stops") + b'\n{"id": '

    def wait() -> tuple[bytes, float]:
        began = time.monotonic()
        return talk(bank, batch), time.monotonic() - began

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(wait)
        while bank.store.entry("transactions", "tx-stops") is None and not sent.done():
            time.sleep(0.01)
        yield sent


def text(**changes: Any) -> bytes:
    return json.dumps(payment("tx-hostile") | changes).encode()


def talk(bank: Bank, *pieces: bytes, pause: float = 0.0) -> bytes:
    """Send the pieces; everything that the service answers until it closes the connection."""
    received = b""
    with connect(bank) as client, contextlib.suppress(ConnectionError):
        for piece in pieces:
            client.sendall(piece)
            time.sleep(pause)
        received = read_all(client)
    return received


def digits(value: int) -> str:
    return str(Decimal(value))  # `str` of a whole number has a bound of its own


# What is in a body


@pytest.mark.parametrize("key", ["id", "time", "customer_id", "terminal_id", "amount"])
def test_a_key_that_is_given_twice_is_refused_by_its_name(bank: Bank, key: str):
    """Also when both say the same; the last value does not win."""
    size, good = bank.size[0], payment("tx-twice")
    for again in ("", " ", "\n\t"):
        body = json.dumps(good)[:-1] + f', "{key}"{again}:{again}{json.dumps(good[key])}}}'
        for path in ("/v1/decide", EVENTS):
            refused(bank.post(path, body.encode()), 422, f"Transaction.{key}", str(good[key]), "given twice")
    (line,) = bank.lines(EVENTS, (json.dumps(good)[:-1] + f', "{key}": {json.dumps(good[key])}}}').encode())
    problem(line, 422, f"Transaction.{key}", reason="given twice")
    assert bank.size[0] == size and bank.store.dead_letters()[-1].reason == "is given twice"


def test_a_key_that_is_given_twice_is_found_behind_escapes_and_in_outcomes(bank: Bank):
    size = bank.size[0]
    escaped = text()[:-1] + b', "\\u0061mount": 1}'
    refused(bank.decide(escaped), 422, "Transaction.amount", reason="given twice")
    body = b'{"id": "tx-1", "fraud": false, "fraud": true}'
    refused(bank.post("/v1/outcomes/fraud", body), 422, "Fraud.fraud", reason="given twice")
    assert bank.size[0] == size
    assert bank.decide(payment('a "," b, c')).status_code == 200, "commas in a text are no keys"


@pytest.mark.parametrize("text", ["NaN", "-NaN", "nan", "Infinity", "-Infinity", "+Infinity", "inf", "1e999", "-1e999"])
@pytest.mark.parametrize("quoted", [False, True], ids=["bare", "quoted"])
def test_a_number_that_is_none_is_refused_however_it_is_spelt(bank: Bank, text: str, quoted: bool):
    size = bank.size[0]
    for field in ("amount", "customer_id"):
        value = f'"{text}"' if quoted else text
        body = json.dumps({k: v for k, v in payment("tx-nan").items() if k != field})[:-1] + f', "{field}": {value}}}'
        answer = bank.decide(body.encode())
        refused(answer, answer.status_code, answer.json()["field"])
        assert answer.status_code in (400, 422)
    assert bank.size[0] == size


@pytest.mark.parametrize(
    "value",
    [2**63, 2**64, -(2**63) - 1, 2**128, 10**400, -(10**4000), 10**100_000],
    ids=lambda v: f"{v.bit_length()} bits",
)
def test_a_whole_number_beyond_64_bits_is_refused(bank: Bank, value: int):
    size = bank.size[0]
    for field in ("customer_id", "terminal_id", "amount", "time", "id"):
        body = text(**{field: 0}).replace(f'"{field}": 0'.encode(), f'"{field}": {digits(value)}'.encode())
        answer = bank.decide(body)
        refused(answer, answer.status_code, answer.json()["field"])
        assert answer.status_code in (400, 422)
    assert bank.size[0] == size


@pytest.mark.parametrize(
    "bad",
    [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf0\x9f", b"\\ud800", b"\\udfff\\ud800", b"\\u00"],
    ids=repr,
)
def test_what_is_no_text_is_refused(bank: Bank, bad: bytes):
    """Invalid UTF-8 and halves of surrogate pairs, in keys and in values."""
    size = bank.size[0]
    for body in (text().replace(b"tx-hostile", bad), text().replace(b"customer_id", bad), bad):
        for path in ("/v1/decide", EVENTS, "/v1/outcomes/fraud"):
            answer = bank.post(path, body)
            refused(answer, answer.status_code, answer.json()["field"])
            assert answer.status_code in (400, 422)
        for line in bank.lines(EVENTS, body):
            assert line["status"] in (400, 422)
    assert bank.size[0] == size


@pytest.mark.parametrize(
    "kind", ["text/json", "multipart/form-data", "application/x-www-form-urlencoded", "*/*", "json"]
)
def test_a_body_of_another_kind_is_not_read(bank: Bank, kind: str):
    size = bank.size
    refused(bank.post("/v1/decide", text(), **{"content-type": kind}), 415, "content-type", kind)
    assert bank.size == size


@pytest.mark.parametrize("packed", ["gzip", "br", "deflate", "zstd", "gzip, gzip", "GZIP", "nonsense"])
def test_a_bomb_is_not_unpacked(bank: Bank, bomb: bytes, packed: str):
    """A hundred megabytes in a hundred kilobytes; also in many requests at once, and as a batch."""
    before = memory(bank)
    for kind in ("application/json", "application/x-ndjson"):
        answer = bank.post(EVENTS, bomb, **{"content-type": kind, "content-encoding": packed})
        refused(answer, 415, "content-encoding", packed)
    answer = bank.decide(bomb)
    refused(answer, 400, "Transaction", reason="is not JSON")
    assert memory(bank) - before < GROWTH


# Heads and connections


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /" + b"x" * 5_000_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /v1/models?" + b"x" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nbig: " + b"x" * 50_000_000,
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 5_000_000,
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + b"x" * 5_000_000,
        b"x" * 5_000_000,
        b"GET /v1/decisions/\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"BREW /v1/decide HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}",
        HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n{}",
    ],
    ids=lambda r: repr(r[:40]),
)
def test_a_head_that_is_too_long_or_makes_no_sense_closes_the_connection(bank: Bank, request_: bytes):
    before = memory(bank)
    received = talk(bank, request_)
    assert received == b"" or received.startswith(b"HTTP/1.1 4"), received[:200]
    assert memory(bank) - before < GROWTH


@pytest.mark.parametrize("kind", [b"websocket", b"h2c"])
def test_no_other_protocol_is_spoken(bank: Bank, kind: bytes):
    key = b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n"
    head = b"GET /v1/nothing HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: %s\r\n%s\r\n" % (kind, key)
    assert talk(bank, head).startswith(b"HTTP/1.1 4")


def asking(
    protocol: str, body: bytes, *more: str, close: bool = True, kind: str = "json", path: str = "/v1/decide"
) -> bytes:
    """A request that offers another protocol, as `curl --http2` and Java's client do."""
    words = "Upgrade, HTTP2-Settings" + (", close" if close else "")
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Connection: {words}", f"Upgrade: {protocol}"]
    lines += ["HTTP2-Settings: AAMAAABkAAQAAP__", f"Content-Type: application/{kind}", *more]
    return (
        "\r\n".join(
            [*lines, *([] if "Transfer-Encoding: chunked" in more else [f"Content-Length: {len(body)}"]), "", ""]
        ).encode()
        + body
    )


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.3", "foo/2, h2c", "H2C"])
def test_who_asks_for_another_protocol_is_answered_in_http_1(bank: Bank, protocol: str):
    """With all of the body: in one piece, in two that are cut anywhere, and in chunks."""
    name = re.sub(r"\W", "-", protocol)
    whole = asking(protocol, json.dumps(payment(f"tx-{name}")).encode())
    first = talk(bank, whole)
    assert first.startswith(b"HTTP/1.1 200 OK") and f'"event":"tx-{name}"'.encode() in first
    answer = first.partition(b"\r\n\r\n")[2]
    end = whole.index(b"\r\n\r\n")
    for cut in (1, 40, end - 1, end, end + 1, end + 3, end + 4, end + 5, len(whole) - 1):
        again = talk(bank, whole[:cut], whole[cut:], pause=0.01)
        assert again.partition(b"\r\n\r\n")[2] == answer, cut
    body = whole[end + 4 :]
    chunks = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (7, body[:7], len(body) - 7, body[7:])
    chunked = asking(protocol, chunks, "Transfer-Encoding: chunked")
    assert talk(bank, chunked).partition(b"\r\n\r\n")[2] == answer
    waiting = asking(protocol, body, "Expect: 100-continue")
    received = talk(bank, waiting[: -len(body)], body, pause=0.1)
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK") and received.endswith(answer)


def test_a_connection_goes_on_after_another_protocol_was_asked_for(bank: Bank):
    """With requests in a row, some of which ask again, a batch among them."""
    bodies = [json.dumps(payment(f"tx-on-{k}")).encode() for k in range(4)]
    batch = asking("h2c", bodies[2] + b"\n" + bodies[3], kind="x-ndjson", close=False)
    plain = HEAD + b"content-length: %d\r\n\r\n" % len(bodies[1]) + bodies[1]
    last = b"GET /v1/health HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: h2c\r\n\r\n"
    received = talk(bank, asking("h2c", bodies[0], close=False) + plain + batch + last)
    assert received.count(b"HTTP/1.1 200 OK") == 4 and b"101" not in received.partition(b"\r\n")[0]
    assert [received.index(b'"event":"tx-on-%d"' % k) for k in range(4)] == sorted(
        received.index(b'"event":"tx-on-%d"' % k) for k in range(4)
    )


def test_bounds_hold_for_who_asks_for_another_protocol(bank: Bank):
    large = asking("h2c", b" " * 2_000_000)
    assert talk(bank, large).startswith(b"HTTP/1.1 413 ")
    assert talk(bank, asking("h2c", text(), "Content-Encoding: gzip")).startswith(b"HTTP/1.1 415 ")
    assert talk(bank, asking("h2c", b"{", "Content-Length: 2")).startswith(b"HTTP/1.1 400 ")
    assert talk(bank, asking("h2c", text())[:-5]).startswith(b"HTTP/1.1 408 ")
    assert talk(bank, b"CONNECT bank:1 HTTP/1.1\r\nhost: bank:1\r\n\r\n").startswith(b"HTTP/1.1 400 ")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_that_offers_http_2_is_answered(bank: Bank, tmp_path: Path):
    for method in ("--http2", "--http1.1", "--http1.0"):
        body = json.dumps(payment(f"tx-curl{method}"))
        (tmp_path / "body").write_text(body)
        command = [
            "curl",
            "-sS",
            method,
            "-H",
            "content-type: application/json",
            "--data-binary",
            f"@{tmp_path / 'body'}",
        ]
        done = subprocess.run(
            [*command, f"{bank.server.address}/v1/decide"], capture_output=True, text=True, timeout=30
        )
        answer = json.loads(done.stdout)
        if method == "--http1.0":
            assert answer["status"] == 401, "as nginx would ask"
        else:
            assert answer["event"] == f"tx-curl{method}", (method, answer)


STOPS = {
    b"": None,
    b"POST /v1/dec": None,
    HEAD: None,
    HEAD + b"content-length: 100\r\n\r\n": 408,
    HEAD + b"content-length: 100\r\nexpect: 100-continue\r\n\r\n": 408,
    HEAD + b"transfer-encoding: chunked\r\n\r\n": 408,
    HEAD + b'content-length: 100\r\n\r\n{"id": ': 408,
    BATCH + b"content-length: 100\r\n\r\n": 408,
}


def test_a_request_that_stops_in_the_middle_is_ended(bank: Bank):
    """All of them at once, as each takes seconds to be ended."""
    size = bank.size
    with ThreadPoolExecutor(len(STOPS)) as pool:
        answers = dict(zip(STOPS, pool.map(lambda sent: talk(bank, sent), STOPS), strict=True))
    for sent, status in STOPS.items():
        received = answers[sent].removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert received == b"" if status is None else received.startswith(b"HTTP/1.1 %d " % status), (sent, received)
    assert bank.size == size


def test_a_batch_that_stops_in_the_middle_is_ended_and_what_came_is_taken(
    bank: Bank, stopped: Future[tuple[bytes, float]]
):
    received, seconds = stopped.result()
    assert seconds > 5, "it had time to go on"
    first, last = [json.loads(line) for line in received.splitlines() if line.startswith(b"{")]
    assert first["id"] == "tx-stops" and first["new"] is True
    problem(last, 408, "body")
    assert bank.http.get(f"{EVENTS}/tx-stops").status_code == 200


def test_requests_in_a_row_without_waiting_are_answered_in_their_order(bank: Bank):
    bodies = [json.dumps(payment(f"tx-row-{k}", customer_id=18 + k % 9)).encode() for k in range(50)]
    requests = [HEAD + b"content-length: %d\r\n\r\n" % len(body) + body for body in bodies]
    requests.append(b"GET /v1/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    received = talk(bank, b"".join(requests))
    assert received.count(b"HTTP/1.1 200") == 51
    assert [received.index(b'"event":"tx-row-%d"' % k) for k in range(50)] == sorted(
        received.index(b'"event":"tx-row-%d"' % k) for k in range(50)
    )


def test_clients_that_hang_up_are_forgotten(bank: Bank):
    """In the middle of a head, a body or an answer, with and without a word; what came whole may be decided."""
    body = text()
    whole = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    for cut in (1, 20, len(HEAD), len(HEAD) + 30, len(whole) - 1, len(whole)):
        for reset in (False, True):
            for _ in range(20):
                with connect(bank) as client:
                    client.sendall(whole[:cut])
                    if reset:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until = time.monotonic() + 10
    while open_connections(bank) > 20 and time.monotonic() < until:
        time.sleep(0.1)
    assert open_connections(bank) <= 20 and bank.http.get("/v1/health").status_code == 200


def open_connections(bank: Bank) -> int:
    connections = [c for p in bank.server.family() for c in p.net_connections("tcp")]
    return sum(c.laddr.port == bank.server.port and c.status in ("ESTABLISHED", "CLOSE_WAIT") for c in connections)


# All of it at once


def slow_sender(bank: Bank, until: float) -> None:
    body = text()
    while time.monotonic() < until:
        with contextlib.suppress(OSError), connect(bank, 3) as client:
            for byte in HEAD + b"content-length: %d\r\n\r\n" % len(body) + body:
                client.sendall(bytes([byte]))
                time.sleep(0.05)
                if time.monotonic() > until:
                    return


def repeat(ask: Callable[[], object], until: float) -> None:
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            ask()


def test_others_are_answered_meanwhile_and_memory_stays_flat(bank: Bank, bomb: bytes):
    """Forty slow senders, deep and large bodies, bombs and endless heads, while a cash desk goes on."""
    deep, large = b"[" * 900_000, b" " * 3_000_000
    head = HEAD + b"content-length: %d\r\n\r\n"
    attacks = [
        lambda: talk(bank, b"GET / HTTP/1.1\r\nbig: " + b"x" * 2_000_000),
        lambda: talk(bank, head.replace(b"host: x", b"host: x\r\nconnection: close") % len(deep) + deep),
        lambda: talk(bank, head.replace(b"host: x", b"host: x\r\nconnection: close") % len(large) + large),
        lambda: talk(bank, head.replace(b"host: x", b"host: x\r\nconnection: close") % len(bomb) + bomb),
    ]

    def attacked(seconds: float) -> list[float]:
        until, took = time.monotonic() + seconds, []
        threads = [threading.Thread(target=slow_sender, args=(bank, until)) for _ in range(40)]
        threads += [threading.Thread(target=repeat, args=(ask, until)) for ask in attacks]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            began = time.perf_counter()
            assert bank.decide(payment(f"tx-desk-{time.monotonic_ns()}")).status_code == 200
            took.append(time.perf_counter() - began)
            time.sleep(0.01)
        for thread in threads:
            thread.join()
        return took

    attacked(2)  # buffers have then grown as far as they do
    before = memory(bank)
    with not_slowed(bank) as meanwhile:
        took = sorted(attacked(4))
        meanwhile.append(took[-1 - len(took) // 100])
        assert memory(bank) - before < GROWTH


def test_nothing_unexpected_happened_inside(bank: Bank):
    """This test stands last: it reads the log of the service that all tests above used."""
    assert "Traceback" not in bank.server.output and "unexpected" not in bank.server.output, bank.server.output[-3_000:]
    assert "HTTP/1.1 5" not in bank.server.output


# As many as may be


@pytest.fixture(scope="module")
def narrow(made: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    """A service that works on at most two requests at a time."""
    folder = tmp_path_factory.mktemp("narrow")
    state = made.state(folder / "state")
    with serving(made.bento, state, folder / "log", MLPKG_MAX_IN_FLIGHT="2") as server, closing(Bank(server)) as bank:
        yield bank


def test_one_batch_too_many_is_told_when_to_come_again(narrow: Bank):
    with not_slowed(narrow) as meanwhile, contextlib.ExitStack() as stack:
        opened(stack, narrow, 1, BATCH + b"content-length: 1000000\r\n\r\n\n")
        time.sleep(0.2)
        answer = narrow.http.post(EVENTS, content=b"{}\n", headers={"content-type": "application/x-ndjson"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "at most 1 batches" in answer.json()["reason"]
        meanwhile.append(decide_singly(narrow, 10))


def test_beyond_the_bound_of_requests_in_flight_a_request_is_told_when_to_come_again(narrow: Bank):
    """Requests whose bodies are on their way have no places yet; probes are answered all the same."""
    with contextlib.ExitStack() as stack:
        assert narrow.decide(payment("tx-first")).status_code == 200
        for _ in range(4):
            client = stack.enter_context(connect(narrow))
            client.sendall(HEAD + b"content-length: 1000\r\n\r\n\n")
        time.sleep(0.05)
        assert narrow.decide(payment("tx-meanwhile")).status_code == 200
        bodies = [json.dumps(payment(f"tx-burst-{k}")).encode() for k in range(60)]
        clients = [stack.enter_context(connect(narrow)) for _ in bodies]
        head = HEAD.replace(b"host: x", b"host: x\r\nconnection: close") + b"content-length: %d\r\n\r\n"
        for client, body in zip(clients, bodies, strict=True):
            client.sendall(head % len(body) + body)
        answers = [b"".join(iter(lambda: client.recv(65_536), b"")) for client in clients]  # noqa: B023
        over = [answer for answer in answers if answer.startswith(b"HTTP/1.1 503")]
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers if answer not in over)
        assert all(b"at most 2 requests" in answer and b"retry-after: 1" in answer for answer in over)
        assert narrow.http.get("/v1/health").status_code == narrow.http.get("/v1/ready").status_code == 200

        with ThreadPoolExecutor(16) as pool:  # and those who are refused get through as they come again
            ids = [f"tx-many-{k}" for k in range(60)]
            assert set(pool.map(lambda id: insist(narrow, id), ids)) == {200}
        assert "Traceback" not in narrow.server.output


def insist(bank: Bank, id: str) -> int:
    """Ask again after a 503, and after the 408 of a body that came too late; the last status."""
    body, until = payment(id), time.monotonic() + 30
    while (status := bank.decide(body).status_code) in (408, 503) and time.monotonic() < until:
        time.sleep(0.2)
    return status
