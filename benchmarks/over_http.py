"""One decision over HTTP, one worker, one client, against a plain BentoML service that only predicts the same model.

    python benchmarks/over_http.py [--own] [--rounds 10] [--requests 1000] [-o build/bench/http.json]

Both run under the same server settings and are asked in turns. Ours accepts the event, extends timelines of about a
hundred events, evaluates the features, scores, applies the policy and stores the record; the other one gets the
features that ours served, and has to give the same score.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

import mlpkg as ml
from mlpkg import decisions, models
from mlpkg.fraud import features as fraud_features
from mlpkg.platform import Batch, Platform
from mlpkg.platform import open as open_platform
from mlpkg.serve.package import build
from mlpkg.serve.run import start_server, stop_server, wait_until_up
from mlpkg.settings import Settings
from mlpkg.times import DAY, iso, now

HERE = Path(__file__).resolve().parent
CUSTOMERS, TERMINALS, EVENTS, DAYS = 500, 1000, 50_000, 40
TREES = 200


def load_history(case: decisions.UseCase, platform: Platform) -> None:
    """Forty days of payments up to now, and the outcome of those that are older than a week."""
    rng = np.random.default_rng(7)
    end = now()
    at = np.sort(rng.integers(end - DAYS * DAY, end - DAY, EVENTS))
    values = {
        "customer_id": rng.integers(0, CUSTOMERS, EVENTS),
        "terminal_id": rng.integers(0, TERMINALS, EVENTS),
        "amount": rng.gamma(2, 25, EVENTS).round(2),
    }
    source, outcome = case.on, next(iter(case.on.outcomes.values()))
    bodies = [
        json.dumps(dict(zip(values, row, strict=True)))
        for row in zip(*(v.tolist() for v in values.values()), strict=True)
    ]
    told = np.flatnonzero(at < end - 7 * DAY)
    truth = rng.random(len(told)) < 0.01
    ids = [f"h-{i}" for i in range(EVENTS)]
    codes = np.column_stack([c.encode_many(values[c.name]) for c in source.columns])
    platform.load(
        Batch(
            streams=[source, outcome],
            stream=np.repeat([0, 1], [EVENTS, len(told)]),
            ids=ids + [ids[i] for i in told.tolist()],
            time=np.concatenate([at, at[told]]),
            arrived=np.concatenate([at, at[told] + 7 * DAY]),
            bodies=bodies + [json.dumps({outcome.name: t}) for t in truth.tolist()],
            codes={source.stream: codes, outcome.stream: truth.astype(np.int64)[:, None]},
            rows=np.arange(EVENTS + len(told)),
        )
    )


def handbook(case: decisions.UseCase) -> ml.FeatureSet:
    """The fourteen features of the Fraud Detection Handbook, and the amount."""
    days, source = ["1d", "7d", "30d"], case.on
    frauds = next(iter(case.on.outcomes.values()))
    customer = source.by("customer_id").agg(n_tx=ml.count(over=days), avg_amount=ml.mean("amount", over=days))
    terminal = frauds.by("terminal_id", delay="7d").agg(
        n_tx=ml.count(over=days), risk=ml.mean(frauds.name, over=days, empty=0.0)
    )
    present = {"amount": ml.field("amount")}
    present |= {name: ml.request(f) for name, f in vars(fraud_features).items() if name.startswith("during_")}
    return ml.FeatureSet(case.name, on=source, customer=customer, terminal=terminal, **present)


def make_model(case: decisions.UseCase, features: ml.FeatureSet, settings: Settings) -> models.Model:
    """A model of the usual size; what it has learned does not matter here."""
    rng = np.random.default_rng(1)
    rows = rng.gamma(2, 25, (20_000, len(features.names)))
    label = (rows @ rng.normal(size=rows.shape[1]) > 0) ^ (rng.random(len(rows)) < 0.1)
    parameters = {"objective": "binary", "num_leaves": 31, "verbose": -1, "num_threads": 2}
    data = lgb.Dataset(rows, label.astype(int), feature_name=features.names)
    booster = lgb.train(parameters, data, TREES)
    version = models.save(settings.state, case.name, booster, features, metrics={}, lineage={}, policy={})
    return models.find(settings.state, case.name, version)


class Client:
    """The smallest HTTP/1.1 client: one connection, one request at a time."""

    def __init__(self, port: int, path: str):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: ".encode()
        )

    def post(self, body: bytes) -> tuple[float, bytes]:
        """Seconds, and the body of the answer."""
        request = b"%b%d\r\n\r\n%b" % (self.head, len(body), body)
        began = time.perf_counter()
        self.socket.sendall(request)
        answer = self.socket.recv(65536)
        while b"\r\n\r\n" not in answer:
            answer += self.socket.recv(65536)
        head, _, content = answer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(content) < length:
            content += self.socket.recv(65536)
        took = time.perf_counter() - began
        if b" 200 " not in head[:13]:
            raise SystemExit(f"answer: {head.splitlines()[0].decode()} {content.decode()}")
        return took, content


def payment(k: int, rng: random.Random) -> bytes:
    """A new payment of a known customer at a known terminal."""
    event = {
        "id": f"b-{k}",
        "time": iso(now()),
        "customer_id": rng.randrange(CUSTOMERS),
        "terminal_id": rng.randrange(TERMINALS),
    }
    return json.dumps(event | {"amount": round(rng.gammavariate(2, 25), 2)}).encode()


def measure(ours: Client, plain: Client, rounds: int, requests: int) -> dict[str, list[list[float]]]:
    """Ask in turns; seconds per request, by round."""
    rng, count = random.Random(3), 0
    took: dict[str, list[list[float]]] = {"ours": [], "plain": [], "decision": []}
    for n in range(rounds + 1):  # the first one warms up
        decided, mine, other = [], [], []
        for _ in range(requests):
            count += 1
            seconds, answer = ours.post(payment(count, rng))
            mine.append(seconds)
            decided.append(json.loads(answer))
        for decision in decided:
            row = [float("nan") if v is None else v for v in decision["features"].values()]
            seconds, answer = plain.post(json.dumps({"features": row}).encode())
            other.append(seconds)
            if json.loads(answer) != decision["score"]:
                raise SystemExit(f"the plain service scores {answer.decode()}, the decision says {decision['score']}")
        if n:
            took["ours"].append(mine)
            took["plain"].append(other)
            took["decision"].append([d["latency_us"] / 1e6 for d in decided])
    return took


def start_plain(model: Path, port: int, home: Path) -> subprocess.Popen[bytes]:
    """The plain service in processes of its own."""
    environment = os.environ | {"PLAIN_MODEL": str(model), "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", "serve", "plain_service.py:Plain", "--port", str(port)]
    return subprocess.Popen(command, cwd=HERE, env=environment, stdout=sys.stderr, start_new_session=True)


def until(answers: Callable[[], object]) -> None:
    """Wait until something can be had."""
    for _ in range(1200):
        try:
            answers()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the plain service does not answer")


def run(own: bool, rounds: int, requests: int, port: int, state: Path) -> dict[str, Any]:
    """The whole benchmark; its numbers."""
    settings = Settings.load(state=state, port=port)
    case = decisions.use_case("fraud", settings)
    features = case.features if own else handbook(case)
    platform = open_platform(settings)
    platform.register(case.name, case.features)
    load_history(case, platform)
    model = make_model(case, features, settings)
    decisions.promote(platform, model, by="benchmark", why="a model of the usual size")
    platform.close()
    bento = build(case.name, settings, model.version)
    plain = start_plain(model.folder / "model.txt", port + 1, settings.state / "bentoml")
    server = start_server(bento, settings)
    try:
        wait_until_up(server, f"http://127.0.0.1:{port}")
        until(lambda: socket.create_connection(("127.0.0.1", port + 1)).close())
        took = measure(Client(port, "/v1/decide"), Client(port + 1, "/predict"), rounds, requests)
    finally:
        stop_server(server)
        stop_server(plain)
    found: dict[str, Any] = {}
    for who, by_round in took.items():
        each = sorted(s for r in by_round for s in r)
        found[who] = {
            "p50_us": statistics.median(each) * 1e6,
            "p99_us": each[int(len(each) * 0.99)] * 1e6,
            "p50_us_by_round": [statistics.median(r) * 1e6 for r in by_round],
        }
    ratio = found["ours"]["p50_us"] / found["plain"]["p50_us"]
    what = {"work": "one decision over HTTP, one worker, one client", "features": len(features.names)}
    return what | found | {"p50_ratio": ratio, "must": 1.0}


def main() -> None:
    """Parse, run, print a table, write the numbers."""
    parser = argparse.ArgumentParser(description="One decision over HTTP against a plain BentoML service.")
    parser.add_argument("--own", action="store_true", help="the use case's own features, not the handbook's fourteen")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--port", type=int, default=3300, help="this one and the next")
    parser.add_argument("-o", "--output", type=Path, default=HERE.parent / "build" / "bench" / "http.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(given.own, given.rounds, given.requests, given.port, Path(folder))
    print(f"{'':20}{'p50':>10}{'p99':>10}")
    for who, what in (("ours", "ours"), ("decision", "  of it the decision"), ("plain", "plain")):
        print(f"{what:20}{result[who]['p50_us']:>7.0f} µs{result[who]['p99_us']:>7.0f} µs")
    print(f"{result['features']} features; ratio of p50: {result['p50_ratio']:.2f} (must: at most {result['must']})")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(result["p50_ratio"] > result["must"])


if __name__ == "__main__":
    main()
