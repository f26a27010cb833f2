"""The memory of a worker after many decisions against that after ten thousand.

    python benchmarks/service/memory.py [--full] [-o FILE]

One worker under uvicorn, sixteen connections. What counts is its resident memory; the pages of files among it are stated.
"""

import argparse
from collections.abc import Iterator

from served import Servers, ValidatedEvent, main, payments, row

FEW, AT_A_TIME = 10_000, 10_000


def measure(given: argparse.Namespace) -> Iterator[ValidatedEvent]:
    many = 1_000_000 if given.full else 100_000
    with Servers(given.folder) as servers:
        server = servers.ours("uvicorn")
        server.wait()
        told = []
        for _ in range(many // AT_A_TIME):
            server.ask(payments(AT_A_TIME), 16)
            told.append(server.watch()["memory"])
        few, half, last = told[FEW // AT_A_TIME - 1], told[len(told) // 2 - 1], told[-1]
        note = f"half-way {half['VmRSS']:.1f} MB, the most {max(t['VmRSS'] for t in told):.1f} MB"
        note += f"; pages of files are {few['RssFile']:.1f} MB of the first and {last['RssFile']:.1f} MB of the last"
        work = f"memory of a worker after {many:,} decisions"
        yield row(work, last["VmRSS"], f"after {FEW:,}", few["VmRSS"], "ours / theirs <= 1.05", "MB", note)


if __name__ == "__main__":
    main(__doc__ or "", measure)
