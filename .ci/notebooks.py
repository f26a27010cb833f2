"""Are the notebooks fit to be committed? `python .ci/notebooks.py` names each one that is not, and why.

Clean means that nbdev-clean has nothing to do. Outputs stay, as the use cases' pictures are part of their chapters. Ids
of code cells are words, because they stand in the exported modules and in every diff.
"""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"
RANDOM_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){0,3}(-[0-9a-f]{12})?|[0-9a-f]{32}")


def paths(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def unclean() -> Iterator[str]:
    """Notebooks that nbdev-clean would change."""
    with tempfile.TemporaryDirectory(prefix="mlpkg-clean-") as folder:
        copy = Path(folder) / "nbs"
        shutil.copytree(NOTEBOOKS, copy, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        nbdev = Path(sysconfig.get_path("scripts")) / "nbdev-clean"
        done = subprocess.run([nbdev], cwd=folder, text=True, capture_output=True, stdin=subprocess.DEVNULL)
        if done.returncode or "Failed to clean" in done.stderr:
            yield f"nbdev-clean failed: {done.stdout}{done.stderr}"
        for path in paths(NOTEBOOKS):
            if path.read_bytes() != (copy / path.relative_to(NOTEBOOKS)).read_bytes():
                yield f"{path.relative_to(ROOT)} is not clean: run nbdev-clean --fname {path.relative_to(ROOT)}"


def unfit(path: Path) -> Iterator[str]:
    """What is wrong inside one notebook."""
    name = path.relative_to(ROOT)
    try:
        cells = json.loads(path.read_text("utf-8"))["cells"]
    except (ValueError, KeyError, TypeError) as error:
        yield f"{name} is not a notebook: {error!r}"
        return
    for identity, times in Counter(cell.get("id") for cell in cells).items():
        if times > 1:
            yield f"{name} has {times} cells with the id {identity!r}"
    for number, cell in enumerate((c for c in cells if c["cell_type"] == "code"), start=1):
        identity = cell.get("id", "")
        where = f"{name}, code cell {number}, {identity!r}"
        if not identity or RANDOM_ID.fullmatch(identity):
            yield f"{where}: give it an id that says what it is"
        shown = "".join(text for output in cell.get("outputs", []) for text in output.get("text", []))
        if (
            any(output.get("output_type") == "error" for output in cell.get("outputs", []))
            or "Traceback (most" in shown
        ):
            yield f"{where} shows an error: run it again"
        if str(ROOT) in json.dumps(cell.get("outputs", []), ensure_ascii=False):
            yield f"{where} shows a folder of this machine, {ROOT}"


if __name__ == "__main__":
    problems = [*unclean(), *(problem for path in paths(NOTEBOOKS) for problem in unfit(path))]
    for problem in problems:
        print(f"notebooks: {problem}")
    sys.exit(1 if problems else 0)
