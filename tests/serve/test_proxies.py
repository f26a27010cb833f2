"""Behind a proxy or a forwarded port: every caller looks as if it were on this machine, and needs a token all the same."""

import contextlib
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from command import Command
from project import Project
from serving import SCRIPTS, Packaged, Server, environment, free_port, mlpkg, payment, serving

import mlpkg as ml
from mlpkg import auth
from mlpkg.settings import Settings

EVENTS = "/v1/events/transactions"
WEB = httpx.Client(timeout=20)
ASKED = [
    ("POST", "/v1/decide"),
    ("POST", EVENTS),
    ("POST", "/v1/outcomes/transactions.fraud"),
    ("GET", "/v1/decisions"),
    ("GET", "/v1/decisions/tx-1"),
    ("GET", f"{EVENTS}/tx-1"),
    ("GET", "/v1/features?customer_id=17"),
    ("GET", "/v1/models"),
    ("GET", "/v1/catalog"),
    ("GET", "/v1/access"),
    ("GET", "/metrics"),
    ("GET", "/v1/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/nothing"),
]


@pytest.fixture(scope="module")
def closed(made: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service on loopback whose settings trust nobody, as they do unless they say otherwise."""
    folder = tmp_path_factory.mktemp("closed")
    with serving(made.bento, made.state(folder / "state"), folder / "log", MLPKG_TRUST_LOOPBACK="false") as server:
        yield server


@pytest.fixture(scope="module")
def trusting(made: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service on loopback whose settings say trust_loopback."""
    folder = tmp_path_factory.mktemp("trusting")
    with serving(made.bento, made.state(folder / "state"), folder / "log", MLPKG_TRUST_LOOPBACK="true") as server:
        httpx.post(f"{server.address}/v1/decide", json=payment("tx-1")).raise_for_status()
        yield server


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve each connection to a port of this machine in a thread; the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    threading.Thread(target=attend, args=(client,), daemon=True).start()

        def attend(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError):
                serve(client)

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65_536):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


def forwarding(port: int) -> contextlib.AbstractContextManager[int]:
    """A forwarded port, as `ssh -L`, `socat` or `kubectl port-forward` make one: it reads nothing of what passes."""

    def serve(client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as server:
            back = threading.Thread(target=pump, args=(server, client))
            back.start()
            pump(client, server)
            back.join()

    return listening(serve)


def proxying(
    port: int, version: str, *more: str, host: str = "127.0.0.1:{port}"
) -> contextlib.AbstractContextManager[int]:
    """An HTTP proxy as nginx is with `proxy_pass http://127.0.0.1:port` alone: its own Host, `Connection: close`, only `more` added."""

    def serve(client: socket.socket) -> None:
        head, _, body = receive_head(client)
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        kept = [line for line in lines if line.partition(":")[0].lower() not in ("host", "connection")]
        size = next((int(line.partition(":")[2]) for line in kept if line.lower().startswith("content-length:")), 0)
        while len(body) < size:
            body += client.recv(65_536)
        sent = [
            f"{method} {target} HTTP/{version}",
            f"Host: {host.format(port=port)}",
            "Connection: close",
            *kept,
            *more,
        ]
        with socket.create_connection(("127.0.0.1", port)) as server:
            server.sendall("\r\n".join([*sent, "", ""]).encode("latin-1") + body)
            pump(server, client)

    return listening(serve)


def receive_head(client: socket.socket) -> tuple[str, str, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        piece = client.recv(65_536)
        if not piece:
            raise OSError("it hung up")
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    return head.decode("latin-1"), "", body


def ask(port: int, method: str, path: str, headers: dict[str, str] | None = None, body: Any = None) -> httpx.Response:
    data = body if body is not None or method == "GET" else payment("tx-proxy")
    return WEB.request(method, f"http://127.0.0.1:{port}{path}", json=data, headers=headers)


def looked(server: Server) -> int:
    """How much the access log holds."""
    store: Any = ml.open_store(Settings(state=server.state))
    with closing(store):
        return len(list(auth.all_accesses(store)))


def token(server: Server, role: str, name: str = "") -> str:
    """A new token, made in the store of a server that is running."""
    store: Any = ml.open_store(Settings(state=server.state))
    with closing(store):
        return auth.create(store, role, by="a test", name=name)[0]


WAYS = {
    "straight": lambda port: contextlib.nullcontext(port),
    "forwarded port": forwarding,
    "nginx": lambda port: proxying(port, "1.0"),
    "nginx with HTTP/1.1": lambda port: proxying(port, "1.1"),
    "nginx with an upstream": lambda port: proxying(port, "1.1", host="backend"),
    "proxy that passes the name on": lambda port: proxying(port, "1.1", host="bank.example.com"),
    "proxy that says so": lambda port: proxying(port, "1.1", "X-Forwarded-For: 203.0.113.7"),
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_open_without_a_token_by_default(closed: Server, way: str):
    assert closed.port
    before = looked(closed)
    with WAYS[way](closed.port) as port:
        for method, path in ASKED:
            answer = ask(port, method, path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), (method, path)
            assert "mlpkg token create" in answer.json()["detail"]
        for path in ("/v1/health", "/livez", "/healthz", "/v1/ready", "/readyz"):
            answer = ask(port, "GET", path)
            assert answer.status_code == 200 and answer.json().keys() == {"status"}, path
    assert looked(closed) == before
    store: Any = ml.open_store(Settings(state=closed.state))
    with closing(store):
        assert store.entry("transactions", "tx-proxy") is None


@pytest.mark.parametrize("way", WAYS)
def test_with_a_token_a_proxy_is_no_obstacle(closed: Server, way: str):
    assert closed.port
    tokens = {role: token(closed, role, f"{role} {way}") for role in ("application", "monitor")}
    with WAYS[way](closed.port) as port:
        headers = {"authorization": f"Bearer {tokens['application']}"}
        decided = ask(port, "POST", "/v1/decide", headers, payment(f"tx-{way}"))
        assert decided.status_code == 200 and decided.json()["caller"] == f"application {way}"
        for path in ("/metrics", "/v1/metrics"):
            assert ask(port, "GET", path, headers).status_code == 403
            assert ask(port, "GET", path, {"authorization": f"Bearer {tokens['monitor']}"}).status_code == 200
        monitors = {"authorization": f"Bearer {tokens['monitor']}"}
        assert ask(port, "GET", "/v1/ready", monitors).json()["status"] == "ready"
        assert ask(port, "POST", "/v1/decide", monitors, payment("tx-monitor")).status_code == 403


def test_who_calls_from_this_machine_needs_no_token_where_settings_say_so(trusting: Server):
    assert trusting.port
    for host in (
        "localhost",
        f"127.0.0.1:{trusting.port}",
        "[::1]:3000",
        "127.0.0.2",
        "LocalHost.",
        "shop.localhost:80",
    ):
        assert ask(trusting.port, "GET", "/v1/decisions/tx-1", {"host": host}).status_code == 200, host
    assert ask(trusting.port, "GET", "/metrics").status_code == 200


def test_on_loopback_no_token_is_needed_and_a_wrong_one_is_still_refused(trusting: Server):
    state = trusting.state
    with httpx.Client(base_url=trusting.address) as http:
        decided = http.post("/v1/decide", json=payment("tx-here")).json()
        assert decided["caller"] is None
        assert http.get("/v1/decisions/tx-here").json() == decided
        (seen,) = mlpkg("access-log", "-n", 1, state=state)
        assert (seen["id"], seen["path"], seen["role"]) == ("loopback", "/v1/decisions/tx-here", None)

        for role in auth.ROLES:
            answer = http.get("/v1/decisions/tx-here", headers={"authorization": f"Bearer {token(trusting, role)}"})
            assert answer.status_code == (200 if role == "auditor" else 403), "a token is its role, also here"
        for far in (
            {"authorization": "Bearer x"},
            {"x-forwarded-for": "127.0.0.1"},
            {"x-forwarded-for": "203.0.113.7"},
            {"forwarded": "for=127.0.0.1"},
            {"via": "1.1 proxy"},
            {"origin": "http://evil.example.com"},
            {"host": f"evil.example.com:{trusting.port}"},
        ):
            assert http.get("/v1/decisions/tx-here", headers=far).status_code == 401, far


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded",
        "X-Forwarded-Prefix", "X-Forwarded-Client-Cert", "X_Forwarded_For", "Forwarded", "X-Real-IP", "X-Real-Port", "Via",
        "CF-Connecting-IP", "CF-Ray", "CF-IPCountry", "CDN-Loop", "True-Client-IP", "X-Client-IP", "X-Cluster-Client-IP",
        "X-Envoy-External-Address", "X-Envoy-Expected-Rq-Timeout-Ms", "X-Original-Forwarded-For", "X-Original-Host", "X-Original-URI",
        "Fastly-Client-IP", "Fly-Client-IP", "X-Azure-ClientIP", "X-Amzn-Trace-Id", "X-Appengine-User-IP", "X-Cloud-Trace-Context",
        "Client-IP", "Proxy-Client-IP", "WL-Proxy-Client-IP", "Tailscale-User-Login", "X-Varnish", "X-ProxyUser-Ip", "Max-Forwards",
        "X-Forwarder-For", "HTTP-X-Forwarded-For", "X-HTTP-Forwarded-For", "Ali-CDN-Real-IP", "CloudFront-Viewer-Address",
        "X-Akamai-Edgescape", "Front-End-Https", "X-Url-Scheme", "Surrogate-Capability", "X-Accel-Internal",
        "X-Sucuri-ClientIP", "X-Request-Start", "X-Served-By",
    ],
)  # fmt: skip
def test_a_header_of_a_proxy_makes_a_caller_a_stranger(trusting: Server, header: str):
    """Whatever it says: what a proxy claims is no reason to trust it."""
    assert trusting.port
    before = looked(trusting)
    for name, value in ((header, "127.0.0.1"), (header.lower(), "203.0.113.7"), (header.upper(), "")):
        assert ask(trusting.port, "GET", "/v1/decisions/tx-1", {name: value}).status_code == 401, (name, value)
    assert ask(trusting.port, "POST", "/v1/decide", {header: "127.0.0.1"}).status_code == 401
    assert ask(trusting.port, "GET", "/metrics", {header: "127.0.0.1"}).status_code == 401
    assert ask(trusting.port, "GET", "/v1/ready", {header: "127.0.0.1"}).json() == {"status": "ready"}
    assert looked(trusting) == before


@pytest.mark.parametrize(
    "host",
    [
        "bank.example.com",
        "evil.example.com:3000",
        "localhost.evil.com",
        "127.0.0.1.nip.io",
        "10.0.0.7",
        "[2001:db8::1]:80",
        "0.0.0.0",
        "1.1",
    ],
)
def test_a_name_that_leads_here_by_dns_is_refused(trusting: Server, host: str):
    """A page whose name was made to point here is of the same origin for its browser."""
    assert trusting.port
    before = looked(trusting)
    for more in ({}, {"sec-fetch-site": "same-origin"}):
        for method, path in (("GET", "/v1/decisions/tx-1"), ("POST", "/v1/decide")):
            assert ask(trusting.port, method, path, {"host": host} | more).status_code == 401
    assert looked(trusting) == before


@pytest.mark.parametrize("site", ["cross-site", "same-site", "CROSS-SITE", "cross-site, none", "", "unknown"])
def test_a_page_of_another_origin_gets_nothing_and_leaves_no_trace(trusting: Server, site: str):
    """A browser sends no Origin with a GET of a picture or a link, but says where that came from."""
    assert trusting.port
    before = looked(trusting)
    for credentials in ({}, {"authorization": f"Bearer {token(trusting, 'auditor')}"}):
        headers = credentials | {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
        for method, path in ASKED:
            assert ask(trusting.port, method, path, headers).status_code == 403, (method, path)
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json"):
            url = f"{trusting.address}/v1/decide"
            body = json.dumps(payment("tx-page"))
            assert WEB.post(url, content=body, headers=headers | {"content-type": kind}).status_code == 403
    assert looked(trusting) == before
    for more in ({"origin": "http://evil.example.com"}, {"origin": "null"}, {"referer": "http://evil.example.com/"}):
        assert ask(trusting.port, "GET", "/v1/decisions/tx-1", more).status_code == 401, more
        assert ask(trusting.port, "POST", "/v1/decide", more, payment("tx-page")).status_code == 401, more
    assert looked(trusting) == before
    store: Any = ml.open_store(Settings(state=trusting.state))
    with closing(store):
        assert store.entry("transactions", "tx-page") is None


def test_an_address_that_was_typed_may_be_looked_at(trusting: Server):
    assert trusting.port
    for site in ("none", "same-origin"):
        assert ask(trusting.port, "GET", "/v1/models", {"sec-fetch-site": site}).status_code == 200


@pytest.mark.parametrize("name", ["Host", "Authorization", "Origin", "Sec-Fetch-Site"])
def test_what_says_who_asks_may_be_said_once(trusting: Server, name: str):
    assert trusting.port
    lines = {"Host": ["evil.example.com", "localhost"]}.get(name, ["none", "none"])
    head = [
        "GET /v1/decisions/tx-1 HTTP/1.1",
        *(["Host: localhost"] if name != "Host" else []),
        *(f"{name}: {line}" for line in lines),
    ]
    with socket.create_connection(("127.0.0.1", trusting.port), timeout=10) as client:
        client.sendall("\r\n".join([*head, "Connection: close", "", ""]).encode())
        received = b""
        while piece := client.recv(65_536):
            received += piece
    assert received.startswith(b"HTTP/1.1 400 ") and b"more than once" in received


def serve_until(made: Packaged, state: Path, log: Path, words: str, cwd: Path, *more: str) -> tuple[str, int]:
    """Run `mlpkg serve` until it prints `words`; its output, and the status of a request for the models without a token."""
    port = free_port()
    command = [SCRIPTS / "mlpkg", "serve", "fraud", "--bento", made.bento.folder, "--port", str(port), *more]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment(state), cwd=cwd, stdout=out, stderr=out)
    try:
        until = time.monotonic() + 60
        while words not in (output := log.read_text()):
            assert process.poll() is None and time.monotonic() < until, output
            time.sleep(0.1)
        return output, ask(port, "GET", "/v1/models").status_code
    finally:
        process.kill()  # and with it what it started
        process.wait()


def test_serve_says_who_needs_a_token(made: Packaged, tmp_path: Path):
    """In one line, which holds also where the settings in the bento say otherwise."""
    state = made.state(tmp_path / "state")
    (tmp_path / "settings.ini").write_text("[local]\ntrust_loopback = true\n")
    output, status = serve_until(made, state, tmp_path / "log", "every caller", tmp_path, "--host", "0.0.0.0")
    assert status == 401 and "there is none yet; make one: mlpkg token create --role application" in output, (
        "who listens to others trusts nobody"
    )
    output, status = serve_until(made, state, tmp_path / "log", "trust_loopback", tmp_path)
    assert status == 200 and len(re.findall("token", output)) == 1
    mlpkg("token", "create", "--role", "application", state=state)
    (tmp_path / "settings.ini").write_text("[DEFAULT]\n")
    output, status = serve_until(made, state, tmp_path / "log", "every caller", tmp_path)
    assert status == 401 and "every caller needs a token; 1 hold" in output


def test_a_setting_that_is_neither_true_nor_false_is_refused(made: Packaged, project: Project, cli: Command):
    for value in ("maybe", "loopback", "2", ""):
        (project.folder / "settings.ini").write_text(f"[local]\ntrust_loopback = {value}\n")
        cli("serve", "fraud", "--bento", made.bento.folder).said_one_line("trust_loopback")
