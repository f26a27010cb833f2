"""One decision over HTTP, one worker, beside servers that only predict the same model from features that are ready.

    python benchmarks/service/over_http.py [--full] [-o FILE]

mlpkg accepts the event, extends the timelines, evaluates fourteen window features, scores, applies the policy and stores the
record. Beside it, inside BentoML and under the same settings, are a synchronous API as BentoML's introduction shows it, and an
asynchronous one with LightGBM's fast call. Under bare uvicorn, FastAPI with that call is beside it. They take turns, get the
same decisions, and have to give the same scores. The last part sends requests on a schedule, to each server at half of its
throughput, and times each request from when it was due.
"""

import argparse
from collections.abc import Iterator
from statistics import median

from served import BenchmarkRow, LoadResult, Missing, Server, Servers, main, payments, row, rows_of


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    rounds, alone, together, seconds = (20, 2000, 10_000, 60) if options.full else (5, 400, 2000, 10)
    with Servers(options.folder) as servers:
        ours, bare = servers.ours(), servers.ours("uvicorn")
        others, note = [servers.plain("Plain"), servers.plain("Asynchronous")], ""
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
                for server, result in turn(everyone, size, connections, number):
                    if number and connections == 1:
                        alone_us[server.name].append(result.p50)
                    elif number:
                        a_second[server.name].append(result.rate)
        plain, quick, *fastapi = (s.name for s in others)
        p50, rate = ({name: median(each) for name, each in turns.items()} for turns in (alone_us, a_second))
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
        remarks = {name: f"{rate[name] / 2:.0f} a second, p50 {a.p50:.0f} µs" for name, a in half.items()}
        own = half[ours.name]
        yield row(work, own.p99, "its own p50", own.p50, "ours / theirs <= 8", "µs", remarks[ours.name])
        for peer in (plain, quick):
            yield row(work, own.p99, peer, half[peer].p99, "ours / theirs <= 1", "µs", f"of the peer: {remarks[peer]}")


def turn(everyone: list[Server], size: int, connections: int, number: int) -> Iterator[tuple[Server, LoadResult]]:
    """Send everyone the same. mlpkg is first, because the others need its features; the others take turns in being next."""
    bodies = payments(size)
    ours, *rest = everyone
    result = ours.ask(bodies, connections)
    scores, rows = ours.scores(result), rows_of(result)
    yield ours, result
    for server in rest[number % len(rest) :] + rest[: number % len(rest)]:
        answered = server.ask(bodies if server.state else rows, connections)
        same = (
            connections == 1 or not server.state
        )  # side by side, requests may arrive in another order, which gives other features
        if same and server.scores(answered) != scores:
            raise SystemExit(f"{server.name} gives other scores")
        yield server, answered


def at_half(server: Server, rate: float, seconds: float, ours: Server) -> LoadResult:
    """Send requests on a schedule."""
    number = int(rate * seconds)
    if server.state:
        return server.ask(payments(number), 16, rate)
    rows = rows_of(ours.ask(payments(200)))
    return server.ask([rows[k % len(rows)] for k in range(number)], 16, rate)


if __name__ == "__main__":
    main(__doc__ or "", measure)
