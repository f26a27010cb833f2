"""Pages of `docs/` whose files and commands a test writes and runs, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

from background import free_port
from paths import SUPPORT

RUN = """
import os, runpy, shlex, subprocess, sys
from mlpkg.cli import main

sys.path[0] = sys.argv[1]
from background import Background

background = Background()
del sys.path[0]  # as for the command `mlpkg`, which finds the use case all the same
for line in sys.stdin:
    print(f"$ {line}", end="", flush=True)
    if "VERSION" in line:
        line = line.replace("VERSION", os.listdir("state/models/shop")[0])  # the only one there is
    command, *arguments = shlex.split(line)
    if command == "cd":
        os.chdir(arguments[0])
        continue
    if arguments[-1:] == ["&"]:
        background.start(command, *arguments[:-1])
        continue
    if command not in ("mlpkg", "python"):
        print(subprocess.run([command, *arguments], check=True, capture_output=True, text=True).stdout, flush=True)
        continue
    sys.argv = [command, *arguments] if command == "mlpkg" else arguments
    try:
        if command == "mlpkg":
            main()
        else:
            sys.path.insert(0, os.getcwd())  # as for `python FILE`
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if end.code and arguments[0] != "check":  # which exits with 1 as long as something is missing
            raise
    finally:
        sys.path[:1] = [] if sys.path[0] == os.getcwd() else sys.path[:1]
background.stop()
"""


def run_page(page: Path, folder: Path) -> str:
    """What the commands of a page print, in its order, each after `$` and itself; one process runs them all, to save the imports."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLPKG_")}
    env.pop("PYTHONPATH", None)
    port = free_port()
    env |= {"BENTOML_HOME": str(folder / "bentoml"), "MLPKG_PORT": str(port)}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    commands = []
    for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        if kind != "sh":
            (folder / text.partition("\n")[0].removeprefix("# ")).write_text(text, "utf-8")
            continue
        commands += text.replace(":3000", f":{port}").splitlines()
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(SUPPORT)],
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
