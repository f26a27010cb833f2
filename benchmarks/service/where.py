"""Where the time of one decision over HTTP goes.

    python benchmarks/service/where.py [--full] [-o FILE]

The worker times its pieces while it serves one client, under bare uvicorn and inside BentoML; all figures are medians.
"""

import argparse
from collections.abc import Iterator
from statistics import median

from served import BenchmarkRow, Servers, main, payments, row

INSIDE = {  # of a decision
    "parse": "parse: JSON and the contract",
    "transaction": "transaction: begin, append the event, extend its timelines",
    "features": "features: read the timelines, evaluate",
    "score": "score",
    "record": "write: append the record",
    "write": "write: commit",
}


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    rounds, size = (10, 2000) if options.full else (4, 500)
    with Servers(options.folder) as servers:
        forms = {within: servers.ours(within, TIMED="1") for within in ("uvicorn", "BentoML")}
        for server in forms.values():
            server.wait()
        turns: dict[str, list[dict[str, float]]] = {within: [] for within in forms}
        for number in range(rounds + 1):
            for within, server in forms.items():
                server.watch()  # resets the pieces
                result = server.ask(payments(size))
                if number:
                    turns[within].append(server.watch()["pieces"] | {"all": result.p50})
        both = {w: {name: median(r[name] for r in rows) for name in rows[0]} for w, rows in turns.items()}
        bare, inside = both["uvicorn"], both["BentoML"]
        work = "where the time of one decision goes"
        for name, bare, inside in zip(
            pieces(both["uvicorn"]), *(pieces(p).values() for p in both.values()), strict=True
        ):
            yield row(f"{work}: {name}", bare, "inside BentoML", inside, "stated", "µs")


def pieces(medians: dict[str, float]) -> dict[str, float]:
    """Return the pieces that are shown. They add up to the first one, without the last, which the client does not wait for."""
    of_it = {what: medians[name] for name, what in INSIDE.items()}
    return {
        "all, as the client sees it": medians["all"],
        "HTTP: client, sockets, server": medians["all"] - medians["application"],
        "application: routing, guard, encoding the answer": medians["application"] - medians["decision"],
        **of_it,
        "the rest of the decision: policy, encoding the record, counting": medians["decision"] - sum(of_it.values()),
        "after the answer: counting": medians["afterwards"],
    }


if __name__ == "__main__":
    main(__doc__ or "", measure)
