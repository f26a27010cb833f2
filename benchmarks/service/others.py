"""The decision over HTTP beside MLflow's scoring server and LitServe, which only predict; these two are only shown.

    python benchmarks/service/others.py [--full] [-o FILE]

All under their own server as they come, one worker, with the same model and the same rows; scores have to be the same.
"""

import argparse
import json
from collections.abc import Iterator
from statistics import median
from typing import Any

from served import Missing, Server, Servers, ValidatedEvent, features_of, main, payments, row

PEERS = {
    "MLflow": ("mlflow_app.py", "mlflow", "/invocations", lambda answer: answer["predictions"][0]),
    "LitServe": ("litserve_app.py", "litserve", "/predict", lambda answer: answer["score"]),
}


def measure(given: argparse.Namespace) -> Iterator[ValidatedEvent]:
    rounds, alone, together = (10, 500, 3000) if given.full else (3, 100, 400)
    with Servers(given.folder) as servers:
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
                for connections, size, found in ((1, alone, p50), (16, together, rate)):
                    asked = ours.ask(payments(size), connections)
                    figures = {"ours": asked}
                    if peer:
                        bodies = [body(name, features_of(answer)) for answer in asked.answers]
                        figures[name] = peer.ask(bodies, connections)
                        check(peer, ours.scores(asked), peer.scores(figures[name]))
                    if number:
                        for who, a in figures.items():
                            found[who].append(a.p50 if found is p50 else a.rate)
            if peer:
                peer.stop()
            for what, found, unit in (("one at a time, p50", p50, "µs"), ("16 at once, throughput", rate, "a second")):
                theirs = median(found[name]) if found[name] else None
                work = f"one decision over HTTP, one worker, {what}"
                yield row(work, median(found["ours"]), name, theirs, "stated", unit, note)


def body(name: str, features: list[float]) -> bytes:
    """How each is asked."""
    asked: dict[str, Any] = {"inputs": [features]} if name == "MLflow" else {"features": features}
    return json.dumps(asked).encode()


def check(peer: Server, ours: list[float], theirs: list[float]) -> None:
    """End the benchmark where the scores differ."""
    if ours != theirs:
        wrong = next((a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
        raise SystemExit(f"{peer.name} gives other scores: {wrong[1]!r} where ours are {wrong[0]!r}")


if __name__ == "__main__":
    main(__doc__ or "", measure)
