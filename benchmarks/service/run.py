"""Every benchmark of the decision service, one after the other; the rows go into build/bench.json.

    python benchmarks/service/run.py [--full] [--only NAME ...] [-o build/bench.json]

A list with a row per line of the table in benchmarks/README.md: work, ours, peer, theirs, ratio, must, holds, unit, note.
`holds` is null if a peer or a figure is missing, and the note says why. A benchmark that takes longer than its share is
stopped.
"""

from served import HERE, run_all

NAMES = [
    "over_http",
    "in_process",
    "where",
    "ranking",
    "shadows",
    "rollouts",
    "reasons",
    "workers",
    "durability",
    "stuck",
    "memory",
    "shortcuts",
    "floor",
    "others",
]

if __name__ == "__main__":
    run_all(__doc__ or "", HERE, [name for name in NAMES if (HERE / f"{name}.py").exists()], patience=180)
