"""`python -m local_servers.guard FOLDER PID`: remove the servers of a folder when a process ends that had no time to do so."""

import contextlib
import shutil
import sys
import time
from pathlib import Path

import psutil

from local_servers.process import Server


def remove_all(folder: Path) -> None:
    """Kill the servers below a folder, and remove it."""
    for state in sorted(folder.rglob("state.json")):
        Server(state.parent).remove()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with contextlib.suppress(psutil.NoSuchProcess):
        starter = psutil.Process(int(sys.argv[2]))
        while folder.exists() and starter.is_running():
            time.sleep(0.5)
    remove_all(folder)
