"""`make demo-platform` says in one line what it needs."""

import os
import subprocess
import sys
from pathlib import Path

from paths import SUPPORT


def test_a_missing_server_is_one_line_with_the_command_that_gets_it(tmp_path: Path):
    empty = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, SUPPORT / "demo_platform.py"], env=empty, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("demo-platform: ")
    assert done.stderr.endswith("is missing; get what the servers need with: make servers-install\n")
