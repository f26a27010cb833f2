"""Pages of `docs/` whose files and commands a test writes and runs, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

RUN = """
import os, runpy, shlex, sys
from mlpkg.cli import main

sys.path.remove("")  # as for the command `mlpkg`, which finds the use case all the same
for line in sys.stdin:
    print(f"$ {line}", end="", flush=True)
    if "VERSION" in line:
        line = line.replace("VERSION", os.listdir("state/models/shop")[0])  # the only one there is
    command, *arguments = shlex.split(line)
    sys.argv = [command, *arguments] if command == "mlpkg" else arguments
    try:
        if command == "mlpkg":
            main()
        else:
            sys.path.insert(0, os.getcwd())  # as for `python FILE`
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.path[:1] = [] if sys.path[0] == os.getcwd() else sys.path[:1]
"""


def run_page(page: Path, folder: Path) -> str:
    """What the commands of a page print, in its order, each after `$` and itself; one process runs them all, to save the imports."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLPKG_")}
    env.pop("PYTHONPATH", None)
    env |= {"BENTOML_HOME": str(folder / "bentoml")}
    commands = []
    for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        if kind != "sh":
            (folder / text.partition("\n")[0].removeprefix("# ")).write_text(text, "utf-8")
            continue
        commands += text.splitlines()
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=folder,
        env=env,
        input="\n".join([*commands, ""]),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def after(transcript: str, command: str) -> str:
    """What the first command that begins so printed."""
    return transcript.partition(f"$ {command}")[2].partition("\n")[2].partition("\n$ ")[0].strip()
