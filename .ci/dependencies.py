"""Does pyproject.toml declare what is imported, and nothing else? `python .ci/dependencies.py` asks deptry twice.

The package may import what its base and its extras `client`, `serve` and `lab` declare. Tests, notebooks and scripts
may import everything declared. A declared package that neither imports is unused.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEPTRY = Path(sysconfig.get_path("scripts")) / "deptry"


def folders_of_tests() -> list[str]:
    """Each folder that holds tests: a test imports modules that lie beside it."""
    return sorted({path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")})


def deptry(*arguments: str) -> bool:
    """Run deptry and say whether it found nothing; what it found is printed."""
    done = subprocess.run([DEPTRY, "--no-ansi", *arguments], cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        print("\n".join(line for line in (done.stdout + done.stderr).splitlines() if "DEP0" in line) or done.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    shipped = deptry("mlpkg", "--ignore", "DEP002")
    everything = [name for name in ("mlpkg", "nbs", "services", ".ci") if (ROOT / name).exists()] + folders_of_tests()
    rest = deptry(*everything, "--exclude", "^$", "--optional-dependencies-dev-groups", "none", "--ignore", "DEP004")
    sys.exit(0 if shipped and rest else 1)
