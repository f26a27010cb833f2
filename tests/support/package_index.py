"""Where pip finds packages when a test installs some."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def index() -> dict[str, str]:
    """The index that pip is set up to use, for uv, which does not read pip's files."""
    if {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & os.environ.keys():
        return {}
    output = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    match = re.search(r"^(?:global|install)\.index-url='(.*)'$", output, re.MULTILINE)
    url = os.environ.get("PIP_INDEX_URL") or (match and match[1])
    return {"UV_DEFAULT_INDEX": url} if url else {}


def fresh_environment(folder: Path, *install: object, cwd: Path, env: Mapping[str, str]) -> Path:
    """Make an environment in a folder with what `uv pip install` is told to install; its Python."""
    uv = [sys.executable, "-m", "uv"]
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    settings = {**env, "UV_HTTP_TIMEOUT": "120", **index()}
    for command in (
        ["venv", "--quiet", "--python", sys.executable, folder / "venv"],
        ["pip", "install", "--quiet", "--python", python, *install],
    ):
        arguments = [*uv, *map(str, command)]
        done = subprocess.run(
            arguments, cwd=cwd, env=settings, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
    return python
