"""Plans past one machine: arithmetic with measured figures, and a simulation of the queues beside it.

    python benchmarks/platform/scaling.py

It prints the tables of docs/scaling.md, the same ones each time. The figures are those of benchmarks/README.md. The simulation
draws when decisions come and how long each takes, and lets them wait for one of N workers and then for Redis, which does one
thing at a time. In a stream, an entity's events go to one partition and a partition to one process.
"""

import math
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MICROSECOND, HOUR, DAY = 1e-6, 3600, 86_400
LOAD = 0.6  # how busy a part may be on average
COPIES = 3  # of each message in Kafka


class Figure(NamedTuple):
    """A measured figure, and its row and section in benchmarks/README.md."""

    value: float
    shown: str  # as the row shows it
    row: str
    section: str = "What a decision on servers takes"


DECIDING = Figure(760, "760 µs", "processor time of the worker for a decision on servers")
HTTP = Figure(149, "149 µs", "HTTP around a decision")
WORKER = Figure(DECIDING.value + HTTP.value, "", "the two together")
KAFKA = Figure(506, "506 µs", "processor time of Kafka for a decision on servers")
REDIS = Figure(419, "419 µs", "processor time of Redis for a decision on servers")
MESSAGE = Figure(801, "801 bytes", "event and decision in Kafka, one copy")
MEMORY = Figure(559, "559 bytes", "event in Redis, with one row and an id")
CONNECTIONS = Figure(1, "1", "connections of a worker to PostgreSQL")
ARCHIVED = Figure(26, "26 bytes", "an entry of the archive with its body", "The archive")
ARCHIVING = Figure(118_000, "118,000 for each second of CPU", "the same, entries a second", "The archive")
TRAINING = Figure(272 / 50e6, "272 s, 1.16 GB", "12 windows of 50M events, streamed", "Features")
EMBEDDED = Figure(3_534, "3,534/s", "16 at once, decisions a second", "Service")
FIGURES = [DECIDING, HTTP, KAFKA, REDIS, MESSAGE, MEMORY, CONNECTIONS, ARCHIVED, ARCHIVING, TRAINING, EMBEDDED]
VARIATION = 0.5  # standard deviation of the time of a decision, as a part of its mean; assumed


# -- arithmetic -------------------------------------------------------------------------------------------------------


def most(figure: Figure, load: float = LOAD) -> float:
    """The decisions a second that one core of a part can make at this load."""
    return load / (figure.value * MICROSECOND)


def cores(rate: float, figure: Figure) -> int:
    """The cores that a part needs at `LOAD`."""
    return math.ceil(rate / most(figure))


def expected_wait(rate: float, figure: Figure, servers: int, variation: float) -> float:
    """The mean microseconds in a queue, by Pollaczek and Khinchine: decisions come at random, to one of the servers each."""
    load = rate * figure.value * MICROSECOND / servers
    return load * figure.value * (1 + variation**2) / (2 * (1 - load))


def busiest(partitions: int, processes: int) -> float:
    """The part of all events that the busiest process of a consumer group gets."""
    return math.ceil(partitions / processes) / partitions


# -- simulation -------------------------------------------------------------------------------------------------------


def leave(arrivals: np.ndarray, service: np.ndarray) -> np.ndarray:
    """When each leaves a server that takes one at a time, in order of arrival; all in seconds."""
    done = service.cumsum()
    return done + np.maximum.accumulate(arrivals - (done - service))


class Simulated(NamedTuple):
    """What a simulation measured: the load, and the mean wait in microseconds, of workers and of Redis; the 99th percentile of all."""

    load: float
    wait: float
    redis_load: float
    redis_wait: float
    p99: float


def simulate(rate: float, workers: int, decisions: int = 400_000) -> Simulated:
    """Let decisions come at random, each to a random worker, and then to Redis."""
    rng = np.random.default_rng(workers)
    arrivals = rng.exponential(1 / rate, decisions).cumsum()
    shape = VARIATION**-2
    service = rng.gamma(shape, WORKER.value * MICROSECOND / shape, decisions)
    worker, left = rng.integers(0, workers, decisions), np.empty(decisions)
    for number in range(workers):
        own = worker == number
        left[own] = leave(arrivals[own], service[own])
    order, span, each = left.argsort(), left.max(), REDIS.value * MICROSECOND
    at_redis = left[order]
    answered = leave(at_redis, np.full(decisions, each))
    waits = left - arrivals - service
    total = answered - arrivals[order]
    return Simulated(
        service.sum() / span / workers,
        waits.mean() / MICROSECOND,
        decisions * each / span,
        (answered - at_redis - each).mean() / MICROSECOND,
        float(np.percentile(total, 99)) / MICROSECOND,
    )


def simulated_busiest(partitions: int, processes: int, entities: int = 20_000) -> float:
    """The part of the events that the busiest process gets, where some entities have many more events than others."""
    rng = np.random.default_rng(partitions)
    events = rng.pareto(2.5, entities) + 1
    partition = np.array([zlib.crc32(b"%d" % entity) % partitions for entity in range(entities)])
    process = np.repeat(np.arange(processes), [len(part) for part in np.array_split(np.arange(partitions), processes)])
    return float(np.bincount(process[partition], events).max() / events.sum())


# -- the tables -------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """A number with two digits that count."""
    digits = 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, digits):,.{max(0, digits)}f}"


def table(head: str, rows: Iterator[tuple[object, ...]]) -> Iterator[str]:
    yield f"| {head} |"
    yield "|" + "---|" * len(head.split(" | "))
    for cells in rows:
        yield "| " + " | ".join(map(str, cells)) + " |"
    yield ""


def figures() -> Iterator[tuple[object, ...]]:
    for figure in FIGURES:
        yield figure.section, figure.row, figure.shown


def environments() -> Iterator[tuple[object, ...]]:
    """What an environment needs for so many decisions a second."""
    for rate in (10, 100, 500, 1_000, 1_400, 5_000):
        redis = rate * REDIS.value * MICROSECOND
        log, memory = rate * DAY * MESSAGE.value * COPIES / 1e9, rate * DAY * MEMORY.value / 1e9
        kafka = cores(rate * COPIES, KAFKA)
        workers = max(2, cores(rate, WORKER))
        load = f"{redis:.0%}" if redis <= LOAD else f"{redis:.0%}: {math.ceil(redis / LOAD)} environments"
        yield f"{rate:,}", workers, kafka, load, number(log), number(memory)


def queues() -> Iterator[tuple[object, ...]]:
    """The arithmetic and the simulation, side by side."""
    for workers in (1, 2, 3, 4):
        for load in (0.3, LOAD, 0.8):
            rate = workers * most(WORKER, load)
            redis = rate * REDIS.value * MICROSECOND
            if redis >= 0.95:
                continue
            made, expected = simulate(rate, workers), expected_wait(rate, WORKER, workers, VARIATION)
            behind = expected_wait(rate, REDIS, 1, 0)
            loads = f"{load:.0%}", f"{made.load:.0%}", f"{redis:.0%}", f"{made.redis_load:.0%}"
            waits = number(expected), number(made.wait), number(behind), number(made.redis_wait)
            yield workers, number(rate), *loads, *waits, number(made.p99)


def groups() -> Iterator[tuple[object, ...]]:
    """How evenly partitions and entities spread over the processes of a group."""
    for partitions, processes in ((12, 3), (12, 5), (12, 12), (48, 5), (48, 12), (48, 48)):
        share, made = busiest(partitions, processes), simulated_busiest(partitions, processes)
        yield partitions, processes, f"{1 / processes:.0%}", f"{share:.0%}", f"{made:.0%}", f"{1 / made:.1f}"


def costs() -> Iterator[tuple[object, ...]]:
    """What a million decisions and a billion events take."""
    for what, count in (("a million decisions", 1e6), ("a billion events with their decisions", 1e9)):
        seconds = count * MICROSECOND
        yield what, "workers", f"{number(seconds * WORKER.value / HOUR)} core-hours"
        yield what, f"Kafka, {COPIES} copies, at most", f"{number(seconds * KAFKA.value * COPIES / HOUR)} core-hours"
        yield what, "Redis", f"{number(seconds * REDIS.value / HOUR)} core-hours"
        yield what, f"log, {COPIES} copies", f"{number(count * MESSAGE.value * COPIES / 1e9)} GB of disk"
        yield what, "timelines and ids", f"{number(count * MEMORY.value / 1e9)} GB of memory"
        yield what, "archive, the events alone", f"{number(count * ARCHIVED.value / 1e9)} GB of object storage"
        yield what, "writing the archive", f"{number(count / ARCHIVING.value / HOUR)} core-hours"
        yield what, "one training set of all", f"{number(count * TRAINING.value / HOUR)} hours of one process"


def tables() -> str:
    """All tables, as the page has them."""
    parts = [
        ("section | row | figure", figures()),
        (
            "decisions/s | workers (cores) | cores for Kafka, at most | load of Redis | log, GB/day | Redis, GB/day",
            environments(),
        ),
        (
            "workers | decisions/s | load, arithmetic | simulated | load of Redis, arithmetic | simulated "
            "| wait for a worker, µs, arithmetic | simulated | wait for Redis, µs, arithmetic | simulated | p99 of all, µs",
            queues(),
        ),
        (
            "partitions | processes | fair share | busiest, arithmetic | busiest, simulated | speed-up over one process",
            groups(),
        ),
        ("for | part | takes", costs()),
    ]
    return "\n".join(line for head, rows in parts for line in table(head, rows)).strip()


if __name__ == "__main__":
    print(tables())
