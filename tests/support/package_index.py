"""Where pip finds packages when a test installs some."""

import os
import re
import subprocess
import sys


def index() -> dict[str, str]:
    """The index that pip is set up to use, for uv, which does not read pip's files."""
    if {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & os.environ.keys():
        return {}
    output = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    match = re.search(r"^(?:global|install)\.index-url='(.*)'$", output, re.MULTILINE)
    url = os.environ.get("PIP_INDEX_URL") or (match and match[1])
    return {"UV_DEFAULT_INDEX": url} if url else {}
