"""One decision over HTTP with a canary, two experiments and three shadows, against none.

    python benchmarks/service/rollouts.py [--full] [-o FILE]

Half of the decisions go to the candidate of the canary, a model with features of its own. The experiments go by the customer,
each in a layer of its own. Two services take turns, as in `shadows`, whose three shadows these are. The last row is the choice
of the variants alone, in this process.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import closing
from statistics import median

from served import BenchmarkRow, LoadResult, Servers, handbook, main, make_model, payments, row
from shadows import begin, caught_up

from mlpkg import UseCase
from mlpkg.assignment import MILLION, Variant
from mlpkg.decisions.choice import Chooser
from mlpkg.rollout.control import start_rollout
from mlpkg.rollout.guardrails import Guardrail
from mlpkg.rollout.kinds import canary, experiment
from mlpkg.settings import Settings
from mlpkg.store import Store, open_store


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    rounds, alone, together = (20, 2000, 10_000) if options.full else (6, 500, 1500)
    case = handbook()
    with Servers(options.folder) as servers:
        none, tried = servers.ours(), servers.ours()
        for server in (none, tried):
            server.wait()
        assert tried.state
        with closing(open_store(Settings(state=tried.state))) as store:
            begin(store, tried.state)
            start(store, case)
            singly: dict[str, list[LoadResult]] = {"none": [], "tried": []}
            many: dict[str, list[LoadResult]] = {"none": [], "tried": []}
            for number in range(rounds + 1):  # the first one warms up
                for connections, size, results in ((1, alone, singly), (16, together, many)):
                    for name, server in (("none", none), ("tried", tried))[:: 1 if number % 2 else -1]:
                        result = server.ask(payments(size), connections)
                        caught_up(store, server, tried)
                        if number:
                            results[name].append(result)
            chosen = choose(case, store)
        p50 = {name: median(a.p50 for a in results) for name, results in singly.items()}
        rate = {name: median(a.rate for a in results) for name, results in many.items()}
        work, peer = "one decision over HTTP with a canary, two experiments and three shadows", "none of them"
        yield row(f"{work}, p50", p50["tried"], peer, p50["none"], "ours / theirs <= 1.15", "µs")
        yield row(f"{work}, 16 at once", rate["tried"], peer, rate["none"], "ours / theirs >= 0.9", "a second")
        yield row(
            "choose among their variants", chosen, "one decision over HTTP", p50["none"], "ours / theirs <= 0.03", "µs"
        )


def start(store: Store, case: UseCase) -> None:
    """Start the canary and both experiments; none of them ends."""
    model = make_model(case, store.settings.state)
    rails = [Guardrail("fallback rate", 0.05), Guardrail("score distribution", 0.5)]
    trees = canary("trees", model=model.version, guardrails=rails, steps=(50, 100), enough=10**9)
    start_rollout(store, case, trees, by="benchmark", why="a model of the usual size")
    halves = [Variant(name=name, share=MILLION // 2) for name in ("a", "b")]
    for name in ("prices", "limits"):
        made = experiment(name, halves, unit="customer_id", layer=name)
        start_rollout(store, case, made, by="benchmark", why="as many do")


def choose(case: UseCase, store: Store) -> float:
    """Return the microseconds that the choice of the variants takes."""
    text, chooser = store.setup(case.name), Chooser(case)
    events = [case.on.parse(body) for body in payments(2000)]
    chooser.choose(text, events[0])
    took = []
    for event in events:
        began = time.perf_counter_ns()
        chooser.choose(text, event)
        took.append(time.perf_counter_ns() - began)
    return median(took) / 1000


if __name__ == "__main__":
    main(__doc__ or "", measure)
