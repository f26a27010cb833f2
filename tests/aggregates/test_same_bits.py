"""The same bits on another processor: the kernels once more with all of NumPy's CPU dispatch turned down.

Started as a script, this file prints a digest of the bits of every feature: of many moments at once, and of some alone.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from aggregate_cases import ELSEWHERE, HOUR, MOST, NOON, features_of, history_of, many, one, world_of
from oracle import Moment

from mlpkg.aggregates import REGISTRY

try:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__  # type: ignore[import-not-found]
except ImportError:
    from numpy.core._multiarray_umath import __cpu_dispatch__, __cpu_features__  # type: ignore[import-not-found]


def enabled() -> list[str]:
    """The CPU features that NumPy dispatches to beyond its baseline."""
    return [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]


def digests() -> Iterator[tuple[str, str]]:
    """The bits of every aggregate's examples on fixed random data, with disorder, ties, nulls and values of all sizes."""
    rng = random.Random(7)
    rows = []
    for _ in range(300):
        level = rng.choice([None, rng.randrange(-3, 4), rng.randrange(-1000, 1001)])
        tip = rng.choice(
            [None, rng.randrange(-100, 100), rng.randrange(-5_000_000, 5_000_000), rng.randrange(-MOST, MOST)]
        )
        time = NOON + rng.randrange(8 * 24) * HOUR + rng.choice([0, rng.randrange(HOUR)])
        late = rng.choice([0, 0, rng.randrange(24 * HOUR)])
        row = {"card": rng.choice([1, 1, *range(20)]), "time": time, "shop": rng.choice(["a", "b", "é", None])}
        row |= {"amount": rng.randrange(10_000_000), "tip": tip, "level": level, "night": rng.random() < 0.3}
        rows.append((time + late, len(rows), row))
    world = world_of([row for _, _, row in sorted(rows, key=lambda r: r[:2])])
    events = world.streams["payments"].events
    position = np.array([e.position for e in events])
    for verb in sorted({*REGISTRY} - ELSEWHERE):
        features, _ = features_of(verb, REGISTRY[verb], "payments")
        for name, column in many(features, history_of(world), np.arange(len(events)), position).items():
            yield f"{verb} {name}", digest(column)
        alone = [one(features, world, Moment(e.time, e.position, e.position, e.values)) for e in events[::30]]
        for name in features.names:
            yield f"{verb} {name}, alone", digest([values[name] for values in alone])


def digest(values: list[float]) -> str:
    """Of types and bits; every null is one."""
    texts = ["null" if v != v else v.hex() if isinstance(v, float) else str(v) for v in values]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def in_a_process(disabled: str) -> dict[str, dict[str, str] | list[str]]:
    env = os.environ | {"NPY_DISABLE_CPU_FEATURES": disabled, "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_kernels_give_the_same_bits_with_numpys_cpu_dispatch_turned_down():
    used = enabled()
    if not used:
        pytest.skip("NumPy dispatches to nothing on this processor")
    plain, down = in_a_process(""), in_a_process(" ".join(used))
    assert plain["enabled"] == used and down["enabled"] == []
    assert len(plain["bits"]) > 20 * len(REGISTRY)
    different = [name for name in plain["bits"] if plain["bits"][name] != down["bits"][name]]  # type: ignore[index]
    assert different == []


def test_there_is_something_to_turn_down():
    """On an x86 or ARM machine: a function that is known to differ does."""
    if not enabled():
        pytest.skip("NumPy dispatches to nothing on this processor")
    code = "import numpy as np; print(np.exp(np.linspace(-9, 9, 10_001)).tobytes().hex())"
    messages = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"NPY_DISABLE_CPU_FEATURES": disabled},
            capture_output=True,
            check=True,
        ).stdout
        for disabled in ("", " ".join(enabled()))
    }
    if len(messages) == 1:
        pytest.skip("exp has the same bits either way here")


if __name__ == "__main__":
    print(json.dumps({"enabled": enabled(), "bits": dict(digests())}))
