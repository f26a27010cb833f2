"""The cost of durability over HTTP: decisions a second and fsyncs a decision, with `disk` and with `process`.

One and 32 connections are measured.

    python benchmarks/service/durability.py [--full] [-o FILE]

One worker under uvicorn, the handbook's fourteen features and 200 trees. The third form is `disk` with an fsync that takes ten
milliseconds longer. The forms take turns. The state is in build/, which has to be on a real disk: on a tmpfs an fsync costs
nothing.
"""

import argparse
from collections.abc import Iterator
from statistics import median

from served import BenchmarkRow, Servers, main, payments, row

FORMS = {"process": ("process", "0"), "disk": ("disk", "0"), "slow": ("disk", "0.01")}
AT_ONCE = 32


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    rounds, seconds = (10, 4.0) if options.full else (4, 1.0)
    with Servers(options.folder) as servers:
        forms = {
            form: servers.ours("uvicorn", MLPKG_DURABILITY=durability, SLOWER=slower)
            for form, (durability, slower) in FORMS.items()
        }
        for server in forms.values():
            server.wait()
        rates: dict[tuple[str, int], list[float]] = {(form, c): [] for form in forms for c in (1, AT_ONCE)}
        syncs = []
        size = dict.fromkeys(rates, 30)
        for number in range(rounds + 1):  # the first ones warm up, and measure how many fit into the time
            for (form, connections), turns in rates.items():
                before = forms[form].watch()["syncs"]
                result = forms[form].ask(payments(size[form, connections]), connections)
                size[form, connections] = max(30, int(result.rate * seconds))
                if number:
                    turns.append(result.rate)
                    if (form, connections) == ("disk", AT_ONCE):
                        syncs.append((forms[form].watch()["syncs"] - before) / len(result.answers))
        rate = {key: median(turns) for key, turns in rates.items()}
        alone = ", ".join(f"{form} {rate[form, 1]:.0f}" for form in forms)
        note = f"one worker under uvicorn; one at a time: {alone} a second"
        work, all_at_once = "durability = disk", (rate["disk", AT_ONCE], rate["process", AT_ONCE])
        must = "ours / theirs >= 0.9"
        yield row(f"{work}, {AT_ONCE} at once", all_at_once[0], "process", all_at_once[1], must, "a second", note)
        yield row(f"{work}, {AT_ONCE} at once: fsyncs a decision", median(syncs), "", None, "ours <= 0.2", "fsyncs")
        must = "ours / theirs >= 10"
        slow = f"{work}, an fsync takes 10 ms longer, {AT_ONCE} at once"
        yield row(slow, rate["slow", AT_ONCE], "one at a time", rate["slow", 1], must, "a second")


if __name__ == "__main__":
    main(__doc__ or "", measure)
