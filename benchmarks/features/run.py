"""Every benchmark of the features, one after the other; the rows go into build/bench.json.

    python benchmarks/features/run.py [--full] [--only NAME ...] [-o build/bench.json]

A list with a row per line of the table in benchmarks/README.md: work, ours, peer, theirs, ratio, must, holds, unit, note.
`holds` is null if a peer or a figure is missing, and the note says why. At the reduced size all take about five
minutes; a benchmark that takes longer than its share is stopped.
"""

from harness import HERE, run_all

NAMES = [
    "windows",
    "disorder",
    "order_statistics",
    "moments",
    "point_in_time",
    "streamed",
    "apply",
    "one_decision",
    "hot_key",
    "many_sets",
    "live_feature",
    "ingestion",
]

if __name__ == "__main__":
    run_all(__doc__ or "", HERE, NAMES, patience=120)
