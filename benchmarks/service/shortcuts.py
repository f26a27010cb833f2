"""The gain of each shortcut of the service, against the same service without it.

    python benchmarks/service/shortcuts.py [--full] [-o FILE]

The two services of a pair take turns. A shortcut stays if it gains a client 10 %.
"""

import argparse
from collections.abc import Iterator
from statistics import median

from served import BenchmarkRow, Servers, main, payments, row

SHORTCUTS = {  # where the service runs, and the environment that switches the shortcut off
    "requests past the layers of BentoML": ("BentoML", {"LAYERS": "1"}),
    "requests decided in groups": ("uvicorn", {"SINGLY": "1"}),
}


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    rounds = 100 if options.full else 20
    for shortcut, (within, off) in SHORTCUTS.items():
        with Servers(options.folder) as servers:
            pair = servers.ours(within), servers.ours(within, **off)
            for server in pair:
                server.wait()
            p50s: tuple[list[float], list[float]] = ([], [])
            rates: tuple[list[float], list[float]] = ([], [])
            for number in range(rounds + 2):  # the first two warm up
                for k in (0, 1) if number % 2 else (1, 0):
                    single, together = pair[k].ask(payments(60), 1), pair[k].ask(payments(240), 16)
                    if number > 1:
                        p50s[k].append(single.p50)
                        rates[k].append(together.rate)
        (with_it, without), (rate, rate_without) = map(median, p50s), map(median, rates)
        yield row(f"{shortcut}: one at a time, p50", with_it, "without", without, "stated", "µs")
        must = "ours / theirs >= 1.1"
        yield row(f"{shortcut}: 16 at once, throughput", rate, "without", rate_without, must, "a second")


if __name__ == "__main__":
    main(__doc__ or "", measure)
