"""Run a command and leave no process behind: `python .ci/tidy.py COMMAND ARGUMENT ...`.

Servers, kernels and workers may detach themselves from the terminal, and then outlive a Ctrl-C. So the command runs in a
session of its own, signals are passed on to it once, and when it has ended, or has not ended in time after a signal,
or make itself was killed, whatever it started and left is terminated, detached or not.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 15.0  # seconds that an interrupted command has to end by itself
GRACE = 5.0  # seconds between the asking and the killing of what is left
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def adopt_orphans() -> None:
    """On Linux, a process whose parent died becomes our child, so that it can be found."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def descendants(root: int) -> list[int]:
    """Every living process below `root`."""
    if Path("/proc/self/stat").exists():
        stats = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                stats.append((folder.name, (folder / "stat").read_text().rpartition(")")[2].split()))
        rows = [(int(pid), int(stat[1])) for pid, stat in stats if stat[0] != "Z"]
    else:
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True).stdout
        rows = [(int(pid), int(parent)) for pid, parent in map(str.split, listed.splitlines())]
    found = [root]
    for pid in found:
        found += [child for child, parent in rows if parent == pid]
    return found[1:]


def reap() -> None:
    """Collect the exit codes of adopted children."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def sweep(group: int) -> None:
    """Ask what is left to end, then kill it."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        for pid in descendants(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        with contextlib.suppress(OSError):
            os.killpg(group, number)  # where orphans cannot be adopted, the group at least
        end = time.monotonic() + patience
        while time.monotonic() < end:
            reap()
            if not descendants(os.getpid()):
                return
            time.sleep(0.05)


def main(command: list[str]) -> int:
    adopt_orphans()
    received: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        if child and len(received) == 1:
            with contextlib.suppress(OSError):
                os.killpg(child.pid, number)

    for number in SIGNALS:
        signal.signal(number, pass_on)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    if received:  # between the handler and the child
        os.killpg(child.pid, received[0])
    parent, end = os.getppid(), None
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = child.wait(0.2)
            break
        if os.getppid() != parent and not received:  # whoever waited for us was killed
            pass_on(signal.SIGTERM, None)
        if received:
            end = end or time.monotonic() + PATIENCE
            if time.monotonic() > end or len(received) > 2:  # a third Ctrl-C does not wait
                code = -received[0]
                break
    sweep(child.pid)
    if received:
        return 128 + received[0]
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
