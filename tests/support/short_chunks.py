"""Timelines whose chunks are so short that few events already fill, close and merge them, and that few rows lie beside."""

import random

import pytest

from mlpkg.store.sqlite import recent_rows, timeline_tree, timelines


def short_chunks(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let timelines have chunks of a few events, and maybe some rows beside them, until the test ends."""
    sizes = rng.choice([(4, 2, 1, 2), (8, 4, 3, 4), (8, 2, 1, 64), (128, 256, 16, 64)])
    for name, size in zip(("HEAD", "CHUNK", "_FEW", "WIDE"), sizes, strict=True):
        monkeypatch.setattr(timelines if name == "HEAD" else timeline_tree, name, size)
    small, most = rng.choice([(100, 200_000), (1, 40), (5, 200)])
    monkeypatch.setattr(recent_rows, "_SMALL", small)
    monkeypatch.setattr(recent_rows, "RECENT_ROWS", most)
