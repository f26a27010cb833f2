"""Who may do what at the service: tokens, roles, what is recorded, and what is told to nobody."""

import inspect
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest
from serving import Packaged, Server, mlpkg, payment, serving

import mlpkg as ml
from mlpkg import auth
from mlpkg.auth import PERMISSIONS, RECORDED, ROLES
from mlpkg.examples.fraud.policy import fraud
from mlpkg.settings import Settings
from mlpkg.times import DAY, HOUR, MINUTE, iso, now

EVENTS, FRAUD = "/v1/events/transactions", "/v1/outcomes/transactions.fraud"
NEEDS = {  # every operation there is, but for the probes, and the permission that it takes
    ("GET", "/"): None,
    ("GET", "/docs"): None,
    ("POST", "/v1/decide"): "decide",
    ("GET", "/v1/decisions"): "decisions",
    ("GET", "/v1/decisions/{id}"): "decisions",
    ("GET", "/v1/decisions/{id}/explanation"): "explanations",
    ("POST", EVENTS): "send",
    ("GET", f"{EVENTS}/{{id}}"): "events",
    ("POST", FRAUD): "report",
    ("GET", "/v1/features"): "features",
    ("GET", "/v1/models"): "models",
    ("POST", "/v1/models/promote"): "promote",
    ("POST", "/v1/models/rollback"): "promote",
    ("GET", "/v1/rollouts"): "models",
    ("POST", "/v1/rollouts"): "rollouts",
    ("POST", "/v1/rollouts/{name}/step"): "rollouts",
    ("POST", "/v1/rollouts/{name}/stop"): "rollouts",
    ("GET", "/v1/policy"): "models",
    ("POST", "/v1/policy"): "policy",
    ("POST", "/v1/policy/rollback"): "policy",
    ("GET", "/v1/catalog"): "catalog",
    ("GET", "/v1/access"): "access",
    ("GET", "/v1/metrics"): "metrics",
    ("GET", "/v1/openapi.json"): None,
}
WEB = httpx.Client(timeout=20)
PROBES = ("/v1/health", "/livez", "/healthz", "/v1/ready", "/readyz")
BENTOML = ("/schema.json", "/docs.json", "/static_content/x.css", "/v1", "/nothing")


def own_address() -> str:
    """An address of this machine that others may reach; loopback if it has none."""
    addresses = [
        a.address for interface in psutil.net_if_addrs().values() for a in interface if a.family == socket.AF_INET
    ]
    return next((address for address in addresses if not address.startswith("127.")), "127.0.0.1")


@dataclass
class Office:
    """A service that others may reach, with a token for every role."""

    server: Server
    store: Any
    tokens: dict[str, str]
    address: str

    def token(self, role: str, **how: str) -> tuple[str, auth.Token]:
        return auth.create(self.store, role, by="a test", **how)

    def ask(self, method: str, path: str, token: str | None = None, body: Any = None, **headers: str) -> httpx.Response:
        sent = headers | ({"authorization": f"Bearer {token}"} if token is not None else {})
        return WEB.request(method, self.address + path, json=body, headers=sent)

    def status(self, *request: Any, **headers: str) -> int:
        answer = self.ask(*request, **headers)
        if answer.status_code >= 400:
            problem = answer.json()
            assert answer.headers["content-type"] == "application/problem+json"
            assert problem["status"] == answer.status_code and {"field", "value", "reason"} <= problem.keys()
        return answer.status_code

    def log(self) -> list[dict[str, Any]]:
        return list(auth.all_accesses(self.store))


@pytest.fixture(scope="module")
def office(made: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    folder = tmp_path_factory.mktemp("office")
    state = made.state(folder / "state")
    with serving(made.bento, state, folder / "log", host="0.0.0.0") as server:
        store: Any = ml.open_store(Settings(state=state))
        with closing(store):
            tokens = {role: auth.create(store, role, name=f"the {role}", by="a test")[0] for role in ROLES}
            yield Office(server, store, tokens, f"http://{own_address()}:{server.port}")


def test_the_matrix_is_about_all_that_the_service_describes(office: Office):
    document = office.ask("GET", "/v1/openapi.json", office.tokens["reporter"]).json()
    described = {(m.upper(), path): o for path, methods in document["paths"].items() for m, o in methods.items()}
    assert described.keys() - {("GET", "/v1/health"), ("GET", "/v1/ready")} == NEEDS.keys()
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for call, need in NEEDS.items():
        assert {"401", "414", "431"} <= described[call]["responses"].keys()
        assert ("403" in described[call]["responses"]) == (need is not None)
        assert all((role in described[call]["description"]) == (need in may) for role, may in ROLES.items() if need)


def test_every_permission_belongs_to_some_role():
    assert set().union(*ROLES.values()) == PERMISSIONS.keys()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("method", "path"), NEEDS)
def test_a_role_can_do_what_it_needs_and_nothing_else(office: Office, role: str, method: str, path: str):
    need, before = NEEDS[method, path], len(office.log())
    body = payment(f"tx-{role}") if method == "POST" else None
    url = path.replace("{id}", "tx-application").replace("{name}", "fees")
    status = office.status(method, url, office.tokens[role], body)
    allowed = need is None or need in ROLES[role]
    assert (status not in (401, 403)) if allowed else status == 403, (role, method, path, status)
    assert status < 500
    recorded = office.log()[: len(office.log()) - before]
    if need is not None and (need in RECORDED or not allowed):
        (entry,) = recorded
        logged = (entry["name"], entry["role"], entry["method"], entry["path"], entry["allowed"])
        assert logged == (f"the {role}", role, method, url, allowed)
    else:
        assert recorded == [] or path == "/", "a page is recorded by what it shows"


@pytest.mark.parametrize(("method", "path"), NEEDS)
def test_without_a_token_nothing_is_told(office: Office, method: str, path: str):
    """A service that listens on all addresses refuses callers on loopback, too."""
    for address in (office.address, office.server.address):
        answer = httpx.request(method, address + path.replace("{id}", "tx-1"), json=payment("tx-stranger"))
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.headers["content-type"] == "application/problem+json"
    assert office.store.entry("transactions", "tx-stranger") is None


def test_what_bentoml_would_answer_is_not_told_either(office: Office):
    for path in BENTOML:
        assert (office.status("GET", path), office.status("GET", path, office.tokens["auditor"])) == (401, 404), path


def test_the_first_page_is_not_bentomls(office: Office):
    page = office.ask("GET", "/", office.tokens["auditor"], accept="text/html").text
    assert "<h1>fraud</h1>" in page and "swagger" not in page.lower()


def test_probes_are_answered_without_a_token_and_without_details(office: Office):
    for path in PROBES:
        assert office.ask("GET", path).json().keys() == {"status"}
    assert office.ask("GET", "/v1/ready", office.tokens["reporter"]).json() == {"status": "ready"}
    ready = office.ask("GET", "/v1/ready", office.tokens["operator"]).json()
    assert ready["model"] == office.store.active_version("fraud")


def test_a_wrong_token_is_nobodys(office: Office):
    text = office.tokens["auditor"]
    _, id, secret = text.split("_", 2)
    other = office.tokens["operator"].split("_", 2)[2]
    for wrong in (
        f"mlpkg_{id}_{other}",
        f"mlpkg_{id}_",
        f"mlpkg_000000000000_{secret}",
        text + "x",
        text[:-1],
        secret,
        id,
        "x" * 5000,
    ):
        answer = office.ask("GET", "/v1/decisions", wrong)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"'), wrong
        assert text not in answer.text and secret not in answer.text
    assert office.status("GET", "/v1/decisions", authorization="Bearer") == 401
    for scheme in ("Basic", "Token", "mlpkg"):
        assert office.status("GET", "/v1/decisions", authorization=f"{scheme} {text}") == 401
    assert office.status("GET", "/v1/ready", "wrong") == 401
    assert office.status("GET", "/v1/decisions", authorization=f"bearer {text}") == 200, "the scheme has no case"


def test_what_a_proxy_says_is_not_believed(office: Office):
    for name in ("x-forwarded-for", "x-real-ip", "forwarded", "x-forwarded-host", "host"):
        assert office.status("GET", "/v1/decisions", **{name: "127.0.0.1"}) == 401


def test_a_revoked_token_is_refused_within_a_second(office: Office):
    made = mlpkg("token", "create", "--role", "auditor", "--name", "for a day", state=office.server.state)
    assert office.status("GET", "/v1/models", made["token"]) == 200, "and a new one holds at once"
    assert mlpkg("token", "revoke", made["id"], state=office.server.state)["holds"] is False
    revoked = time.monotonic()
    while office.status("GET", "/v1/models", made["token"]) != 401:
        assert time.monotonic() - revoked < 1
    assert office.status("GET", "/v1/models", office.tokens["auditor"]) == 200


def test_a_token_expires(office: Office):
    text, _ = office.token("auditor", expires="1s")
    assert office.status("GET", "/v1/models", text) == 200
    time.sleep(1)
    assert office.status("GET", "/v1/models", text) == 401


def test_a_decision_names_its_caller(office: Office):
    body = payment("tx-caller")
    first = office.ask("POST", "/v1/decide", office.tokens["application"], body)
    assert first.json()["caller"] == "the application"
    other, _ = office.token("application", name="the application")
    assert office.ask("POST", "/v1/decide", other, body).content == first.content, "the next token of the same caller"
    nameless, token = office.token("application")
    assert office.ask("POST", "/v1/decide", nameless, payment("tx-nameless")).json()["caller"] == token.id


def test_a_decision_is_told_to_its_own_caller_alone(office: Office):
    """By its id, by all of its event, and in a batch; what another caller asked for is recorded like a look."""
    body, own = payment("tx-own"), office.tokens["application"]
    other, _ = office.token("application", name="another shop")
    first = office.ask("POST", "/v1/decide", own, body)
    assert first.status_code == 200
    before = len(office.log())
    for again in ({"id": "tx-own"}, body):
        assert office.ask("POST", "/v1/decide", own, again).content == first.content
    assert len(office.log()) == before, "one's own decision is no look at somebody else's"
    for k, again in enumerate(({"id": "tx-own"}, body, {"id": "tx-own", "candidates": None})):
        answer = office.ask("POST", "/v1/decide", other, again)
        if answer.status_code == 422:  # not a form of the id alone
            before -= 1
            continue
        assert answer.status_code == 403 and "role auditor" in answer.json()["detail"], again
        assert not {"score", "features", "action"} & answer.json().keys()
        assert len(office.log()) == before + k + 1
        seen = office.log()[0]
        assert (seen["name"], seen["method"], seen["allowed"]) == ("another shop", "POST", False)
        assert "/v1/decide" in seen["path"] and "tx-own" in seen["path"]
    lines = "\n".join(json.dumps(line) for line in (payment("tx-new"), {"id": "tx-own"}, body, {"id": "tx-new"}))
    headers = {"content-type": "application/x-ndjson", "authorization": f"Bearer {other}"}
    answers = httpx.post(f"{office.address}/v1/decide", content=lines, headers=headers).text.splitlines()
    decided = [json.loads(line) for line in answers]
    assert [line.get("status", 200) for line in decided] == [200, 403, 403, 200]
    assert decided[1]["line"] == 2 and not {"score", "features"} & decided[1].keys()
    assert [a["allowed"] for a in office.log()[:2]] == [False, False]


def test_an_event_that_nobody_has_decided_is_decided_for_whoever_asks(office: Office):
    office.ask("POST", EVENTS, office.tokens["application"], payment("tx-sent"))
    other, _ = office.token("application", name="third shop")
    assert office.ask("POST", "/v1/decide", other, {"id": "tx-sent"}).json()["caller"] == "third shop"
    assert office.status("POST", "/v1/decide", office.tokens["application"], {"id": "tx-sent"}) == 403


TOKENS_ELSEWHERE = ["?token={}", "?access_token={}&limit=1", "?api_key={}", "/{}", "?limit={}", "?a=b%26token%3D{}"]


@pytest.mark.parametrize("where", TOKENS_ELSEWHERE)
def test_a_token_in_an_address_is_not_kept(office: Office, where: str):
    text, token = office.token("auditor", name="careless")
    for shown in (text, text.replace("_", "%5F"), text.replace("_", "%255F"), text.replace("m", "%6d", 1)):
        office.ask("GET", f"/v1/decisions{where.format(shown)}", office.tokens["auditor"])
        office.ask("GET", f"/v1/decisions{where.format(shown)}", text)
        office.ask("GET", f"/v1/decisions{where.format(shown)}")
    office.ask("GET", f"/v1/decisions{where.format(text.removeprefix('mlpkg_'))}", office.tokens["auditor"])
    secret = text.split("_", 2)[2]
    files = [p for p in office.server.state.rglob("*") if p.is_file()] + [office.server.log]
    assert not [p for p in files if secret.encode() in p.read_bytes()]
    assert any(token.id in a["path"] and "[redacted]" in a["path"] for a in office.log()[:10]), (
        "it can still be revoked"
    )


def test_a_token_in_a_body_is_not_kept(office: Office):
    """Among the dead letters, of one event and of a batch; nor in what the service logs."""
    text, _ = office.token("application", name="careless too")
    secret = text.split("_", 2)[2]
    for field in ("amount", "id", "customer_id", "time", "note", f"{text}"):
        body = payment(f"tx-careless-{len(field)}") | {field: text if field != "id" else f"{text} {'x' * 300}"}
        for path in ("/v1/decide", EVENTS, FRAUD):
            assert (
                office.status("POST", path, office.tokens["reporter" if path == FRAUD else "application"], body) == 422
            )
        headers = {"content-type": "application/x-ndjson", "authorization": f"Bearer {text}"}
        httpx.post(office.address + EVENTS, content=json.dumps(body), headers=headers)
    office.ask("POST", "/v1/decide", office.tokens["application"], text)
    files = [p for p in office.server.state.rglob("*") if p.is_file()] + [office.server.log]
    assert not [p for p in files if secret.encode() in p.read_bytes()]


def test_who_looked_at_what_can_be_read_by_auditors_and_on_the_command_line(office: Office):
    office.ask("GET", "/v1/decisions/tx-caller", office.tokens["auditor"])
    office.ask("GET", "/v1/features?customer_id=17", office.tokens["auditor"])
    office.ask("GET", "/v1/decisions/tx-caller", office.tokens["application"])
    expected = [
        ("the application", "/v1/decisions/tx-caller", False),
        ("the auditor", "/v1/features?customer_id=17", True),
        ("the auditor", "/v1/decisions/tx-caller", True),
    ]
    page = office.ask("GET", "/v1/access?limit=4", office.tokens["auditor"]).json()
    assert [(a["name"], a["path"], a["allowed"]) for a in page["access"][1:]] == expected
    assert page["access"][0]["path"] == "/v1/access?limit=4", "to look at who looked is to look"
    following = office.ask("GET", f"/v1/access?limit=2&cursor={page['next']}", office.tokens["auditor"]).json()
    assert len(following["access"]) == 2 and following["access"][0]["at"] <= page["access"][-1]["at"]
    entries = mlpkg("access-log", "-n", 5, state=office.server.state)
    assert [(a["name"], a["path"], a["allowed"]) for a in entries[2::-1]] == expected
    assert entries[0]["id"] in {held["id"] for held in mlpkg("token", "list", state=office.server.state)}


def test_decisions_are_found_by_entity_and_by_time_page_by_page(office: Office):
    sent = []
    for k in range(7):
        body = payment(f"tx-page-{k}", customer_id=41, terminal_id=k)
        office.ask("POST", "/v1/decide", office.tokens["application"], body)
        sent.insert(0, body)
    decisions, further = [], ""
    while further is not None:
        query = (
            f"/v1/decisions?entity=customer_id%3D41&limit=3&since={sent[-1]['time']}{further and f'&cursor={further}'}"
        )
        page = office.ask("GET", query, office.tokens["auditor"]).json()
        decisions, further = decisions + page["decisions"], page["next"]
    assert [d["event"] for d in decisions] == [b["id"] for b in sent]
    between = office.ask(
        "GET", f"/v1/decisions?since={sent[4]['time']}&until={sent[1]['time']}", office.tokens["auditor"]
    ).json()
    assert [d["event"] for d in between["decisions"]] == [b["id"] for b in sent[2:5]]
    for wrong in (
        "limit=0",
        "limit=1001",
        "since=soon",
        "entity=41",
        "entity=amount%3D1",
        "customer_id=41",
        "cursor=x",
    ):
        assert office.status("GET", f"/v1/decisions?{wrong}", office.tokens["auditor"]) == 400


def test_present_features_are_those_of_the_next_decision_without_its_event(office: Office):
    present = office.ask("GET", "/v1/features?customer_id=41&terminal_id=3", office.tokens["auditor"]).json()
    body = payment("tx-present", customer_id=41, terminal_id=3)
    served = office.ask("POST", "/v1/decide", office.tokens["application"], body).json()
    assert present["model"] == served["model"] and present["features"].keys() <= served["features"].keys()
    name = "customer_n_tx_30d"
    assert served["features"][name] == present["features"][name] + 1 > 7
    assert not any(
        n.startswith("terminal")
        for n in office.ask("GET", "/v1/features?customer_id=41", office.tokens["auditor"]).json()["features"]
    )


def test_the_catalog_and_the_models_are_those_of_the_command_line(office: Office):
    answer = office.ask("GET", "/v1/catalog", office.tokens["operator"]).json()
    assert answer == mlpkg("catalog", "fraud", state=office.server.state)
    answer = office.ask("GET", "/v1/models", office.tokens["operator"]).json()
    assert answer["models"] == mlpkg("models", "fraud", state=office.server.state)


def test_every_answer_says_what_may_be_done_with_it(office: Office):
    for path, token in (
        ("/v1/health", None),
        ("/v1/models", None),
        ("/v1/models", office.tokens["auditor"]),
        ("/x", None),
    ):
        headers = office.ask("GET", path, token).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert headers["content-security-policy"].startswith("default-src 'none'") and "server" not in headers
    lines = httpx.post(
        office.address + EVENTS,
        content=b"{}\n",
        headers={"content-type": "application/x-ndjson", "authorization": f"Bearer {office.tokens['application']}"},
    )
    assert lines.headers["x-content-type-options"] == "nosniff" and json.loads(lines.text)["status"] == 422


def test_the_head_of_a_request_is_bounded(office: Office):
    text = office.tokens["auditor"]
    assert office.status("GET", f"/v1/decisions/{'x' * 9000}", text) == 414
    assert office.status("GET", f"/v1/decisions?entity={'x' * 9000}", text) == 414
    assert office.status("GET", "/v1/decisions", text, None, **{f"x-{k}": "1" for k in range(100)}) == 431
    assert office.status("GET", "/v1/decisions", text, None, big="x" * 40_000) == 431
    assert office.status("GET", "/v1/decisions", text) == 200


def test_a_secret_is_kept_nowhere(office: Office):
    """Not in the store, nor in what the service says."""
    made = mlpkg("token", "create", "--role", "operator", state=office.server.state)["token"]
    assert re.fullmatch(r"mlpkg_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", made)
    assert office.status("GET", "/v1/models", made) == 200
    files = [p for p in office.server.state.rglob("*") if p.is_file()] + [office.server.log]
    for text in (made, *office.tokens.values()):
        secret = text.split("_", 2)[2].encode()
        assert not [p for p in files if secret in p.read_bytes()]
    assert office.store.tokens()[made.split("_")[1]].hash.encode() in b"".join(
        p.read_bytes() for p in files if p.name.startswith("mlpkg.db")
    )


def test_secrets_are_compared_in_constant_time():
    assert "hmac.compare_digest(" in inspect.getsource(auth.caller_of)
    assert "==" not in inspect.getsource(auth.caller_of).replace('kind == "mlpkg"', "")


# History


DAYS_AGO = now() - 10 * DAY
PAST = {"time": iso(DAYS_AGO), "arrived": iso(DAYS_AGO + MINUTE)}  # when it happened, and when it came


def lines(office: Office, role: str, path: str, *bodies: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers to a batch."""
    headers = {"authorization": f"Bearer {office.tokens[role]}", "content-type": "application/x-ndjson"}
    content = "\n".join(map(json.dumps, bodies))
    return [
        json.loads(line)
        for line in WEB.post(office.address + path, content=content, headers=headers).text.split("\n")
        if line
    ]


def test_an_operator_says_when_something_arrived(office: Office):
    """A decision, an event and outcomes, alone and in a batch; each is in the log with this arrival, and a decision is verified."""
    decided = office.ask("POST", "/v1/decide", office.tokens["operator"], payment("old-1", **PAST))
    assert (decided.status_code, decided.json()["caller"]) == (200, "the operator"), decided.text
    assert office.status("POST", EVENTS, office.tokens["operator"], payment("old-2", **PAST)) == 200
    answers = lines(
        office, "operator", "/v1/decide", payment("old-3", **PAST), payment("old-4"), payment("old-5", **PAST)
    )
    assert [answer["event"] for answer in answers] == ["old-3", "old-4", "old-5"]
    truth = {"id": "old-1", "fraud": True, "arrived": iso(DAYS_AGO + DAY)}
    assert office.status("POST", FRAUD, office.tokens["operator"], truth) == 200
    correction = {"id": "old-1", "fraud": False, "corrects": True, "arrived": iso(DAYS_AGO + 2 * DAY)}
    assert lines(office, "operator", FRAUD, correction)[0]["new"]

    arrivals = {e.id: e.arrived for e in office.store.read(streams=["transactions"]) if e.id.startswith("old-")}
    assert {id for id, arrived in arrivals.items() if arrived == DAYS_AGO + MINUTE} == {
        "old-1",
        "old-2",
        "old-3",
        "old-5",
    }
    assert now() - arrivals["old-4"] < HOUR, "a line that does not say when it arrived arrives now"
    reports = [e.arrived for e in office.store.read(streams=["transactions.fraud"]) if e.id.startswith("old-1")]
    assert reports == [DAYS_AGO + DAY, DAYS_AGO + 2 * DAY]
    recorded = office.store.entry("decisions.fraud", "old-3")
    assert recorded.arrived == DAYS_AGO + MINUTE and recorded.time == DAYS_AGO
    result = ml.decisions.verify(fraud, office.store)
    assert (result.mismatches, result.differences) == (0, []) and result.decisions >= 4
    again = office.ask("POST", "/v1/decide", office.tokens["operator"], payment("old-1", time=PAST["time"]))
    assert again.content == decided.content, "an arrival is no part of what an id stands for"


@pytest.mark.parametrize(
    ("role", "path"), [("application", "/v1/decide"), ("application", EVENTS), ("reporter", FRAUD)]
)
def test_nobody_else_says_when_something_arrived(office: Office, role: str, path: str):
    body = payment("late-1", **PAST) if path != FRAUD else {"id": "late-1", "fraud": True, "arrived": PAST["arrived"]}
    size = office.store.last_position()
    answer = office.ask("POST", path, office.tokens[role], body).json()
    assert (answer["status"], answer["field"], answer["value"]) == (403, "arrived", PAST["arrived"])
    assert "the role operator" in answer["reason"] and "leave it out" in answer["reason"]
    (entry,) = office.log()[:1]
    assert (entry["name"], entry["path"], entry["allowed"]) == (f"the {role}", path, False)
    (answer,) = lines(office, role, path, body)
    assert (answer["status"], answer["field"], answer["line"]) == (403, "arrived", 1)
    assert office.store.last_position() == size and office.store.entry("transactions", "late-1") is None


AHEAD = iso(now() + DAY)


@pytest.mark.parametrize(
    ("arrived", "status", "field", "value", "reason"),
    [
        (
            iso(DAYS_AGO - HOUR),
            422,
            "Transaction.time",
            PAST["time"],
            f"5m after the event arrived, at {iso(DAYS_AGO - HOUR)}",
        ),
        (iso(DAYS_AGO + 5 * DAY), 422, "Transaction.time", PAST["time"], "before the event arrived, at"),
        (AHEAD, 422, "Transaction.arrived", AHEAD, "5m ahead of the clock of this machine"),
        ("2018-07-25T10:00:00", 422, "Transaction.arrived", "2018-07-25T10:00:00", "has no time zone"),
        ("1969-07-25T10:00:00Z", 422, "Transaction.arrived", "1969-07-25T10:00:00Z", "is outside 1970–2200"),
        (1522663200, 422, "Transaction.arrived", "1522663200", "is a number, not a time"),
        ("soon", 422, "Transaction.arrived", "soon", "is not a time"),
    ],
    ids=["before its event", "too late", "ahead of the clock", "no zone", "before 1970", "a number", "no time"],
)
def test_an_arrival_that_the_log_does_not_take_is_named(
    office: Office, arrived: Any, status: int, field: str, value: str, reason: str
):
    dead = len(office.store.dead_letters())
    for path in ("/v1/decide", EVENTS):
        body = payment("odd", time=PAST["time"], arrived=arrived)
        answer = office.ask("POST", path, office.tokens["operator"], body).json()
        assert (answer["status"], answer["field"], answer["value"], answer["event"]) == (status, field, value, "odd")
        assert reason in answer["reason"], answer
    assert len(office.store.dead_letters()) == dead + 2 and office.store.entry("transactions", "odd") is None


def test_an_outcome_cannot_have_arrived_in_the_future(office: Office):
    answer = office.ask(
        "POST", FRAUD, office.tokens["operator"], {"id": "old-9", "fraud": True, "arrived": AHEAD}
    ).json()
    assert (answer["status"], answer["field"], answer["event"]) == (422, "transactions.fraud.arrived", "old-9")
    twice = f'{{"id": "old-9", "fraud": true, "arrived": "{AHEAD}", "arrived": "{AHEAD}"}}'.encode()
    headers = {"authorization": f"Bearer {office.tokens['operator']}", "content-type": "application/json"}
    answer = WEB.post(office.address + FRAUD, content=twice, headers=headers).json()
    assert answer["field"] == "Fraud.arrived" and "given twice" in answer["reason"]


def test_nothing_unexpected_happened_inside(office: Office):
    """This test stands last: it reads the log of the service that all tests above used."""
    assert "Traceback" not in office.server.output and "unexpected" not in office.server.output, office.server.output
