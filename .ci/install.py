"""Make .venv hold exactly what constraints.txt pins: `python .ci/install.py`. It needs Python 3.11 and a package index."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / "python"
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = "serve,lab,kafka,redis,postgres,delta,objects,spark,docs,dev"


def run(*command: str | Path, quiet: bool = False, **env: str) -> bool:
    """Run a command and say whether it succeeded."""
    done = subprocess.run(
        [str(c) for c in command],
        cwd=ROOT,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=subprocess.DEVNULL if quiet else None,
    )
    return done.returncode == 0


def make_venv() -> None:
    """A virtual environment with a pip that works; one that was moved or lost its Python is made anew."""
    if PYTHON.exists() and run(PYTHON, "-m", "pip", "--version", quiet=True):
        return
    say(f"making .venv with Python {sys.version.split()[0]}")
    if not run(sys.executable, "-m", "venv", "--clear", VENV):
        sys.exit("install: Python could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv")


def index_of_pip() -> dict[str, str]:
    """Tell uv which index pip is set up to use, as uv does not read pip's files."""
    if {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & os.environ.keys():
        return {}
    asked = subprocess.run([str(PYTHON), "-m", "pip", "config", "list"], capture_output=True, text=True, cwd=ROOT)
    lines = [line.partition("=") for line in asked.stdout.splitlines()]
    found = {key: value.strip("'\"") for key, _, value in lines}
    url = os.environ.get("PIP_INDEX_URL") or found.get("install.index-url") or found.get("global.index-url")
    return {"UV_DEFAULT_INDEX": url} if url else {}


def install() -> None:
    """With uv, which takes seconds; with pip alone, which takes minutes, where uv cannot be had."""
    uv = re.search(r"^uv==(\S+)", CONSTRAINTS.read_text("utf-8"), re.MULTILINE)
    pip = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    package = ["--editable", f"{ROOT}[{EXTRAS}]"]
    pins = ["--constraint", CONSTRAINTS]
    if uv and run(*pip, "--quiet", f"uv=={uv[1]}"):
        say("installing what constraints.txt pins, with uv")
        options = ["--python", PYTHON, *pins, "--build-constraints", CONSTRAINTS]
        if run(BIN / "uv", "pip", "install", *options, *package, UV_HTTP_TIMEOUT="120", **index_of_pip()):
            return
    say("uv cannot be used here: installing with pip, which takes a few minutes")
    if not run(*pip, *pins, *package):
        sys.exit("install: pip could not install what constraints.txt pins; its last lines say why")


def probe() -> None:
    """LightGBM is the one package that needs a library of the system's."""
    done = subprocess.run([str(PYTHON), "-c", "import lightgbm"], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        hint = "; install OpenMP: apt install libgomp1, or brew install libomp" if "omp" in why else ""
        sys.exit(f"install: LightGBM does not load: {why}{hint}")


def say(text: str) -> None:
    print(f"install: {text}", flush=True)


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(
            f"install: Python 3.11 or newer is needed, this is {sys.version.split()[0]}; try: make install PYTHON=python3.12"
        )
    start = time.monotonic()
    make_venv()
    install()
    probe()
    (VENV / ".installed").touch()
    say(f"done in {time.monotonic() - start:.0f} s")
