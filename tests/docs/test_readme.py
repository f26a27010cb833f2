"""The README: what it shows of the example is in the example, and its code prints what the README says."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

from paths import ROOT

from mlpkg.examples import tiny

DEFINITION, EXAMPLE, OUTPUT = re.findall(
    r"^```(?:python|text)\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)[:3]


def test_the_readme_shows_the_definition_of_the_example():
    source = {line.strip() for line in inspect.getsource(tiny).splitlines()}
    assert [line for line in DEFINITION.splitlines() if line.strip() not in source] == []


def test_the_readme_example_prints_what_the_readme_says(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", EXAMPLE], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == OUTPUT, done.stderr
    assert list(tmp_path.iterdir()) == [], "the example leaves nothing behind"
