"""The read of four timelines from Redis and the evaluation of fourteen features, beside Feast's online read of fourteen numbers.

    python benchmarks/platform/online_read.py [--full] [-o FILE]

Every read is for a new payment of a random customer at a random terminal: one round trip gives out the rows that are committed,
and the features are evaluated. In a decision the same round trip takes in the event, too; that is the second row. Feast computes
nothing: it reads fourteen numbers of one customer, which somebody has to keep up to date. All use one Redis, and take turns.
"""

import argparse
import subprocess
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from cluster import BenchmarkRow, Cluster, Missing, environment, main, row
from handbook import CUSTOMERS, load_history
from served import payments

import mlpkg as ml
from mlpkg.decisions import use_case
from mlpkg.engine.timeline import Packed
from mlpkg.features import evaluate
from mlpkg.store import Store, open_store
from mlpkg.store.cluster.decisions import PlannedReads
from mlpkg.times import LATEST

TURN = 200
EVENTS = 20_000
HERE = __file__.rpartition("/")[0]


def four_timelines(source: Any) -> ml.FeatureSet:
    """Fourteen features over the payments and frauds of the customer and of the terminal."""
    days, frauds = ["1d", "7d", "30d"], source.outcomes["fraud"]
    return ml.FeatureSet(
        "fourteen",
        on=source,
        customer=source.by("customer_id").agg(n=ml.count(over=days), mean=ml.mean("amount", over=days)),
        terminal=source.by("terminal_id").agg(n=ml.count(over=["1d", "7d"])),
        customer_fraud=frauds.by("customer_id", delay="7d").agg(n=ml.count(over=["7d", "30d"])),
        terminal_fraud=frauds.by("terminal_id", delay="7d").agg(
            n=ml.count(over=["7d", "30d"]), risk=ml.mean("fraud", over=["7d", "30d"], empty=0.0)
        ),
    )


def read(session: Any, planned: PlannedReads, features: ml.FeatureSet, body: bytes) -> float:
    """Return the microseconds until the features of an event are there that nobody decides."""
    event, catalogue = features.on.parse(body), session.catalogue
    began = time.perf_counter_ns()
    places = planned.of(session, event)
    timelines, _ = session.sequencer.read([(read.timeline, str(read.since)) for read in places.values()])
    rows = {
        place: Packed(data, catalogue.find(*place[:2]).columns) for place, data in zip(places, timelines, strict=True)
    }
    values = evaluate(features, event.codes, event.time, LATEST, LATEST, lambda *read: rows[read[:3]])
    taken = time.perf_counter_ns() - began
    assert len(values) == 14 and len(rows) == 4
    return taken / 1000


def decide(store: Store, features: ml.FeatureSet, body: bytes) -> float:
    """Return the microseconds until the features of an event are there; the decision is recorded, too."""
    event = features.on.parse(body)
    began = time.perf_counter_ns()
    with store.decision("fourteen", features.on, event, event.time) as unit:
        values = evaluate(features, event.codes, event.time, unit.log_position, unit.event_position, unit.read)
        taken = time.perf_counter_ns() - began
        assert len(values) == 14
        unit.record("{}")
    return taken / 1000


class Feast:
    """Feast in a process of its own."""

    def __init__(self, options: argparse.Namespace, cluster: Cluster):
        folder = options.folder / "feast"
        folder.mkdir()
        script = [environment("feast_redis"), f"{HERE}/feast_online.py"]
        arguments = [str(folder), cluster.redis.address, cluster.redis.password, str(CUSTOMERS)]
        self.process = subprocess.Popen(
            [*script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if self._line() != "ready":
            raise Missing("Feast does not read from this Redis")

    def read(self, number: int) -> float:
        """Return the median microseconds of a read."""
        assert self.process.stdin is not None
        print(number, file=self.process.stdin, flush=True)
        return float(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == "ready" or line[0].isdigit():
                return line.strip()
        return ""

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def measure(options: argparse.Namespace, cluster: Cluster) -> Iterator[BenchmarkRow]:
    turns = 20 if options.full else 5
    store = open_store(cluster.settings(options.folder / "state"))
    case = use_case("fraud")
    features = four_timelines(case.on)
    store.register("fourteen", features)
    load_history(case, store, EVENTS)
    work, peer = "read of 4 timelines from Redis and 14 features, p50", "Feast's online read of 14 numbers"
    plan, session = features.decision_plan, store.session  # type: ignore[attr-defined]
    planned = PlannedReads(plan.fields, plan.reads)
    own, inside, theirs, note = list[float](), list[float](), list[float](), ""
    feast: Feast | None = None
    try:
        feast = Feast(options, cluster)
    except Missing as why:
        note = str(why)
    for number in range(turns + 1):  # the first one warms up
        turn = median(read(session, planned, features, body) for body in payments(TURN))
        other = feast.read(TURN) if feast else None
        deciding = median(decide(store, features, body) for body in payments(TURN))
        if number:
            own.append(turn)
            inside.append(deciding)
            theirs += [other] if other else []
    if feast:
        feast.close()
    store.close()
    other = median(theirs) if theirs else None
    yield row(work, median(own), peer, other, "ours / theirs <= 0.5", "µs", note)
    yield row(f"the same while the event is taken in, too: {work}", median(inside), peer, other, "stated", "µs", note)


if __name__ == "__main__":
    main(__doc__ or "", measure)
