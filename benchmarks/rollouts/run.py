"""Every benchmark of rollouts, one after the other; the rows go into build/bench.json.

    python benchmarks/rollouts/run.py [--full] [--only NAME ...] [-o build/bench.json]

A list with a row per line of the table in benchmarks/README.md, as that of the service: see benchmarks/service/run.py.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bench import run_all  # noqa: E402

NAMES = ["looks", "canaries", "guardrails", "bandit"]

if __name__ == "__main__":
    run_all(__doc__ or "", HERE, [name for name in NAMES if (HERE / f"{name}.py").exists()], patience=400)
