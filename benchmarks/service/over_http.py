"""One decision over HTTP, one worker, beside servers that only predict the same model from features that are ready.

    python benchmarks/service/over_http.py [--full] [-o FILE]

Ours accepts the event, extends the timelines, evaluates fourteen window features, scores, applies the policy and stores the
record. Beside it inside BentoML, under the same settings: a synchronous API as BentoML's introduction shows it, and an
asynchronous one with LightGBM's fast call; beside it under bare uvicorn: FastAPI with that call. They take turns, are asked
about the same decisions, and have to give the same scores. The last part sends requests on a schedule, to each at half of the
throughput that it had, and times each from when it was due.
"""

import argparse
from collections.abc import Iterator
from statistics import median

from served import Asked, Missing, Server, Servers, ValidatedEvent, main, payments, row, rows_of


def measure(given: argparse.Namespace) -> Iterator[ValidatedEvent]:
    rounds, alone, together, seconds = (20, 2000, 10_000, 60) if given.full else (5, 400, 2000, 10)
    with Servers(given.folder) as servers:
        ours, bare = servers.ours(), servers.ours("uvicorn")
        others, note = [servers.plain("Plain"), servers.plain("OnlinePlan")], ""
        try:
            others.append(servers.peer("FastAPI", "fastapi_app.py", "fastapi"))
            others[-1].wait()
        except Missing as why:
            others, note = others[:2], str(why)
        everyone = [ours, bare, *others]
        for server in everyone:
            server.wait()
        alone_us: dict[str, list[float]] = {s.name: [] for s in everyone}
        a_second: dict[str, list[float]] = {s.name: [] for s in everyone}
        for number in range(rounds + 1):  # the first one warms up
            for connections, size in ((1, alone), (16, together)):
                for server, asked in turn(everyone, size, connections, number):
                    if number and connections == 1:
                        alone_us[server.name].append(asked.p50)
                    elif number:
                        a_second[server.name].append(asked.rate)
        plain, quick, *fastapi = (s.name for s in others)
        p50, rate = ({name: median(each) for name, each in found.items()} for found in (alone_us, a_second))
        work = "one decision over HTTP, one worker"
        for peer, most, least in ((plain, 0.6, 2), (quick, 0.9, 1.3)):
            yield row(f"{work}, one at a time, p50", p50[ours.name], peer, p50[peer], f"ours / theirs <= {most}", "µs")
            must = f"ours / theirs >= {least}"
            yield row(f"{work}, 16 at once, throughput", rate[ours.name], peer, rate[peer], must, "a second")
        beside = fastapi[0] if fastapi else "FastAPI"
        for what, figure, unit in (("one at a time, p50", p50, "µs"), ("16 at once, throughput", rate, "a second")):
            yield row(
                f"{work} under bare uvicorn, {what}",
                figure[bare.name],
                beside,
                figure.get(beside),
                "stated",
                unit,
                note,
            )
        half = {s.name: at_half(s, rate[s.name] / 2, seconds, ours) for s in (ours, *others[:2])}
        work = f"{work}, p99 at half of its throughput for {seconds} s"
        said = {name: f"{rate[name] / 2:.0f} a second, p50 {a.p50:.0f} µs" for name, a in half.items()}
        mine = half[ours.name]
        yield row(work, mine.p99, "its own p50", mine.p50, "ours / theirs <= 8", "µs", said[ours.name])
        for peer in (plain, quick):
            yield row(work, mine.p99, peer, half[peer].p99, "ours / theirs <= 1", "µs", f"of the peer: {said[peer]}")


def turn(everyone: list[Server], size: int, connections: int, number: int) -> Iterator[tuple[Server, Asked]]:
    """Ask everyone about the same; ours first, as the others need its features, and beyond that each is once the first."""
    bodies = payments(size)
    ours, *rest = everyone
    asked = ours.ask(bodies, connections)
    scores, rows = ours.scores(asked), rows_of(asked)
    yield ours, asked
    for server in rest[number % len(rest) :] + rest[: number % len(rest)]:
        found = server.ask(bodies if server.state else rows, connections)
        same = connections == 1 or not server.state  # at once, another order of arrival gives other features
        if same and server.scores(found) != scores:
            raise SystemExit(f"{server.name} gives other scores")
        yield server, found


def at_half(server: Server, rate: float, seconds: float, ours: Server) -> Asked:
    """Ask on a schedule."""
    number = int(rate * seconds)
    if server.state:
        return server.ask(payments(number), 16, rate)
    rows = rows_of(ours.ask(payments(200)))
    return server.ask([rows[k % len(rows)] for k in range(number)], 16, rate)


if __name__ == "__main__":
    main(__doc__ or "", measure)
