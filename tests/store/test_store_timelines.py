"""Rows in any order, one by one, in batches and over restarts: a stored timeline is the sorted list of its rows."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import apsw
import numpy as np
import pytest

from mlpkg.engine.columns import NULL
from mlpkg.engine.tiles import KNOWN, MAX, MIN, SQUARES, SQUARES_HIGH, SUM, Tiles
from mlpkg.engine.timeline import as_timeline, pack
from mlpkg.store.sqlite import timeline_tree
from mlpkg.store.sqlite import timelines as stored
from mlpkg.store.sqlite.schema import TIMELINES
from mlpkg.store.sqlite.timeline_bulk import BulkAppend
from mlpkg.store.sqlite.timelines import Timelines

FOREVER = 2**62
LONG = bool(os.environ.get("MLPKG_LONG"))
SIZES = {"as it is": (128, 256, 16, 64), "small": (8, 4, 2, 2), "smallest": (4, 2, 1, 2)}


@pytest.fixture(params=list(SIZES))
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Short heads, chunks and nodes, so that few rows already make a tall tree."""
    for name, size in zip(("HEAD", "CHUNK", "_FEW", "WIDE"), SIZES[request.param], strict=True):
        monkeypatch.setattr(stored if name == "HEAD" else timeline_tree, name, size)
    return request.param


class Store:
    """The timelines of one stream in a file, and what they should hold."""

    def __init__(self, path: Path, columns: tuple[str, ...] = ("about", "x")):
        self.path, self.columns = path, columns
        self.truth: dict[int, list[tuple[int, ...]]] = {}
        self.open()

    def open(self) -> None:
        is_new = not self.path.exists()
        self.db = apsw.Connection(str(self.path))
        if is_new:
            self.db.execute(TIMELINES)
        self.timelines = Timelines(self.db, self.db.cursor().execute, 1, self.columns)

    def append(self, key: int, row: tuple[int, ...]) -> None:
        with self.db:
            self.timelines.append(key, pack(*row))
        self.truth.setdefault(key, []).append(row)

    def extend(self, keys: list[int], rows: list[tuple[int, ...]]) -> None:
        with self.db:
            BulkAppend(self.timelines).extend(np.array(keys), np.array(rows, np.int64))
        for key, row in zip(keys, rows, strict=True):
            self.truth.setdefault(key, []).append(row)

    def replace(self, key: int, position: int) -> None:
        k = random.randrange(len(self.truth[key]))
        time, _, about, x = self.truth[key].pop(k)
        with self.db:
            self.timelines.replace(key, about, pack(time, position, about, x + 1))
        self.truth[key].append((time, position, about, x + 1))

    def rows(self, key: int, since: int = -FOREVER) -> list[tuple[int, ...]]:
        held = as_timeline(self.timelines.read(self.timelines.head(key), since))
        assert not isinstance(held, Tiles)
        columns = [held.time, held.position, *held.columns.values()]
        return [r for r in zip(*(c.tolist() for c in columns), strict=True) if r[0] > since]

    def expected(self, key: int, since: int = -FOREVER) -> list[tuple[int, ...]]:
        return sorted(r for r in self.truth.get(key, []) if r[0] > since)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "timelines.db")
    yield made
    made.db.close()


def number(rng: random.Random) -> int:
    size = rng.choice([3, 10, 42, 53, 63])
    return NULL if rng.random() < 0.2 else rng.randrange(-(2**size) + 1, 2**size)


def stream(rng: random.Random, count: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Rows of a few entities: in order, late, tied, from far away."""
    clock = 1000
    for position in range(1, count + 1):
        clock += rng.choice([0, 0, 1, 5])
        late = rng.choice([0, 0, 0, 0, rng.randrange(20), rng.randrange(clock)])
        key = rng.choice([1, 1, 1, 1, 2, 3, -(2**63) + 1])
        yield key, (clock - late, position, position, number(rng))


@pytest.mark.parametrize("seed", range(6 if LONG else 3))
def test_a_stored_timeline_is_the_sorted_list_of_its_rows(store: Store, sizes: str, seed: int):
    """Whether the rows come one by one, in batches of any size, corrected, or with a restart between."""
    rng = random.Random(seed)
    random.seed(seed)
    rows, position = list(stream(rng, 3000 if sizes == "as it is" else 500)), 10_000
    while rows:
        what = rng.random()
        count = rng.choice([1, 1, 2, 10, 100, 1000])
        batch, rows = rows[:count], rows[count:]
        if what < 0.4:
            for key, row in batch:
                store.append(key, row)
        else:
            store.extend([key for key, _ in batch], [row for _, row in batch])
        if what < 0.1:
            store.db.close()
            store.open()
        elif what > 0.8:
            position += 1
            store.replace(rng.choice(list(store.truth)), position)
    for key in [*store.truth, 99]:
        assert store.rows(key) == store.expected(key)
        for since in (0, 500, 1000, rng.randrange(3000)):
            assert store.rows(key, since) == store.expected(key, since)


def brute(rows: list[tuple[int, ...]], column: int) -> list[int]:
    values = [r[2 + column] for r in rows if r[2 + column] != NULL]
    return [
        len(values),
        sum(values) % 2**64,
        sum(v * v for v in values) % 2**128,
        *(f(values) for f in (min, max) if values),
    ]


@pytest.mark.parametrize("seed", range(4 if LONG else 2))
def test_cells_between_edges_say_what_the_rows_say(store: Store, sizes: str, seed: int):
    rng = random.Random(seed)
    rows = list(stream(rng, 12_000 if sizes == "as it is" else 400))
    for begin in range(0, len(rows), 500):
        store.extend([key for key, _ in rows[begin : begin + 500]], [row for _, row in rows[begin : begin + 500]])
    rows = store.expected(1)
    for _ in range(30):
        times = [r[0] for r in rng.choices(rows, k=rng.choice([1, 2, 7]))] + [rng.randrange(-5, rows[-1][0] + 5)]
        edges = np.unique(times)
        read = store.timelines.read(store.timelines.head(1), int(edges[0]), edges - edges[0])
        if not isinstance(read, Tiles):
            assert read.time[0] <= edges[0] or len(read) < 5000
            continue
        gap = edges.searchsorted(read.time)
        assert ((np.diff(read.time) >= 0).all() and sizes != "as it is") or len(read) < 400
        for g in range(1, len(edges) + 1):
            inside = [r for r in rows if edges[g - 1] < r[0] and (g == len(edges) or r[0] <= edges[g])]
            selected = gap == g
            assert read.rows[selected].sum() == len(inside)
            for c, name in enumerate(store.columns):
                tiles = read.columns[name][selected]
                low = sum(int(v) & 2**64 - 1 for v in tiles[:, SQUARES].tolist())
                squares = (low + (sum(tiles[:, SQUARES_HIGH].tolist()) << 64)) % 2**128
                total = [sum(tiles[:, KNOWN].tolist()), sum(tiles[:, SUM].tolist()) % 2**64, squares]
                if total[0]:
                    total += [tiles[:, MIN].min(), tiles[:, MAX].max()]
                assert total == brute(inside, c)


def test_an_append_never_deletes_a_row_whatever_its_time(store: Store, sizes: str):
    """A clock that is years ahead or behind for a while, in single rows and in batches."""
    rng, day, position, offset = random.Random(5), 86_400, 0, 0
    while position < 6000:
        if rng.random() < 0.02:
            offset = rng.choice([0, 0, 1, -1]) * rng.choice([day, 200 * day, 30_000 * day])
        times = [(position + k) * 60 + offset + rng.randrange(-600, 600) for k in range(rng.choice([1, 1, 1, 40, 300]))]
        rows = [(time, position + k, position + k, k) for k, time in enumerate(times)]
        position += len(rows)
        if len(rows) == 1:
            store.append(1, rows[0])
        else:
            store.extend([1] * len(rows), rows)
    assert store.rows(1) == store.expected(1)
    for since in (offset - day, 200 * day, 0):
        assert store.rows(1, since) == store.expected(1, since)


def test_a_window_reads_as_little_of_a_long_timeline_as_of_a_short_one(store: Store):
    read = []
    for begin in range(1, 200_001, 20_000):
        store.extend([1] * 20_000, [(p, p, p, 1) for p in range(begin, begin + 20_000)])
        last = begin + 19_999
        read.append(len(store.timelines.read(store.timelines.head(1), last - 1000)))
    assert max(read) <= 1000 + timeline_tree.CHUNK + stored.HEAD


def test_a_late_row_touches_one_chunk_and_its_nodes(store: Store):
    store.extend([1] * 100_000, [(10 * p, p, p, 1) for p in range(1, 100_001)])
    before = store.db.total_changes()
    store.append(1, (55_555, 100_001, 5, 1))
    assert store.db.total_changes() - before <= 4
    assert store.rows(1, 50_000) == store.expected(1, 50_000)


def test_a_small_timeline_is_one_row(store: Store):
    for position in range(1, 128):
        store.append(1, (position, position, position, 1))
    assert store.db.execute("select count(*) from timeline").get == 1
    assert store.db.execute("select (select count(*) from chunk) + (select count(*) from node)").get == 0
