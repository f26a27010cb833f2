"""For each Python process that has this folder on its PYTHONPATH: a clock that is wrong by the seconds in the file $WRONG_CLOCK."""

import os
import time
from pathlib import Path

_right, _wrong_by = time.time_ns, Path(os.environ["WRONG_CLOCK"])


def time_ns() -> int:
    return _right() + int(_wrong_by.read_text()) * 10**9


time.time_ns = time_ns
