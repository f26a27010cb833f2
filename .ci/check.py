"""Everything that can be said about the code without running it: `python .ci/check.py [NAME ...]`."""

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sysconfig.get_path("scripts"))
WRITTEN = [name for name in ("nbs", "tests", "services", "benchmarks", "docs", ".ci") if (ROOT / name).exists()]
QUIET = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "PYRIGHT_PYTHON_DISABLE_GITHUB_ACTIONS_OUTPUT": "1", "NO_COLOR": "1"}

CHECKS: dict[str, list[str | Path]] = {
    "format": [BIN / "ruff", "format", "--check", "--output-format=concise", *WRITTEN],
    "lint": [BIN / "ruff", "check", "--output-format=concise", *WRITTEN],
    "types": [BIN / "pyright", "--pythonpath", sys.executable],
    "imports": [BIN / "lint-imports", "--no-cache", "--no-logo"],
    "dependencies": [sys.executable, ".ci/dependencies.py"],
    "notebooks": [sys.executable, ".ci/notebooks.py"],
    "drift": [sys.executable, ".ci/drift.py"],
    "markdown": [sys.executable, ".ci/markdown.py"],
    "figures": [sys.executable, ".ci/figures.py"],
}
SHOWN = {"figures"}  # checks whose output is worth reading when they pass


def check(name: str) -> bool:
    """Run one check and show its output if it fails or is in `SHOWN`."""
    print(f"{name:<13}", end="", flush=True)
    start = time.monotonic()
    done = subprocess.run(
        [str(part) for part in CHECKS[name]],
        cwd=ROOT,
        env=os.environ | QUIET,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(f"{'FAILED' if done.returncode else 'ok':<7}{time.monotonic() - start:5.1f} s", flush=True)
    if done.returncode or name in SHOWN:
        print(done.stdout.rstrip() + "\n", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    names = sys.argv[1:] or list(CHECKS)
    if unknown := set(names) - CHECKS.keys():
        sys.exit(f"check: no check is called {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    failed = [name for name in names if not check(name)]
    if failed:
        sys.exit(f"check: failed: {', '.join(failed)}")
    print(f"check: all {len(names)} passed")
