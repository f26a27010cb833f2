"""Is mlpkg/ what the notebooks export? `python .ci/drift.py` exports into an empty folder and compares the two trees.

nbdev never fails and never deletes, so exporting in place would leave a hand-written or orphaned module where it is.
"""

import difflib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 20  # lines of a difference
NOT_EXPORTED = {"_modidx.py", "py.typed"}  # what nbdev-export writes for its own tools; the mark of a typed package


def export(into: Path) -> None:
    """Export the notebooks into the empty folder `into`, as a fresh clone with no mlpkg/ would."""
    shutil.copytree(ROOT / "nbs", into / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "llms.txt"))
    shutil.copy(ROOT / "pyproject.toml", into)
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {"XDG_CONFIG_HOME": str(into / "config")}
    command = [sys.executable, Path(__file__).resolve().parent / "export.py"]
    done = subprocess.run(command, cwd=into, env=env, text=True, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"drift: the export failed\n{done.stdout}{done.stderr}")
    said = "\n".join(line for line in (done.stdout + done.stderr).splitlines() if line.strip())
    if said:
        print(said)


def tree(root: Path) -> dict[str, bytes]:
    """What is under `root`/mlpkg, without what no notebook exports and git ignores or keeps on purpose."""
    files = [p for p in (root / "mlpkg").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    files = [p for p in files if p.name not in NOT_EXPORTED]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(files)}


def difference(name: str, committed: bytes, exported: bytes) -> str:
    """A short unified diff."""
    before, after = (text.decode("utf-8", "replace").splitlines() for text in (exported, committed))
    lines = list(difflib.unified_diff(before, after, f"{name} as exported", f"{name} as it is", lineterm="", n=1))
    more = [f"... and {len(lines) - SHOWN} more lines"] if len(lines) > SHOWN else []
    return "\n".join("    " + line for line in lines[:SHOWN] + more)


def compare(committed: dict[str, bytes], exported: dict[str, bytes]) -> list[str]:
    """One message a file that differs."""
    problems = []
    for name in sorted(committed.keys() | exported.keys()):
        if name not in committed:
            problems.append(f"{name} is missing: a notebook exports it")
        elif name not in exported:
            problems.append(f"{name} is left over: no notebook exports it")
        elif committed[name] != exported[name]:
            problems.append(
                f"{name} is not what its notebook exports\n{difference(name, committed[name], exported[name])}"
            )
    return problems


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="mlpkg-drift-") as folder:
        export(Path(folder))
        problems = compare(tree(ROOT), tree(Path(folder)))
    for problem in problems:
        print(f"drift: {problem}")
    if problems:
        print("drift: change the notebook and run `make export`; a module that no notebook exports is deleted by hand")
    sys.exit(1 if problems else 0)
