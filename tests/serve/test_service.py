"""The service over HTTP: what it answers, and what it refuses with field, value and reason."""

import asyncio
import contextlib
import json
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import handbook
import httpx
import jsonschema
import pytest
from bad_events import BAD, GONE, NO_JSON
from bank import put_live
from http_bank import EVENTS, Bank, problem, refused
from paths import ROOT
from serving import Packaged, payment, serving

from mlpkg.examples.fraud.policy import fraud
from mlpkg.serve.app import Application
from mlpkg.settings import Settings
from mlpkg.times import DAY, HOUR, MINUTE, iso, now


@pytest.fixture(scope="module")
def bank(made: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    folder = tmp_path_factory.mktemp("service")
    with serving(made.bento, made.state(folder / "state"), folder / "log") as server, closing(Bank(server)) as bank:
        yield bank


# Decisions


def test_a_decision_is_answered_and_recorded(bank: Bank):
    body = payment("tx-1")
    position = bank.size[0]
    answer = bank.decide(body)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    decision = answer.json()
    assert (decision["event"], decision["use_case"], decision["keys"]) == (
        "tx-1",
        "fraud",
        {"customer_id": 17, "terminal_id": 23},
    )
    assert decision["model"] == {"name": "fraud", "version": bank.store.active_version("fraud")}
    assert 0 <= decision["score"] <= 1 and decision["action"] in ("approve", "review", "decline")
    assert decision["features"]["amount"] == 57.16 and decision["features"]["customer_n_tx_30d"] > 1
    assert bank.http.get("/v1/decisions/tx-1").content == answer.content
    assert bank.size[0] == position + 2, "the event and its decision"
    event = bank.http.get(f"{EVENTS}/tx-1").json()
    assert (event["position"], event["event"]["amount"], event["source"]) == (position + 1, 57.16, "transactions")
    assert {"id": "tx-1", "customer_id": 17, "terminal_id": 23}.items() <= event["event"].items()


def test_the_same_event_again_gets_the_same_answer(bank: Bank):
    body = payment("tx-again")
    first = bank.decide(body)
    size = bank.size
    in_other_words = json.dumps(dict(reversed(body.items()))).replace("57.16", "57.160").encode()
    for again in (body, in_other_words):
        assert bank.decide(again).content == first.content
    receipt = bank.post(EVENTS, body).json()
    assert (receipt["new"], receipt["id"]) == (False, "tx-again")
    assert bank.size == size


def test_the_same_event_from_many_at_once_is_decided_once(bank: Bank):
    body = payment("tx-many")
    position = bank.size[0]
    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(lambda _: httpx.post(f"{bank.server.address}/v1/decide", json=body).content, range(24)))
    assert len(answers) == 1 and bank.size[0] == position + 2


def test_an_event_that_was_sent_before_can_be_decided_later(bank: Bank):
    body = payment("tx-before")
    assert bank.post(EVENTS, body).json()["new"] is True
    assert bank.http.get("/v1/decisions/tx-before").status_code == 404
    decision = bank.decide(body).json()
    assert decision["event"] == "tx-before" and decision["features"]["amount"] == 57.16


def test_of_an_event_that_was_sent_before_the_id_is_enough(bank: Bank):
    body = payment("tx-id-alone")
    bank.post(EVENTS, body)
    answer = bank.decide({"id": "tx-id-alone"})
    assert answer.json()["features"]["amount"] == 57.16
    assert bank.decide(body).content == bank.decide({"id": "tx-id-alone"}).content == answer.content
    refused(bank.decide({"id": "tx-never"}), 422, "id", "tx-never", "no event that was sent")
    refused(bank.decide(b'{"id": "tx-id-alone", "amount": 57.16}'), 422, "Transaction.time", "", "missing")
    refused(bank.decide(b'{"id": "tx-id", "id": "tx-id-alone"}'), 422, "Transaction.id", "", "given twice")


@pytest.mark.parametrize("path", ["/v1/decide", EVENTS])
def test_an_id_that_was_used_for_other_content_is_a_conflict(bank: Bank, path: str):
    id = f"used {path.rpartition('/')[2]}"
    first = bank.decide(payment(id))
    position, dead, _ = bank.size
    problem = refused(bank.post(path, payment(id, amount=1.0)), 409, "id", id, "other content")
    assert problem["event"] == id
    assert bank.size[:2] == (position, dead + 1)
    assert bank.http.get(f"/v1/decisions/{id}").content == first.content


@pytest.mark.parametrize("id", ["a/b/../c", "100 % ä ☃ ?#&", "fraud/transactions/x", ".", "x" * 200])
def test_an_id_may_be_any_text(bank: Bank, id: str):
    answer = bank.decide(payment(id))
    assert answer.status_code == 200, answer.text
    stored = bank.http.get(f"{EVENTS}/{quote(id, safe='').replace('.', '%2E')}")
    assert stored.json()["id"] == id
    recorded = bank.http.get(f"/v1/decisions/{quote('fraud/transactions/' + id, safe='').replace('.', '%2E')}")
    assert recorded.content == answer.content


# Bad input


@pytest.mark.parametrize(("change", "field", "value", "reason"), BAD, ids=lambda v: None if isinstance(v, dict) else v)
def test_a_broken_event_is_refused_and_kept_as_a_dead_letter(
    bank: Bank, change: dict[str, Any], field: str, value: str, reason: str
):
    """Singly or in a batch, to be decided or not: with field, value and reason, and nothing half-written."""
    body = {k: v for k, v in (payment("tx-bad") | change).items() if v is not GONE}
    position, dead, waiting = bank.size
    where = f"Transaction.{field}"
    for path in ("/v1/decide", EVENTS):
        single = refused(bank.post(path, body), 422, where, value, reason)
        assert single["source"] == "transactions" and "dead letters" in single["detail"]
        (line,) = bank.lines(path, body)
        assert line == single | {"line": 1}
    assert bank.size == (position, dead + 4, waiting)
    letter = bank.store.dead_letters()[-1]
    assert (letter.source, letter.field, letter.reason) == ("transactions", where, single["reason"])
    assert bank.http.get("/v1/decisions/tx-bad").status_code == 404


@pytest.mark.parametrize("body", NO_JSON, ids=lambda b: repr(b[:12]))
def test_what_is_no_json_is_refused_and_was_no_event(bank: Bank, body: bytes):
    size = bank.size
    for path in ("/v1/decide", EVENTS, "/v1/outcomes/fraud"):
        refused(bank.post(path, body), 400, "Fraud" if "outcomes" in path else "Transaction", reason="is not JSON")
    assert bank.size == size


@pytest.mark.parametrize("body", [b"null", b"[1]", b'"text"', b"NaN", b"1", b"true"])
def test_json_that_is_no_object_is_refused(bank: Bank, body: bytes):
    position = bank.size[0]
    answer = bank.decide(body)
    refused(answer, answer.status_code, "Transaction")
    assert answer.status_code in (400, 422) and bank.size[0] == position


@pytest.mark.parametrize("depth", [50, 1_000, 100_000])
def test_what_is_nested_deeply_is_refused(bank: Bank, depth: int):
    position = bank.size[0]
    for inner in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
        answer = bank.decide(json.dumps(payment("tx-deep")).encode().replace(b"57.16", inner))
        refused(answer, answer.status_code, "Transaction.amount" if depth == 50 else answer.json()["field"])
        assert answer.status_code in (400, 422)
    assert bank.size[0] == position


def test_what_is_too_large_is_refused_with_413(bank: Bank):
    """Also where nothing says beforehand how large it is, and where it is far too large."""
    size = bank.size
    most = Settings.load(ROOT).max_body
    refused(bank.decide(b" " * (most + 1)), 413, "body", reason=f"larger than {most} bytes")

    def pieces(n: int) -> Iterator[bytes]:
        for _ in range(n):
            yield b" " * 65_536

    for n in (17, 160):
        answer = bank.http.post("/v1/decide", content=pieces(n), headers={"content-type": "application/json"})
        refused(answer, 413, "body")
    assert bank.decide(json.dumps(payment("tx-padded")).encode().ljust(most)).status_code == 200
    assert bank.size == (size[0] + 2, *size[1:])


def test_a_line_or_a_batch_that_is_too_large_ends_it(bank: Bank):
    """What came before is taken and answered."""
    most = Settings.load(ROOT).max_body
    first, large = bank.lines(EVENTS, payment("tx-small"), b"x" * (2 * most), payment("tx-after"))
    assert first["new"] is True and large["line"] == 2
    problem(large, 413, "body", reason="nothing from here on was taken")
    assert bank.http.get(f"{EVENTS}/tx-after").status_code == 404
    first, *_, last = bank.lines(EVENTS, payment("tx-first"), *[b" " * (most - 1)] * 17)
    assert first["new"] is True
    problem(last, 413, "body", reason="nothing from here on was taken")


def test_an_event_ahead_of_the_clock_is_refused(bank: Bank):
    for path in ("/v1/decide", EVENTS):
        position, dead, _ = bank.size
        soon, later = iso(now() + 4 * MINUTE), iso(now() + 6 * MINUTE)
        id = f"tx-later {path}"
        problem = refused(bank.post(path, payment(id, time=later)), 503, "Transaction.time", reason="ahead of the")
        assert problem["event"] == id and problem["value"][:16] == later[:16]
        assert bank.size[:2] == (position, dead + 1)
        assert bank.post(path, payment(f"tx-soon {path}", time=soon)).status_code == 200


def test_an_event_that_comes_too_late_is_refused_and_a_late_one_is_not(bank: Bank):
    position, dead, _ = bank.size
    late = payment("tx-late", time=iso(now() - 3 * DAY - MINUTE))
    refused(bank.decide(late), 503, "Transaction.time", reason="more than 3d before the event arrived")
    assert bank.size[:2] == (position, dead + 1)
    assert bank.decide(payment("tx-in-time", time=iso(now() - 3 * DAY + MINUTE))).status_code == 200


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/events/nothing", "source", "nothing"),
        ("/v1/events/decisions.fraud", "source", "decisions.fraud"),
        ("/v1/events/promotions.fraud", "source", "promotions.fraud"),
        ("/v1/events/transactions.fraud", "source", "transactions.fraud"),
        ("/v1/events/", "source", ""),
        ("/v1/outcomes/nothing", "outcome", "nothing"),
        ("/v1/nothing", "path", "/v1/nothing"),
        ("/v2/decide", "path", "/v2/decide"),
        ("/x", "path", "/x"),
    ],
)
def test_an_unknown_source_or_path_is_not_found(bank: Bank, path: str, field: str, value: str):
    size = bank.size
    refused(bank.post(path, payment("tx-nowhere")), 404, field, value)
    assert bank.size == size


def test_an_unknown_id_is_not_found(bank: Bank):
    for path in (f"{EVENTS}/nobody", "/v1/decisions/nobody", "/v1/decisions/fraud/transactions/nobody"):
        refused(bank.http.get(path), 404, "id", "nobody")


def test_another_method_or_content_type_is_refused(bank: Bank):
    size = bank.size
    assert bank.http.get("/v1/decide").headers["allow"] == "POST"
    refused(bank.http.get("/v1/decide"), 405, "method", "GET")
    refused(bank.http.put(EVENTS, json=payment("tx-put")), 405, "method", "PUT")
    refused(bank.http.delete("/v1/decisions/tx-1"), 405, "method", "DELETE")
    refused(bank.http.post("/v1/ready"), 405, "method", "POST")
    refused(bank.post("/v1/decide", payment("tx-text"), **{"content-type": "text/plain"}), 415, "content-type", "text/")
    answer = bank.post("/v1/decide", payment("tx-zip"), **{"content-encoding": "gzip"})
    refused(answer, 415, "content-encoding", "gzip")
    assert bank.size == size


def test_a_body_that_stalls_or_breaks_off_leaves_nothing_behind(bank: Bank):
    """A client that stops in the middle is told so; one that hangs up is forgotten."""
    size = bank.size
    data = json.dumps(payment("tx-half")).encode()
    head = b"POST /v1/decide HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(
        data
    )
    with socket.create_connection(("127.0.0.1", bank.server.port), timeout=10) as stalled:
        stalled.sendall(head + data[:20])
        received = b"".join(iter(lambda: stalled.recv(65_536), b""))
    assert b" 408 " in received.split(b"\r\n")[0] and b'"field":"body"' in received
    with socket.create_connection(("127.0.0.1", bank.server.port), timeout=10) as gone:
        gone.sendall(head + data[:20])
    assert bank.http.get("/v1/health").status_code == 200
    assert bank.size == size


def test_whatever_comes_is_answered_and_never_with_an_error_of_the_server(bank: Bank):
    """Good bodies, changed at random: cut, doubled, with bytes flipped."""
    chance = random.Random(7)
    paths = ["/v1/decide", EVENTS, "/v1/outcomes/fraud", f"{EVENTS}/x", "/v1/decisions/"]
    good = [json.dumps(payment("tx-fuzz")).encode(), b'{"id": "tx-fuzz", "fraud": true}']
    pieces = [
        b"\x00",
        b"\xff",
        b'"',
        b"{",
        b"}",
        b"[",
        b"1e999",
        b"-",
        b"null",
        b"\\ud800",
        b"\n",
        b"9" * 400,
        b"\xf0\x9f",
    ]
    for _ in range(300):
        body = bytearray(chance.choice(good))
        for _ in range(chance.randrange(4)):
            place = chance.randrange(len(body) + 1)
            body[place : place + chance.choice([0, 0, 1, 5, 200])] = chance.choice(pieces)
        kind = chance.choice(["application/json", "application/x-ndjson"])
        answer = bank.post(chance.choice(paths), bytes(body), **{"content-type": kind})
        assert answer.status_code < 500, (bytes(body), answer.text)
        for line in answer.text.splitlines():
            parsed = json.loads(line)
            assert parsed.get("status", 200) < 500 and "Traceback" not in line, (bytes(body), line)


def test_what_is_not_http_is_refused(bank: Bank):
    for nonsense in (b"nonsense\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", b"\x16\x03\x01\x02\x00"):
        received = b""
        with socket.create_connection(("127.0.0.1", bank.server.port), timeout=10) as client:
            with contextlib.suppress(OSError):  # it may have hung up
                client.sendall(nonsense)
                client.shutdown(socket.SHUT_WR)
                received = client.recv(65_536)
        assert received == b"" or received.startswith(b"HTTP/1.1 4"), received
    assert bank.http.get("/v1/health").status_code == 200


# Batches


@pytest.mark.parametrize("path", ["/v1/decide", EVENTS])
def test_a_batch_has_an_answer_for_each_line(bank: Bank, path: str):
    """Good lines are taken, bad ones refused by their numbers, blank ones passed over."""
    a, b = payment(f"one {path}"), payment(f"two {path}", amount=3)
    position, dead, _ = bank.size
    answers = bank.lines(path, a, a | {"amount": -1}, b"{", b"", b, b | {"amount": 4}, payment("odd", x=1), a, b"")
    assert len(answers) == 7
    assert [answer.get("line") for answer in answers] == [None, 2, 3, None, 6, 7, None]
    problem(answers[1], 422, "Transaction.amount", "-1", "below 0")
    problem(answers[2], 400, "Transaction", "{", "is not JSON")
    problem(answers[4], 409, "id", f"two {path}")
    problem(answers[5], 422, "Transaction.x", "1", "not a field")
    if path == EVENTS:
        assert [answers[k]["new"] for k in (0, 3, 6)] == [True, True, False]
    else:
        assert answers[6] == answers[0] and answers[3]["features"]["amount"] == 3
    assert bank.size[0] == position + (2 if path == EVENTS else 4)
    assert bank.size[1] >= dead + 2


def test_a_batch_of_many_lets_others_have_their_turn(bank: Bank):
    """And every line of it is there."""
    position = bank.size[0]
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(bank.lines, EVENTS, *[payment(f"batch-{k}", customer_id=k % 40) for k in range(2_000)])
        took = []
        while not batch.done():
            began = time.perf_counter()
            assert httpx.get(f"{bank.server.address}/v1/health").status_code == 200
            took.append(time.perf_counter() - began)
        receipts = batch.result()
    assert [r["position"] for r in receipts] == list(range(position + 1, position + 2_001))
    assert all(r["new"] for r in receipts) and len(took) > 1


# Outcomes


def test_an_outcome_is_noted_once_and_another_truth_is_a_conflict(bank: Bank):
    bank.decide(payment("tx-fraud"))
    position, dead, waiting = bank.size
    first = bank.post("/v1/outcomes/fraud", {"id": "tx-fraud", "fraud": True}).json()
    assert first == {"id": "tx-fraud", "position": position + 1, "new": True, "waiting": False}
    for path in ("fraud", "transactions", "transactions.fraud"):
        again = bank.post(f"/v1/outcomes/{path}", {"id": "tx-fraud", "fraud": True}).json()
        assert again == first | {"new": False}
    problem = refused(bank.post("/v1/outcomes/fraud", {"id": "tx-fraud", "fraud": False}), 409, "id", "tx-fraud")
    assert (problem["event"], problem["source"]) == ("tx-fraud", "transactions.fraud")
    assert bank.size == (position + 1, dead + 1, waiting)


def test_an_outcome_about_nothing_yet_waits_for_its_event(bank: Bank):
    receipt = bank.post("/v1/outcomes/fraud", {"id": "tx-unheard", "fraud": True}).json()
    assert (receipt["new"], receipt["waiting"]) == (True, True)
    assert "tx-unheard" in {entry.id for entry in bank.store.waiting()}
    assert bank.post("/v1/outcomes/fraud", {"id": "tx-unheard", "fraud": True}).json() == receipt | {"new": False}
    assert bank.decide(payment("tx-unheard")).status_code == 200
    assert "tx-unheard" not in {entry.id for entry in bank.store.waiting()}


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        ({"id": "tx-1", "fraud": "yes"}, "fraud", "is a text, not true or false"),
        ({"id": "tx-1", "fraud": 1}, "fraud", ""),
        ({"id": "tx-1", "fraud": None}, "fraud", ""),
        ({"id": "tx-1"}, "fraud", "is missing"),
        ({"fraud": True}, "id", "is missing"),
        ({"id": "", "fraud": True}, "id", ""),
        ({"id": "x" * 201, "fraud": True}, "id", ""),
        ({"id": "tx-1", "fraud": True, "time": "2018-04-02T10:00:00Z"}, "time", "not a field"),
    ],
)
def test_a_broken_outcome_is_refused(bank: Bank, body: dict[str, Any], field: str, reason: str):
    position, dead, waiting = bank.size
    refused(bank.post("/v1/outcomes/fraud", body), 422, f"Fraud.{field}", reason=reason)
    assert bank.size == (position, dead + 1, waiting)
    assert bank.store.dead_letters()[-1].source == "transactions.fraud"


def test_outcomes_come_in_batches_too(bank: Bank):
    bank.decide(payment("tx-o1"))
    answers = bank.lines(
        "/v1/outcomes/fraud",
        {"id": "tx-o1", "fraud": True},
        {"id": "tx-o1", "fraud": False},
        {"id": "tx-o2", "fraud": True},
        b"nonsense",
    )
    assert (answers[0]["new"], answers[0]["waiting"], answers[2]["waiting"]) == (True, False, True)
    assert [(a["status"], a["line"]) for a in (answers[1], answers[3])] == [(409, 2), (400, 4)]


# What it says of itself


def test_it_is_alive_and_ready(bank: Bank):
    live = bank.store.active_version("fraud")
    assert bank.http.get("/v1/ready").json() == {"status": "ready", "use_case": "fraud", "model": live}
    for path in ("/v1/health", "/healthz", "/livez", "/readyz"):  # the latter are what probes ask for
        assert bank.http.get(path).status_code == 200


def test_its_description_is_openapi_and_names_every_path(bank: Bank):
    document = bank.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1") and document["info"]["title"] == "fraud"
    assert set(document["paths"]) == {
        "/",
        "/docs",
        "/v1/decide",
        "/v1/decisions",
        "/v1/decisions/{id}",
        "/v1/decisions/{id}/explanation",
        *(f"/v1/models/{change}" for change in ("promote", "rollback")),
        *("/v1/policy", "/v1/policy/rollback"),
        *("/v1/rollouts", "/v1/rollouts/{name}/step", "/v1/rollouts/{name}/stop"),
        EVENTS,
        f"{EVENTS}/{{id}}",
        "/v1/outcomes/transactions.fraud",
        *(
            f"/v1/{name}"
            for name in ("features", "models", "catalog", "access", "metrics", "openapi.json", "health", "ready")
        ),
    }
    bank.decide(payment("tx-described"))
    schemas = document["components"]["schemas"]
    wanted = {text[1:-1].removeprefix("#/components/schemas/") for text in references(document)}
    assert wanted <= schemas.keys()
    assert schemas["transactions"]["required"] == ["id", "time", "customer_id", "terminal_id", "amount"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert {"200", "405", "500", "503"} <= operation["responses"].keys()
            url = path.replace("{id}", "tx-described")
            assert bank.http.request(method, url, json={} if method == "post" else None).status_code not in (404, 405)


def references(document: Any) -> set[str]:
    if isinstance(document, dict):
        here = {repr(document["$ref"])} if "$ref" in document else set()
        return here.union(*map(references, document.values()))
    return set().union(*map(references, document)) if isinstance(document, list) else set()


def test_answers_and_the_description_agree(bank: Bank):
    """A decision, a receipt, an event and a problem are what their schemas say."""
    document = bank.http.get("/openapi.json").json()

    def check(value: Any, name: str) -> None:
        jsonschema.validate(value, {"$ref": f"#/components/schemas/{name}", "components": document["components"]})

    check(bank.decide(payment("tx-schema")).json(), "Decision")
    check(payment("tx-schema"), "transactions")
    check(bank.post(EVENTS, payment("tx-schema-2")).json(), "Receipt")
    check(bank.http.get(f"{EVENTS}/tx-schema").json(), "transactions_entry")
    check(bank.decide(payment("tx-schema", amount=-1)).json(), "Problem")
    check(bank.http.get("/nowhere").json(), "Problem")


def test_a_promotion_is_followed_within_a_second(bank: Bank, made: Packaged):
    """By whichever process it was made."""
    before = bank.decide(payment("tx-old-model")).json()["model"]["version"]
    version = put_live(fraud, bank.store, another=1.0)
    assert version != before == made.version
    until = time.monotonic() + 1
    while time.monotonic() < until and bank.http.get("/v1/ready").json()["model"] != version:
        time.sleep(0.01)
    assert bank.decide(payment("tx-new-model")).json()["model"]["version"] == version
    assert bank.http.get("/v1/ready").json()["model"] == version


def test_nothing_unexpected_happened_inside(bank: Bank):
    """This test stands last: it reads the log of the service that all tests above used."""
    assert "Traceback" not in bank.server.output and "unexpected" not in bank.server.output, bank.server.output


def test_without_a_model_it_decides_by_the_fallback_and_is_not_ready(tmp_path: Path):
    """And it is ready as soon as there is a model, without being started again."""
    with closing(Application(fraud, Settings(state=tmp_path / "state", trust_loopback=True))) as app:
        app.start()

        def ask(method: str, path: str, body: Any = None) -> httpx.Response:
            return asyncio.run(ask_here(app, method, path, body))

        assert ask("GET", "/v1/health").status_code == 200
        assert ask("GET", "/readyz").status_code == 503
        readiness = ask("GET", "/v1/ready").json()
        assert "no model is active" in readiness["reason"] and "mlpkg train fraud" in readiness["reason"]
        made = ask("POST", "/v1/decide", payment("tx-0", time=iso(now() - HOUR))).json()
        assert (made["action"], made["score"], made["model"]) == ("review", None, {})
        assert made["fallback"]["why"] == "model" and "no model is active" in made["fallback"]["detail"]
        version = put_live(fraud, app.store)
        until = time.monotonic() + 10
        while (ready := ask("GET", "/v1/ready")).status_code != 200:
            assert time.monotonic() < until, ready.text
            time.sleep(0.05)
        assert ready.json()["model"] == version
        assert ask("POST", "/v1/decide", payment("tx-1")).json()["features"]["customer_n_tx_1d"] == 2


async def ask_here(app: Any, method: str, path: str, body: Any = None) -> httpx.Response:
    """An answer of an application in this process."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        return await http.request(method, path, json=body)


def test_without_a_model_or_a_fallback_it_says_what_is_missing(tmp_path: Path):
    """And what could not be decided was not taken."""
    with closing(Application(handbook.fraud, Settings(state=tmp_path, trust_loopback=True))) as app:
        for method, path, body in (("GET", "/v1/ready", None), ("POST", "/v1/decide", payment("tx-1"))):
            answer = asyncio.run(ask_here(app, method, path, body))
            problem = answer.json()
            assert (answer.status_code, problem["status"], answer.headers["retry-after"]) == (503, 503, "1")
            assert "no model is active" in problem["reason"] and "mlpkg train fraud" in problem["reason"]
        assert app.store.last_position() == 0
