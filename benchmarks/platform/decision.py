"""One decision on servers beside its floor: the same waits without mlpkg.

    python benchmarks/platform/decision.py [--full] [-o FILE]

The service decides inside BentoML with one worker, on one Kafka broker that has to acknowledge (`acks=all`) and one Redis. The
floor is the sum of three waits. A bare producer sends a message of the same size and waits until it is acknowledged. One round
trip to Redis adds the same row to a timeline and reads the same timelines. A bare HTTP echo under uvicorn reads a request and
sends an answer of the same sizes. All take turns, one request at a time; figures are medians of turns.
"""

import argparse
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import redis
from cluster import BenchmarkRow, Cluster, main, microseconds, row
from floor import start_echo
from handbook import handbook
from served import Servers, payments

from mlpkg.decisions import Decider, Decision
from mlpkg.decisions.record import encode_decision
from mlpkg.store import Store, open_store

TURN = 200  # decisions of one way before the next one has its turn
TOGETHER = 500  # decisions of a turn with 16 connections


def sender(cluster: Cluster, value: bytes) -> Callable[[Any], None]:
    """A function that sends a message and waits until it is acknowledged."""
    topic, producer, arrived = cluster.topic("floor"), cluster.producer(), list[Any]()

    def send(key: bytes) -> None:
        arrived.clear()
        producer.produce(topic, value, key, on_delivery=lambda error, message: arrived.append(error))
        while not arrived:
            producer.poll(1)
        if arrived[0] is not None:
            raise SystemExit(f"Kafka has not acknowledged a message: {arrived[0]}")

    return send


def exchanger(client: Any, timelines: list[bytes]) -> Callable[[Any], None]:
    """A function that adds a row to one timeline and reads two, in one round trip."""
    for name, members in enumerate(timelines):
        client.zadd(f"floor:{name}", {member: place for place, member in enumerate(chunks(members))})

    def exchange(row: bytes) -> None:
        pipeline = client.pipeline(transaction=False)
        pipeline.zadd("floor:0", {row: 0})
        for name in range(len(timelines)):
            pipeline.zrangebyscore(f"floor:{name}", "(0", "+inf")
        pipeline.execute()

    return exchange


def chunks(data: bytes, size: int = 40) -> list[bytes]:
    """Pieces of so many bytes that differ."""
    return [b"%08d" % begin + data[begin : begin + size - 8] for begin in range(0, len(data), size - 8)]


def written(store: Store, body: bytes, decision: Decision) -> tuple[bytes, list[bytes]]:
    """A message as large as that of a decision, and two timelines as long as those that it read."""
    case = handbook()
    named = dict(zip(case.on.seen, case.on.parse(body).codes, strict=True))
    sizes = [
        len(store.timeline(stream, key, named[key]))
        for stream, key in (("transactions", "customer_id"), ("transactions.fraud", "terminal_id"))
    ]
    headers = 200  # position, id, times and the like, which a message of mlpkg has as headers
    return b"x" * (len(body) + len(encode_decision(decision)) + headers), [b"x" * 32 * size for size in sizes]


def measure(options: argparse.Namespace, cluster: Cluster) -> Iterator[BenchmarkRow]:
    turns = 20 if options.full else 5
    settings = cluster.settings(options.folder / "made")
    with Servers(options.folder, settings) as servers:
        store = open_store(settings)
        decider = Decider(handbook(), store)
        (body,) = payments(1)
        value, timelines = written(store, body, decider.decide(body))
        client = redis.Redis.from_url(settings.redis)
        send, exchange = sender(cluster, value), exchanger(client, timelines)
        service = servers.ours(**{f"MLPKG_{name.upper()}": value for name, value in cluster.variables().items()})
        service.wait()
        echo = start_echo(servers, len(service.ask(payments(1)).answers[0]))
        figures: dict[str, list[float]] = {}
        for number in range(turns + 1):
            turn = {
                "service": service.ask(payments(TURN)).p50,
                "echo": echo.ask(payments(TURN)).p50,
                "acknowledged": microseconds(send, [b"%d" % k for k in range(TURN)]),
                "exchange": microseconds(exchange, [b"%040d" % k for k in range(TURN)]),
                "ping": microseconds(lambda _: client.ping(), range(TURN)),
                "process": microseconds(decider.decide, payments(TURN)),
                "together": service.ask(payments(TOGETHER), 16).rate,
            }
            if number:  # the first one warms up
                for name, figure in turn.items():
                    figures.setdefault(name, []).append(figure)
        store.close()
        yield from rows_of_table({name: median(values) for name, values in figures.items()})


def rows_of_table(figures: dict[str, float]) -> Iterator[BenchmarkRow]:
    """The decision beside its floor."""
    acknowledged, exchange, echo = figures["acknowledged"], figures["exchange"], figures["echo"]
    floor = acknowledged + exchange + echo
    parts = f"floor: acknowledged message {acknowledged:.0f} µs, round trip to Redis {exchange:.0f} µs"
    note = f"{parts}, HTTP echo {echo:.0f} µs; an empty round trip to Redis is {figures['ping']:.0f} µs"
    work, peer = "one decision on servers", "floor of its waits"
    must = "ours / theirs <= 2"
    yield row(f"{work} over HTTP, one at a time, p50", figures["service"], peer, floor, must, "µs", note)
    floor -= echo
    yield row(f"{work} in this process, p50", figures["process"], peer, floor, "stated", "µs", parts)
    yield row(f"{work} over HTTP, 16 at once", figures["together"], "", None, "stated", "a second")


if __name__ == "__main__":
    main(__doc__ or "", measure)
