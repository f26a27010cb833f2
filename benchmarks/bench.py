"""What all benchmarks share: the rows of the table, environments for peers, the command line, and the run of a whole folder.

This module is imported in the environments of peers too: it needs the standard library alone.
"""

import argparse
import ast
import contextlib
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS = {  # each line is an environment of its own
    "tables": ["polars==2.1.0", "duckdb==2.0.0", "numpy", "pyarrow"],
    "streams": ["river==0.26.1", "bytewax==0.21.1", "numpy"],
    "feast": ["feast[duckdb]==0.67.0", "numpy"],
    "feast_redis": ["feast[redis]==0.67.0"],
    "quix": ["quixstreams==3.28.1"],
    "fastapi": ["fastapi==0.163.2", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0", "lightgbm==4.7.0"],
    "litserve": ["litserve==0.2.19", "uvloop==0.23.0", "httptools==0.9.0", "lightgbm==4.7.0"],
    "mlflow": ["mlflow==3.17.2", "uvloop==0.23.0", "httptools==0.9.0", "lightgbm==4.7.0"],
}

BenchmarkRow = dict[str, Any]


class Missing(Exception):
    """A peer that cannot be installed or started here, and why."""


# -- the rows of the table --------------------------------------------------------------------------------------------


def row(
    work: str, ours: float | None, peer: str, theirs: float | None, must: str, unit: str = "s", note: str = ""
) -> BenchmarkRow:
    """One row of the table.

    `must` is the demand: ``"theirs / ours >= 5"``, ``"ours / theirs <= 1.5"`` or ``"ours <= 45"``. " and " joins several
    demands. ``"stated"`` demands only that both figures exist. If a figure is missing, `holds` is None.
    """
    figures = {"ours": ours, "theirs": theirs}
    demands = must.split(" and ")
    upside_down = any(demand.startswith("theirs / ours") for demand in demands)
    above, below = (theirs, ours) if upside_down else (ours, theirs)
    ratio = above / below if above is not None and below else None
    sides = {"ours / theirs": ratio, "theirs / ours": ratio, **figures}
    held: bool | None = True
    for demand in demands:
        if demand == "stated":
            held = None if ours is None or theirs is None else True
            continue
        left, sign, right = demand.rpartition(" <= ") if " <= " in demand else demand.rpartition(" >= ")
        value = sides[left]
        if value is None:
            held = None
        elif held is not None:
            held &= value <= float(right) if sign == " <= " else value >= float(right)
    shown = {
        k: v if v is None else float(f"{v:.4g}") for k, v in (("ours", ours), ("theirs", theirs), ("ratio", ratio))
    }
    return {
        "work": work,
        "ours": shown["ours"],
        "peer": peer,
        "theirs": shown["theirs"],
        "ratio": shown["ratio"],
        "must": must,
        "holds": held,
        "unit": unit,
        "note": note,
    }


def table(rows: Sequence[BenchmarkRow]) -> str:
    """Format the rows as text for a person."""
    lines = []
    for r in rows:
        holds = {True: "yes", False: "NO", None: "?"}[r["holds"]]
        ours, theirs = (f"{r[k]:g} {r['unit']}" if r[k] is not None else "-" for k in ("ours", "theirs"))
        ratio = f"{r['ratio']:.3g}" if r["ratio"] is not None else "-"
        lines.append(f"{holds:4}{r['work']}: {ours}; {r['peer'] or 'no peer'} {theirs}; ratio {ratio}; {r['must']}")
        lines += [f"      {r['note']}"] if r["note"] else []
    return "\n".join(lines)


# -- environments ---------------------------------------------------------------------------------------------------


@functools.cache
def environment(name: str) -> str:
    """Return the Python of an environment with these peers. uv makes the environment if it does not exist yet."""
    packages = PEERS[name]
    components = hashlib.sha256("\n".join([sys.version, *packages]).encode()).hexdigest()[:8]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlpkg-bench" / f"{name}-{components}"
    python = folder / "bin" / "python"
    if (folder / ".ready").exists():
        return str(python)
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        raise Missing("uv is not installed: make install brings it")
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "--quiet", "--python", str(python), *packages],
    ):
        done = subprocess.run(command, env=os.environ | _index_of_pip(), capture_output=True, text=True)
        if done.returncode:
            messages = [line for line in done.stderr.splitlines() if line.strip()]
            raise Missing(
                f"{', '.join(packages)} cannot be installed: {messages[-1].strip() if messages else 'no reason given'}"
            )
    (folder / ".ready").touch()
    return str(python)


def _index_of_pip() -> dict[str, str]:
    """Return the package index that pip uses, because uv does not read pip's files."""
    if {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & os.environ.keys():
        return {}
    configured = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True
    )
    url = os.environ.get("PIP_INDEX_URL") or configured.stdout.strip()
    return {"UV_DEFAULT_INDEX": url} if url else {}


# -- the command line -------------------------------------------------------------------------------------------------


def arguments(doc: str, full: str = "the full sizes") -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help=full)
    parser.add_argument("-o", "--output", type=Path, help="a file for the rows of the table, as JSON")
    return parser


def report(rows: Sequence[BenchmarkRow], output: Path | None) -> None:
    """Print the rows, and write them as JSON if there is a file."""
    print(table(rows))
    if output:
        write(rows, output)


def write(rows: Sequence[BenchmarkRow], output: Path) -> None:
    """Write the rows as JSON."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rows, indent=1) + "\n")


# -- all of a folder --------------------------------------------------------------------------------------------------

TOGETHER = 570  # seconds for all at the reduced size
LEAST = 30  # seconds that each may take in any case


def run(script: Path, options: list[str], patience: float | None) -> list[BenchmarkRow]:
    """Run one benchmark and return its rows. If it fails, return one row that says why."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "rows.json")
        command = [sys.executable, str(script), *options, "-o", str(output)]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        ) as child:
            try:
                errors = child.communicate(timeout=patience)[1]
                why = next((line for line in reversed(errors.splitlines()) if line.strip()), "no reason given")
                why = f"failed: {why.strip()}"
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.communicate()
                why, errors = f"stopped after {patience:.0f} s", ""
        if output.exists():
            return json.loads(output.read_text())
    sys.stderr.write(errors)
    title = (ast.get_docstring(ast.parse(script.read_text("utf-8"))) or script.stem).splitlines()[0]
    return [row(title, None, "", None, "stated", note=why)]


def run_all(doc: str, folder: Path, names: Sequence[str], patience: float, together: float = TOGETHER) -> None:
    """Run the benchmarks of a folder one after the other.

    At the reduced size each may take `patience` seconds, and all `together`.
    """
    parser = arguments(doc, "the full sizes, which take an hour or so")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    options = parser.parse_args()
    began, rows = time.monotonic(), []
    for number, name in enumerate(options.only, 1):
        started = time.monotonic()
        left = together - (started - began) - LEAST * (len(options.only) - number)
        most = None if options.full else max(LEAST, min(patience, left))
        measured = run(folder / f"{name}.py", ["--full"] if options.full else [], most)
        rows += measured
        print(f"{name}, {time.monotonic() - started:.0f} s\n{table(measured)}\n", flush=True)
        write(rows, options.output or ROOT / "build" / "bench.json")
    sys.exit(any(entry["note"].startswith(("failed", "stopped")) for entry in rows))
