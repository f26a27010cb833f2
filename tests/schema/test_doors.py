"""One door for events: JSON, NDJSON, CSV, Parquet and DataFrames give the same verdict, the same stored bytes and the same message."""

import csv
import json
import math
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from door_values import (
    EVERYTHING,
    GOOD,
    KINDS,
    REFUSED,
    bodies,
    cells,
    csv_cells,
    said_by_cell,
    said_by_text,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import mlpkg as ml
from mlpkg.lab.checked_rows import RejectedRow
from mlpkg.lab.column_checks import EventChecks
from mlpkg.lab.files import Chunk, read_file
from mlpkg.lab.frame_chunks import chunk_of
from mlpkg.times import now

EXAMPLES = 2_000 if os.environ.get("MLPKG_LONG") else 20
LONG = bool(os.environ.get("MLPKG_LONG"))
few = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not LONG,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
CHECKS = EventChecks(EVERYTHING)
FOLDER = Path(tempfile.mkdtemp())
Verdict = tuple[Any, ...]

_TYPES = {
    "int8": pa.int8(),
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "decimal128(38, 0)": pa.decimal128(38, 0),
    "decimal128(12, 3)": pa.decimal128(12, 3),
    "bool": pa.bool_(),
    "string": pa.string(),
    "large_string": pa.large_string(),
    "dictionary": pa.string(),
    "binary": pa.binary(),
    "timestamp[us, UTC]": pa.timestamp("us", "UTC"),
    "timestamp[us, +02:00]": pa.timestamp("us", "+02:00"),
}


def json_door(body: Any, empty: frozenset[str] = frozenset()) -> Verdict:
    """What the JSON door makes of an event; where a cell of these fields is `empty` in a text file, it says so."""
    try:
        row = EVERYTHING.parse(body)
        EVERYTHING.check_arrival(row, row.time, now())
        return row.id, row.time, row.body, row.codes
    except ml.Rejected as why:
        reason = "is missing: the cell is empty" if why.reason == "is missing" and empty else why.reason
        return why.field, _timeless(reason)


def _timeless(reason: str) -> str:
    """A reason without what the clock said."""
    return reason.partition(" of the clock of this machine")[0]


def file_door(chunks: Iterable[Chunk]) -> list[Verdict]:
    """What the columnar door makes of the rows of a file, in their order."""
    verdicts: dict[int, Verdict] = {}
    for chunk in chunks:
        refused: list[RejectedRow] = []
        taken, _ = CHECKS.take(chunk, ["arrived"], refused)
        for i, place in enumerate(taken.places.tolist()):
            row = int(chunk.rows[place])
            verdicts[row] = (taken.ids[i], int(taken.time[i]), taken.bodies[i], tuple(taken.codes[i].tolist()))
        verdicts |= {rejected.row: (rejected.why.field, _timeless(rejected.why.reason)) for rejected in refused}
    return [verdicts[row] for row in sorted(verdicts)]


def event(name: str, value: Any) -> dict[str, Any]:
    """A good event with one cell; an empty one is null where the field may be null, else the field is left out."""
    body = GOOD | {name: value}
    return body if value is not None or KINDS[name].optional else {k: v for k, v in body.items() if k != name}


def check(verdicts: list[Verdict], name: str, expected: list[Any], cells: list[Any], text: bool = False) -> None:
    """Compare with the JSON door, cell by cell."""
    assert len(verdicts) == len(expected)
    for verdict, value, cell in zip(verdicts, expected, cells, strict=True):
        if value is REFUSED:
            assert len(verdict) == 2, (cell, verdict)
            continue
        empty = frozenset({name}) if text and value is None else frozenset[str]()
        assert verdict == json_door(event(name, value), empty), (name, cell, value)


def typed(type_name: str, values: list[Any]) -> pa.Array:
    """A column of an Arrow type, by its name."""
    made = pa.array(values, _TYPES[type_name])
    return made.dictionary_encode() if type_name == "dictionary" else made


def columns(name: str, column: Any) -> dict[str, Any]:
    """The columns of a file of good events, one of them replaced."""
    rest = {k: pa.array([v] * len(column)) for k, v in GOOD.items() if v is not None}
    return rest | {name: column}


@given(st.sampled_from(list(KINDS)).flatmap(lambda name: st.tuples(st.just(name), cells(KINDS[name]))))
@few
def test_a_typed_cell_is_judged_as_the_json_value_that_it_says(drawn: tuple[str, tuple[str, list[Any]]]):
    """In a Parquet file, and in the frame that pandas makes of it."""
    name, (type_name, values) = drawn
    table = pa.table(columns(name, typed(type_name, values)))
    expected = [said_by_cell(KINDS[name], value) for value in table.column(name).to_pylist()]
    path = FOLDER / "cells.parquet"
    pq.write_table(table, path)
    check(file_door(read_file(path, EVERYTHING, size=3)), name, expected, values)
    frame = table.to_pandas()
    frame[name] = pd.Series(table.column(name).to_pylist(), dtype=object)
    check(file_door([chunk_of(frame)]), name, expected, values)


@given(
    st.sampled_from(list(KINDS)).flatmap(
        lambda name: st.tuples(st.just(name), st.lists(csv_cells(KINDS[name]), min_size=1, max_size=6))
    )
)
@few
def test_a_cell_of_a_csv_file_is_judged_as_the_json_value_that_it_says(drawn: tuple[str, list[str]]):
    name, values = drawn
    path = FOLDER / "cells.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(GOOD)
        writer.writerows([("" if v is None else str(v)) for v in (GOOD | {name: value}).values()] for value in values)
    verdicts = file_door(read_file(path, EVERYTHING, size=4))
    check(verdicts, name, [said_by_text(KINDS[name], value) for value in values], values, text=True)


@given(st.lists(bodies(), min_size=1, max_size=6))
@few
def test_a_line_of_ndjson_is_an_event_as_it_would_have_been_sent(sent: list[dict[str, Any]]):
    lines = [json.dumps(body).encode() for body in sent]
    assert file_door([Chunk(np.arange(len(lines)), {}, lines=lines)]) == [json_door(line) for line in lines]


@example([GOOD, GOOD | {"amount": True}])  # Arrow would read the truth as 1.0
@example([GOOD | {"id": 10**400}])  # more digits than a float has
@example([GOOD | {name: -(10**4000)} for name in KINDS])  # the fault of the field, as in JSON
@example([GOOD | {"member": -(10**4000), "id": ""}])  # of two faults the first
@given(st.lists(bodies(), min_size=1, max_size=6))
@few
def test_a_frame_of_anything_is_judged_cell_by_cell(sent: list[dict[str, Any]]):
    """Columns of Python objects, of which each may be of another type; a missing cell is none."""
    rows = [{name: body.get(name) for name in KINDS} for body in sent]
    frame = pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=object) for name in KINDS})
    expected = []
    for row in rows:
        json_values = {name: said_by_cell(KINDS[name], value) for name, value in row.items()}
        expected.append(json_door({k: v for k, v in json_values.items() if v is not None or KINDS[k].optional}))
    assert file_door([chunk_of(frame)]) == expected


def test_values_of_a_large_file_are_judged_as_each_alone():
    """Good rows are checked by the column, and a fault that was seen before is not asked for again: with the same result."""
    rng = np.random.default_rng(0)
    wild = [-1.0, 1e-9, math.inf, 57.16, None, 3e10, 0.0066, 0.0067, 0.0]
    rows = [GOOD | {"id": f"e{i}", "amount": wild[rng.integers(len(wild))]} for i in range(500)]
    frame = pd.DataFrame(rows)
    expected = [json_door({k: v for k, v in row.items() if v is not None or KINDS[k].optional}) for row in rows]
    assert file_door([chunk_of(frame)]) == expected
