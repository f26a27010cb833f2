"""Every benchmark of the features, one after the other; what they found goes into build/bench.json.

    python benchmarks/features/run.py [--full] [--only NAME ...] [-o build/bench.json]

A list with a row per line of the table in benchmarks/README.md: work, ours, peer, theirs, ratio, must, holds, unit, note.
`holds` is null where a peer or a figure is missing, and the note says why. At the reduced size all take about five
minutes; a benchmark that takes longer than its share is stopped.
"""

import argparse
import ast
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import HERE, ROOT, Row, row, table

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
]
PATIENCE = 120  # seconds for one of them at the reduced size
TOGETHER = 570  # and for all
LEAST = 30  # what each has in any case


def run(name: str, options: list[str], patience: float | None) -> list[Row]:
    """The rows of one benchmark; one that says why there are none where it failed."""
    script = HERE / f"{name}.py"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "rows.json")
        command = [sys.executable, str(script), *options, "-o", str(output)]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        ) as child:
            try:
                said = child.communicate(timeout=patience)[1]
                why = next((line for line in reversed(said.splitlines()) if line.strip()), "no reason given")
                why = f"failed: {why.strip()}"
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.communicate()
                why, said = f"stopped after {patience:.0f} s", ""
        if output.exists():
            return json.loads(output.read_text())
    sys.stderr.write(said)
    title = (ast.get_docstring(ast.parse(script.read_text("utf-8"))) or name).splitlines()[0]
    return [row(title, None, "", None, "stated", note=why)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the full sizes, which take an hour or so")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "build" / "bench.json")
    given = parser.parse_args()
    began, rows = time.monotonic(), []
    for number, name in enumerate(given.only, 1):
        at = time.monotonic()
        left = TOGETHER - (at - began) - LEAST * (len(given.only) - number)
        found = run(name, ["--full"] if given.full else [], None if given.full else max(LEAST, min(PATIENCE, left)))
        rows += found
        print(f"{name}, {time.monotonic() - at:.0f} s\n{table(found)}\n", flush=True)
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(any(found["note"].startswith(("failed", "stopped")) for found in rows))


if __name__ == "__main__":
    main()
