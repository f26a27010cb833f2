"""Wait for something that another process does."""

import time
from collections.abc import Callable


def soon(what: Callable[[], object], seconds: float = 90) -> bool:
    """Whether something is so within some time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if what():
            return True
        time.sleep(0.02)
    return False
