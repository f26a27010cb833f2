"""Where the time of one decision over HTTP goes.

    python benchmarks/service/where.py [--full] [-o FILE]

The worker times its pieces while it serves one client, under bare uvicorn and inside BentoML; all figures are medians.
"""

import argparse
from collections.abc import Iterator
from statistics import median

from served import Row, Servers, main, payments, row

INSIDE = {  # of a decision
    "parse": "parse: JSON and the contract",
    "transaction": "transaction: begin, append the event, extend its timelines",
    "features": "features: read the timelines, evaluate",
    "score": "score",
    "record": "append the record",
    "write": "write: commit",
}


def measure(given: argparse.Namespace) -> Iterator[Row]:
    rounds, size = (10, 2000) if given.full else (4, 500)
    with Servers(given.folder) as servers:
        forms = {within: servers.ours(within, TIMED="1") for within in ("uvicorn", "BentoML")}
        for server in forms.values():
            server.wait()
        found: dict[str, list[dict[str, float]]] = {within: [] for within in forms}
        for number in range(rounds + 1):
            for within, server in forms.items():
                server.watch()  # begins anew
                asked = server.ask(payments(size))
                if number:
                    found[within].append(server.watch()["pieces"] | {"all": asked.p50})
        both = {w: {name: median(r[name] for r in rows) for name in rows[0]} for w, rows in found.items()}
        bare, inside = both["uvicorn"], both["BentoML"]
        work = "where the time of one decision goes"
        yield row(f"{work}: all, as the client sees it", bare["all"], "inside BentoML", inside["all"], "stated", "µs")
        for name, piece in (
            ("HTTP: the client, the server, the event loop", lambda p: p["all"] - p["application"]),
            ("the application around the decision: routing, guard, answer", lambda p: p["application"] - p["decision"]),
            *((what, lambda p, name=name: p[name]) for name, what in INSIDE.items()),
            ("policy, record, and the rest of the decision", lambda p: p["decision"] - sum(p[name] for name in INSIDE)),
        ):
            yield row(f"{work}: {name}", piece(bare), "inside BentoML", piece(inside), "stated", "µs")


if __name__ == "__main__":
    main(__doc__ or "", measure)
