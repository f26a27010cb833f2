"""Ingestion, the offline kernel and a training set, on a file of payments.

    python benchmarks/kernel.py [--file PATH] [--customers 1000] [--days 183] [--json]

Without a file, payments are simulated. `mlpkg ingest` and `mlpkg training-set` are measured as whole processes, with
their peak memory; the kernel is the evaluation of the handbook's fourteen features for all payments, best of three.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from handbook import handbook

from mlpkg.examples.fraud.simulator import simulate
from mlpkg.features import compute
from mlpkg.settings import Settings
from mlpkg.store import open_store
from mlpkg.times import DAY, iso


def command(*arguments: str, state: Path) -> dict[str, float]:
    """Seconds and peak megabytes of one command line."""
    began = time.perf_counter()
    run = subprocess.Popen(
        [sys.executable, "-m", "mlpkg.cli", *arguments],
        env=os.environ | {"MLPKG_STATE": str(state)},
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(run.pid, 0)
    if status:
        sys.exit(f"mlpkg {arguments[0]} failed")
    return {"seconds": round(time.perf_counter() - began, 1), "megabytes": round(used.ru_maxrss / 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="a file that `mlpkg ingest fraud` reads")
    parser.add_argument("--customers", type=int, default=1000)
    parser.add_argument("--days", type=int, default=183)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        file = options.file or state / "payments.parquet"
        if options.file is None:
            simulate(options.customers, 2 * options.customers, options.days).to_parquet(file)
        figures: dict[str, object] = {"ingest": command("ingest", "fraud", str(file.resolve()), state=state)}
        store = open_store(Settings(state=state))
        features = handbook().features
        history = store.history(features.sources, features.outcomes)
        events = history.events[features.on.name]
        first, last = int(events.time.min()), int(events.time.max()) + DAY
        taken = []
        for _ in range(3):
            events._layouts.clear()
            began = time.perf_counter()
            compute(features, history, np.arange(len(events)))
            taken.append(time.perf_counter() - began)
        figures |= {
            "payments": len(events),
            "kernel": {"features": len(features.names), "seconds": round(min(taken), 2)},
        }
        store.close()
        del history, events
        span = ("--from", iso(first)[:10], "--to", iso(last)[:10])
        figures["training_set"] = command(
            "training-set", "fraud", *span, "-o", str(state / "rows.parquet"), state=state
        )
    print(json.dumps(figures) if options.json else "\n".join(f"{name:>12}  {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
