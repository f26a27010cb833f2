"""What the benchmarks of the features share: contenders in processes of their own, comparisons and payments.

A contender is a child process. It prepares once, and then works each time that its parent asks. So contenders take turns on
the same rows, each in its own Python environment and with its own peak memory. This module runs in all of these environments,
so it imports the standard library and NumPy alone.
"""

import argparse
import contextlib
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bench import ROOT, BenchmarkRow, Missing, arguments, environment, report, row, run_all  # noqa: E402

__all__ = ["ROOT", "BenchmarkRow", "Missing", "row", "run_all"]

REAL = ROOT.parent / "shared" / "data" / "card_transactions.parquet"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
DAY = 86_400_000_000  # microseconds
US = {"h": DAY // 24, "d": DAY}

Columns = dict[str, np.ndarray]
Work = Callable[[], Any]
Role = Callable[[argparse.Namespace], tuple[Work, Callable[[Any], Columns]]]


def microseconds(window: str) -> int:
    """The width of a window such as ``"6h"`` or ``"30d"``."""
    return int(window[:-1]) * US[window[-1]]


# -- contenders -------------------------------------------------------------------------------------------------------


class Contender:
    """A child process in one role of this script; a pipe carries its orders and answers."""

    def __init__(self, role: str, options: argparse.Namespace, peers: str | None = None, **overrides: object):
        self.role, self.megabytes = role, 0.0
        self.seconds: list[float] = []
        self.processor: list[float] = []  # seconds of processor time
        python = sys.executable if peers is None else environment(peers)
        task = json.dumps(vars(options) | overrides | {"role": role}, default=str)
        cores = {name: str(options.threads) for name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS")}
        self.process = subprocess.Popen(
            [python, sys.argv[0], "--child", task],
            env=os.environ | cores | {"FEAST_USAGE": "False", "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.role} ended with {self.process.wait()}")
        return json.loads(line)

    def run(self) -> float:
        """Work once and return the seconds. The peak memory is that of the first run, because a user runs it once."""
        answer = self._ask("run")
        self.megabytes = self.megabytes or answer["megabytes"]
        self.seconds.append(answer["seconds"])
        self.processor.append(answer["processor"])
        return answer["seconds"]

    def result(self) -> Columns:
        """Return the columns of the last run."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "result.npz")
            self._ask(str(file))
            with np.load(file) as saved:
                return {name: saved[name] for name in saved.files}

    @property
    def best(self) -> float:
        """The shortest of its times, in seconds."""
        return min(self.seconds)


def take_turns(contenders: Sequence[Contender], times: int) -> None:
    """Let each contender run in its turn, `times` times."""
    for _ in range(times):
        for contender in contenders:
            contender.run()


def fastest(forms: Sequence[Contender]) -> Contender:
    """Return the fastest contender."""
    return min(forms, key=lambda c: c.best)


def serve(role: Role, options: argparse.Namespace) -> None:
    """Run as a contender: prepare, then obey each order until the pipe is closed."""
    with os.fdopen(os.dup(1), "w", buffering=1) as channel:
        os.dup2(2, 1)  # prints of libraries must not go into the pipe
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
        work, columns = role(options)
        out: Any = None
        channel.write("{}\n")
        for line in sys.stdin:
            if line.strip() == "run":
                out = None
                _forget_peak()
                began, busy = time.perf_counter(), time.process_time()
                out = work()
                seconds, processor = time.perf_counter() - began, time.process_time() - busy
                answer = {"seconds": seconds, "processor": processor, "megabytes": peak()}
                channel.write(json.dumps(answer) + "\n")
            else:
                np.savez(line.strip(), **columns(out))
                channel.write("{}\n")


def _forget_peak() -> None:
    """Reset the peak memory of this process, if the system can do that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Return the peak memory of this process, in megabytes."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 1024


# -- comparisons ------------------------------------------------------------------------------------------------------


def differences(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], within: float = 1e-9) -> list[str]:
    """Return in words the columns that differ. Floats may differ by `within`, relative to the value or to 1; counts may not."""
    differing = []
    for name in ours:
        a, b = ours[name], theirs[name]
        if np.issubdtype(a.dtype, np.integer):
            wrong = a != b
        else:
            b = b.astype(np.float64)
            apart = np.abs(a - b) > within * np.maximum(1, np.abs(b))
            wrong = apart | (np.isnan(a) != np.isnan(b))
        if wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            differing.append(f"{name}: {int(wrong.sum())} of {len(a)} differ, first row {k}: {a[k]!r} and {b[k]!r}")
    return differing


def agree(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], whose: str, within: float = 1e-9) -> None:
    """End the benchmark if two results differ: then their times mean nothing."""
    if differing := differences(ours, theirs, within):
        raise SystemExit(f"{whose} gives other values:\n  " + "\n  ".join(differing))


# -- payments ---------------------------------------------------------------------------------------------------------


def save_payments(folder: Path, rows: int) -> int:
    """Save about `rows` card payments in the order of the log. Return how many they are.

    The payments are those of the handbook's file if it lies beside the checkout, else simulated ones. Fewer rows mean fewer
    customers. Payments of the same second are moved apart by a microsecond each, because engines treat ties differently.
    """
    import pandas as pd

    from mlpkg.examples.fraud.simulator import simulate

    if REAL.exists():
        names = ["TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT"]
        read = pd.read_parquet(REAL, columns=names).set_axis(["time", "customer_id", "terminal_id", "amount"], axis=1)
        read = read[read.customer_id.to_numpy(np.int64) < math.ceil(5000 * rows / len(read))]
    else:
        customers = max(20, math.ceil(5000 * rows / 1_754_155))
        read = simulate(customers, 2 * customers)
    second = read.time.dt.tz_localize(None).to_numpy("datetime64[s]").astype(np.int64)
    first = np.flatnonzero(np.r_[True, second[1:] != second[:-1]])
    within = np.arange(len(second)) - np.repeat(first, np.diff(np.r_[first, len(second)]))
    saved = {
        "time": second * 1_000_000 + within,
        "customer_id": read.customer_id.to_numpy(np.int64),
        "terminal_id": read.terminal_id.to_numpy(np.int64),
        "cents": np.rint(read.amount.to_numpy(np.float64) * 100).astype(np.int64),
    }
    assert (np.diff(saved["time"]) > 0).all()
    for name, values in saved.items():
        np.save(folder / f"{name}.npy", values)
    return len(second)


def load_payments(folder: Path) -> Columns:
    """Load the payments that `save_payments` saved: time, customer_id, terminal_id, cents."""
    return {name: np.load(folder / f"{name}.npy") for name in ("time", "customer_id", "terminal_id", "cents")}


# -- the command line -------------------------------------------------------------------------------------------------


def main(
    doc: str,
    measure: Callable[[argparse.Namespace], Iterator[BenchmarkRow]],
    roles: Mapping[str, Role] | None = None,
    *,
    rows: tuple[int, int],
    best: int = 3,
) -> None:
    """Run a benchmark as a script. `rows` are the reduced and the full number of its events.

    In a child process of this script, play a role instead.
    """
    parser = arguments(doc, f"the full size, {rows[1]:,} events; else {rows[0]:,}")
    parser.add_argument("--rows", type=int, help="another number of events")
    parser.add_argument("--best", type=int, default=best, help="best of how many turns (default %(default)s)")
    parser.add_argument("--threads", type=int, default=CORES, help="for everyone (default: the cores, %(default)s)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        task = argparse.Namespace(**json.loads(options.child))
        task.folder = Path(task.folder)
        serve((roles or {})[task.role], task)
        return
    options.rows = options.rows or rows[options.full]
    with tempfile.TemporaryDirectory(prefix="mlpkg-bench-") as folder:
        options.folder = Path(folder)
        measured = list(measure(options))
    report(measured, options.output)


def beside(
    stack: contextlib.ExitStack, roles: Sequence[str], options: argparse.Namespace, peers: str, **overrides: object
) -> tuple[list[Contender], str]:
    """Start the contenders of an environment of peers. If it cannot be made, return none and the reason."""
    try:
        return [stack.enter_context(Contender(role, options, peers, **overrides)) for role in roles], ""
    except Missing as why:
        return [], str(why)
