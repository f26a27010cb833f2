"""The memory of a worker after many decisions against that after ten thousand.

    python benchmarks/service/memory.py [--full] [-o FILE]

One worker under uvicorn, sixteen connections. The resident memory counts; the note states how much of it is pages of files.
"""

import argparse
from collections.abc import Iterator

from served import BenchmarkRow, Servers, main, payments, row

FEW, AT_A_TIME = 10_000, 10_000


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    many = 1_000_000 if options.full else 100_000
    with Servers(options.folder) as servers:
        server = servers.ours("uvicorn")
        server.wait()
        samples = []
        for _ in range(many // AT_A_TIME):
            server.ask(payments(AT_A_TIME), 16)
            samples.append(server.watch()["memory"])
        few, half, last = samples[FEW // AT_A_TIME - 1], samples[len(samples) // 2 - 1], samples[-1]
        note = f"half-way {half['VmRSS']:.1f} MB, the most {max(t['VmRSS'] for t in samples):.1f} MB"
        note += f"; pages of files are {few['RssFile']:.1f} MB of the first and {last['RssFile']:.1f} MB of the last"
        work = f"memory of a worker after {many:,} decisions"
        yield row(work, last["VmRSS"], f"after {FEW:,}", few["VmRSS"], "ours / theirs <= 1.05", "MB", note)


if __name__ == "__main__":
    main(__doc__ or "", measure)
