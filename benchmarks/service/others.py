"""The decision over HTTP beside MLflow's scoring server and LitServe, which only predict. Their rows demand nothing.

    python benchmarks/service/others.py [--full] [-o FILE]

Each runs under its own default server with one worker, the same model and the same rows. The scores have to be the same.
"""

import argparse
import json
from collections.abc import Iterator
from statistics import median
from typing import Any

from served import BenchmarkRow, Missing, Server, Servers, features_of, main, payments, row

PEERS = {
    "MLflow": ("mlflow_app.py", "mlflow", "/invocations", lambda answer: answer["predictions"][0]),
    "LitServe": ("litserve_app.py", "litserve", "/predict", lambda answer: answer["score"]),
}


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    rounds, alone, together = (10, 500, 3000) if options.full else (3, 100, 400)
    with Servers(options.folder) as servers:
        ours = servers.ours()
        ours.wait()
        for name, (script, peers, path, score) in PEERS.items():
            p50: dict[str, list[float]] = {"ours": [], name: []}
            rate: dict[str, list[float]] = {"ours": [], name: []}
            peer, note = None, "inside BentoML"
            try:
                peer = servers.peer(name, script, peers, path, score)
                peer.wait()
            except Missing as why:
                peer, note = None, str(why)
            for number in range(rounds + 1):
                for connections, size, turns in ((1, alone, p50), (16, together, rate)):
                    result = ours.ask(payments(size), connections)
                    figures = {"ours": result}
                    if peer:
                        bodies = [body(name, features_of(answer)) for answer in result.answers]
                        figures[name] = peer.ask(bodies, connections)
                        check(peer, ours.scores(result), peer.scores(figures[name]))
                    if number:
                        for who, a in figures.items():
                            turns[who].append(a.p50 if turns is p50 else a.rate)
            if peer:
                peer.stop()
            for what, turns, unit in (("one at a time, p50", p50, "µs"), ("16 at once, throughput", rate, "a second")):
                theirs = median(turns[name]) if turns[name] else None
                work = f"one decision over HTTP, one worker, {what}"
                yield row(work, median(turns["ours"]), name, theirs, "stated", unit, note)


def body(name: str, features: list[float]) -> bytes:
    """Return the body of a request to a peer."""
    request: dict[str, Any] = {"inputs": [features]} if name == "MLflow" else {"features": features}
    return json.dumps(request).encode()


def check(peer: Server, ours: list[float], theirs: list[float]) -> None:
    """End the benchmark if the scores differ."""
    if ours != theirs:
        wrong = next((a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
        raise SystemExit(f"{peer.name} gives other scores: {wrong[1]!r} where ours are {wrong[0]!r}")


if __name__ == "__main__":
    main(__doc__ or "", measure)
