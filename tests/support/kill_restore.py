"""Restore a backup over a state, again and again, each time killed one step later: kill_restore.py STATE BACKUP FOLDER.

A step is a call that changes what is on the disk. Each ends in FOLDER/<step>, and the number of steps is printed.
"""

import os
import shutil
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

from mlpkg.settings import Settings
from mlpkg.store.sqlite.backup import restore

STEPS = ("rename", "fsync", "fdatasync", "mkdir", "unlink", "write")


def killed_at(step: int, state: Path, backup: Path) -> bool:
    """Restore in a process that kills itself at a step; whether it got that far."""
    if (child := os.fork()) == 0:
        left = count(step, -1)
        for name in STEPS:
            setattr(os, name, counted(getattr(os, name), left))
        restore(Settings(state=state), backup, replace=True)
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def counted(call: Any, left: Any) -> Any:
    def called(*arguments: Any, **more: Any) -> Any:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **more)

    return called


if __name__ == "__main__":
    state, backup, folder = map(Path, sys.argv[1:])
    for step in count():
        shutil.copytree(state, folder / str(step))
        if not killed_at(step, folder / str(step), backup):
            print(step)
            break
