"""Files as other people write them: what they plainly say is taken, all else is refused by its row, and the store stays readable."""

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import Command
from project import Project

import mlpkg as ml
from mlpkg import lab
from mlpkg.errors import MlpkgError
from mlpkg.settings import Settings


class Sale(ml.Event):
    buyer: str
    amount: ml.Money
    share: float | None = None
    units: int = 1


sales = ml.Source("sales", Sale, allowed_lateness="36500d")
returned = sales.outcome("returned", bool, default=False, matures_after="7d")
features = ml.FeatureSet("sales", on=sales, buyer=sales.by("buyer").agg(n=ml.count(over="7d")))
case = ml.UseCase("sales", features, policy=lambda score, event: "send")
NOON = "2018-04-01T12:00:00Z"
AT = pa.array([1522584000 * 10**6], pa.int64()).cast(pa.timestamp("us", "UTC"))


@pytest.fixture
def store(tmp_path: Path):
    store = ml.open_store(Settings(state=tmp_path / "state", use_cases={}))
    yield store
    list(store.read())  # whatever the file held
    lab.events(sales, store=store)
    store.close()


def table(**columns: Any) -> pa.Table:
    return pa.table({"id": ["a"], "time": AT, "buyer": ["an"], "amount": [1.5]} | columns)


def load(store: Any, folder: Path, made: pa.Table) -> Any:
    pq.write_table(made, folder / "sales.parquet")
    return lab.ingest_file(case, folder / "sales.parquet", store)


def text(folder: Path, lines: str, encoding: str = "utf-8") -> Path:
    (folder / "sales.csv").write_bytes(lines.encode(encoding))
    return folder / "sales.csv"


IDS = [
    (pa.array([b"\xc3\xa9"]), "é"),
    (pa.array([b"abc"], pa.binary(3)), "abc"),
    (pa.array([b"abc"], pa.large_binary()), "abc"),
    (pa.array([b"abc"], pa.binary_view()), "abc"),
    (pa.array(["abc"], pa.string_view()), "abc"),
    (pa.array(["abc"]).dictionary_encode(), "abc"),
    (pa.array([Decimal(10**25)], pa.decimal128(38, 0)), str(10**25)),
    (pa.array([2**64 - 1], pa.uint64()), str(2**64 - 1)),
    (pa.array([12.0]), "12"),
    (pa.array([b"\xff\x00"]), "Sale.id: b'\\xff\\x00' is bytes that are no text in UTF-8"),
    (pa.array([UUID(int=5).bytes], pa.binary(16)), "Sale.id: "),
    (pa.array([Decimal("1.5")]), "Sale.id: 1.5 is a number, not a text"),
    (pa.array([[1]]), "Sale.id: [1] is a list, not a text"),
    (pa.nulls(1), "Sale.id: is missing"),
]


@pytest.mark.parametrize(("ids", "expected"), IDS, ids=lambda v: str(getattr(v, "type", "")) or None)
def test_the_id_that_was_read_is_stored_or_the_row_refused(store: Any, tmp_path: Path, ids: pa.Array, expected: str):
    done = load(store, tmp_path, table(id=ids))
    if done.refused:
        assert done.refused[0][1].startswith(expected) and store.last_position() == 0
    else:
        assert [e.id for e in store.read()] == [expected]


def test_ids_of_objects_in_a_frame_are_stored_as_their_text(store: Any):
    rows = [UUID(int=7), Decimal(12), 5, "x", b"y", np.int64(9), b"\xff", object()]
    frame = pd.DataFrame(
        {"id": pd.Series(rows, dtype=object), "time": pd.Timestamp(NOON), "buyer": "an", "amount": 1.0}
    )
    done = lab.ingest(case, frame, store)
    assert [e.id for e in store.read()] == [str(UUID(int=7)), "12", "5", "x", "y", "9"]
    assert [row for row, _ in done.refused] == [6, 7]


TIMES = ["2018-04-01 12:00:00+00", "2018-04-01 12:00:00 UTC", "2018-04-01 12:00:00 +0000", "2018-04-01T14:00+02:00"]
TIMES += ["2018-04-01T12:00:00.0000000Z", "2018-04-01T12:00:00.000000999Z", " 2018-04-01T12:00:00,5z "]


@pytest.mark.parametrize("time", TIMES)
def test_events_and_what_is_known_of_them_are_read_by_one_reader_of_times(store: Any, tmp_path: Path, time: str):
    path = text(tmp_path, f'id,time,buyer,amount,returned\na,"{time}",an,1.5,1\n')
    assert lab.ingest_file(case, path, store).new == {"sales": 1, "sales.returned": 1}


@pytest.mark.parametrize("time", ["20240101", "45292.5", "1522584000", "2018-04-01", "2018-04-01T12:00:00"])
def test_what_is_no_time_is_refused_and_so_is_its_outcome(store: Any, tmp_path: Path, time: str):
    done = lab.ingest_file(case, text(tmp_path, f"id,time,buyer,amount,returned\na,{time},an,1.5,1\n"), store)
    assert (len(done.refused), store.last_position(), store.waiting()) == (1, 0, [])


def test_an_outcome_that_nobody_can_read_is_refused_by_its_row(store: Any, tmp_path: Path):
    lines = "".join(f"{i},{NOON},an,1.5,{cell}\n" for i, cell in enumerate(["yes", "1", "", "2", "false", "True"]))
    done = lab.ingest_file(case, text(tmp_path, f"id,time,buyer,amount,returned\n{lines}"), store)
    assert done.new == {"sales": 6, "sales.returned": 2}
    assert [(row, why.partition(":")[0]) for row, why in done.refused] == [
        (0, "Returned.returned"),
        (3, "Returned.returned"),
    ]


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("cp1252", "byte 0xe9 at position 57"),
        ("latin-1", "byte 0xe9 at position 57"),
        ("utf-16", "UTF-16"),
        ("utf-32", "UTF-32"),
    ],
)
def test_a_file_in_another_encoding_is_refused_before_a_row_is_taken(
    store: Any, tmp_path: Path, encoding: str, message: str
):
    path = text(tmp_path, f"id,time,buyer,amount\na,{NOON},ann,1.5\nb{'b' * 6},{NOON},é,1.5\n", encoding)
    if encoding in ("cp1252", "latin-1"):
        message = f"byte 0xe9 at position {path.read_bytes().index(0xE9)}"
    with pytest.raises(MlpkgError, match=message):
        lab.ingest_file(case, path, store)
    assert store.last_position() == 0


def test_rows_keep_their_numbers_whatever_their_cells_hold(store: Any, tmp_path: Path):
    lines = [
        "\ufeffid;time;buyer;amount",
        f'a;{NOON};"two\r\nlines";1.5',
        f'b;{NOON};"a ""b""";x',
        "",
        f"c;{NOON};an",
        f"d;{NOON};an;1;2",
        f"e;{NOON};a\x00n;",
        f"f;{NOON};;1",
        f"g;{NOON};an;0.12345678901234567890123",
    ]
    done = lab.ingest_file(case, text(tmp_path, "\r\n".join(lines)), store)
    assert [(row, why.partition(" (")[0]) for row, why in done.refused] == [
        (1, "Sale.amount: x is a text, not a number"),
        (3, f"Sale: c;{NOON};an cannot be read as a row: it has 3 cells, the header has 4"),
        (4, f"Sale: d;{NOON};an;1;2 cannot be read as a row: it has 5 cells, the header has 4"),
        (5, "Sale.amount: is missing: the cell is empty"),
        (6, "Sale.buyer: is missing: the cell is empty"),
    ]
    assert [e.id for e in store.read()] == ["a", "g"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_what_to_csv_writes_is_taken_with_every_digit(store: Any, tmp_path: Path, delimiter: str):
    rng = np.random.default_rng(0)
    share = np.concatenate([rng.random(500), rng.uniform(0.01, 1, 500) * 10.0 ** -rng.integers(0, 3, 500)])
    frame = pd.DataFrame({"id": range(1000), "time": NOON, "buyer": "an", "amount": 1.0, "share": share})
    frame.to_csv(tmp_path / "sales.csv", index=False, sep=delimiter)
    done = lab.ingest_file(case, tmp_path / "sales.csv", store)
    assert done.new == {"sales": 1000} and not done.refused


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "has no columns: it is empty"),
        ("\n\n", "has no columns: it is empty"),
        ("id time buyer amount\n", "has one column, 'id time buyer amount'"),
        ("id,time,buyer,amount,id\n", "the column 'id' appears twice"),
        (",id,time,buyer,amount\n", "column 1 has no name"),
        ("id,time,buyer\n", "has no column amount"),
        ("id,time,buyer,amount,amuont\n", "has no column 'amuont'"),
    ],
)
def test_a_header_that_names_no_columns_is_refused_in_words(store: Any, tmp_path: Path, lines: str, message: str):
    with pytest.raises(MlpkgError, match=message):
        lab.ingest_file(case, text(tmp_path, lines), store)


def test_a_key_of_a_line_given_twice_is_refused(store: Any, tmp_path: Path):
    line = f'{{"id":"a","time":"{NOON}","buyer":"an","amount":1,"amount":2,"returned":true}}\n'
    (tmp_path / "sales.ndjson").write_text(
        line + line.replace('"amount":2,', '"arrived":"2018-04-01T13:00:00Z","arrived":null,')
    )
    done = lab.ingest_file(case, tmp_path / "sales.ndjson", store)
    assert [row for row, _ in done.refused] == [0, 1] and store.last_position() == 0


UNITS = [
    (pa.array([Decimal(7)], pa.decimal128(38, 0)), 7),
    (pa.array([Decimal("7.00")]), 7),
    (pa.array([7], pa.uint64()), 7),
    (pa.array([7], pa.int8()), 7),
    (pa.array([np.float16(7)], pa.float16()), 7),
    (pa.array([7.0], pa.float32()), 7),
    (pa.nulls(1), 1),
    (pa.array([float("nan")]), 1),
    (pa.array([7.5]), "is not a whole number"),
    (pa.array([10**18]), "is beyond ±9.0072e+15"),
    (pa.array([2**64 - 1], pa.uint64()), "is beyond ±9.0072e+15"),
    (pa.array([Decimal(10**30)], pa.decimal128(38, 0)), "is beyond ±9.0072e+15"),
    (pa.array([True]), "is a truth value, not a whole number"),
    (pa.array(["7"]), "is a text, not a whole number"),
    (pa.array([date(2018, 4, 1)]), "is a time, not a whole number"),
    (pa.array([{"a": 1}]), "is an object, not a whole number"),
    (pa.array([[1]]), "is a list, not a whole number"),
]


@pytest.mark.parametrize(("units", "expected"), UNITS, ids=lambda v: str(getattr(v, "type", "")) or None)
def test_whole_numbers_of_any_type_are_taken_where_they_fit(store: Any, tmp_path: Path, units: pa.Array, expected: Any):
    done = load(store, tmp_path, table(units=units))
    if isinstance(expected, str):
        assert expected in done.refused[0][1]
    else:
        assert f'"units":{expected}}}' in next(store.read()).body


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", ["UTC", "+02:00", "Europe/Vienna"])
def test_timestamps_of_any_unit_are_the_moment_that_they_say(store: Any, tmp_path: Path, unit: str, zone: str):
    made = load(store, tmp_path, table(time=AT.cast(pa.timestamp(unit, zone))))
    assert made.new == {"sales": 1} and next(store.read()).time == 1522584000 * 10**6


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.date32()])
def test_times_without_a_zone_and_days_are_refused_with_the_file(store: Any, tmp_path: Path, kind: pa.DataType):
    with pytest.raises(MlpkgError, match=r"have no zone|days without a time"):
        load(store, tmp_path, table(time=AT.cast(pa.timestamp("us")).cast(kind)))


@pytest.mark.parametrize("form", ["frame", "list", "table", "generator"])
def test_a_reader_may_return_frames_or_yield_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str):
    made = {
        "frame": "frame()",
        "list": "[frame()]",
        "table": "pa.Table.from_pandas(frame())",
        "generator": "iter([frame()])",
    }
    (tmp_path / f"shop_{form}.py").write_text(
        "import pandas as pd, pyarrow as pa\n\n"
        f"def frame(): return pd.DataFrame({{'id': ['a'], 'time': [pd.Timestamp('{NOON}')], 'buyer': 'an', 'amount': 1.5}})\n\n"
        f"def read(path): return {made[form]}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    store = ml.open_store(Settings(state=tmp_path / "state", use_cases={"sales": f"shop_{form}:case"}))
    assert lab.ingest_file(case, "whatever", store).new == {"sales": 1}
    store.close()


def test_a_file_of_reports_need_not_say_when_they_arrived(store: Any, tmp_path: Path):
    load(store, tmp_path, table())
    (tmp_path / "told.csv").write_text("id,returned\na,true\nb,1\n")
    done = lab.ingest_file(case, tmp_path / "told.csv", store, source="returned")
    assert (done.new, done.waiting, done.assumed) == ({"sales.returned": 2}, 1, True)


def test_a_load_that_takes_nothing_fails_and_one_that_loses_too_much_stops(project: Project, cli: Command):
    header = "id,time,customer_id,terminal_id,amount\n"
    good = "".join(f"g{i},{NOON},1,2,5\n" for i in range(20))
    bad = "".join(f"b{i},{NOON},1,2,-5\n" for i in range(10))
    (project.folder / "bad.csv").write_text(header + bad)
    done = cli("ingest", "fraud", "bad.csv")
    assert done.status == 1 and "all 10 rows were refused" in done.err
    (project.folder / "none.csv").write_text(header)
    assert cli("ingest", "fraud", "none.csv").status == 1
    (project.folder / "half.csv").write_text(header + good + bad)
    for most in ("9", "30%"):
        done = cli("ingest", "fraud", "half.csv", "--max-rejected", most)
        assert done.status == 1 and "stopped: 10 of 30 rows were refused" in done.err and most in done.err
    assert cli("ingest", "fraud", "half.csv", "--max-rejected", "many").status == 2
    done = cli("ingest", "fraud", "half.csv", "--max-rejected", "50%")
    assert done.status == 0 and "20 transactions" in done.out and "arrived is not a column" in done.err
    assert cli("ingest", "fraud", "half.csv").status == 0, "what is known already was taken"


def test_the_moment_of_a_zone_is_kept_in_frames(store: Any):
    times = pd.Series(
        [datetime.fromisoformat("2018-04-01T14:00:00+02:00"), pd.Timestamp(NOON), NOON, None], dtype=object
    )
    frame = pd.DataFrame({"id": list("abcd"), "time": times, "buyer": "an", "amount": 1.0})
    done = lab.ingest(case, frame, store)
    assert {e.time for e in store.read()} == {1522584000 * 10**6} and [row for row, _ in done.refused] == [3]


FAR = timezone(timedelta(hours=1))
ODD: list[tuple[str, Any, str]] = [
    ("buyer", {(1, 2): 3}, "Sale.buyer: a value of the type dict cannot be read"),
    ("id", 10**5000, "Sale.id: a number of more than 4000 digits is larger than can be read"),
    ("id", Decimal("1e999999"), "Sale.id: a number of more than 4000 digits is larger than can be read"),
    ("units", 10**5000, "Sale.units: a number of more than 4000 digits is larger than can be read"),
    ("amount", Decimal("sNaN"), "Sale.amount: is missing"),
    ("amount", Decimal("Infinity"), "Sale.amount: inf is not a finite number"),
    ("amount", Decimal("1e5000"), "Sale.amount: a number of more than 4000 digits is larger than can be read"),
    ("time", datetime(1, 1, 1, tzinfo=FAR), "Sale.time: 0001-01-01T00:00:00+01:00 is outside 1970–2200"),
    ("time", datetime(9999, 12, 31, 23, tzinfo=timezone(-timedelta(hours=5))), "Sale.time: 9999"),
]


@pytest.mark.parametrize(("name", "value", "message"), ODD, ids=lambda v: v[:30] if isinstance(v, str) else "")
def test_objects_of_a_frame_that_no_field_holds_are_refused(store: Any, name: str, value: Any, message: str):
    rows: dict[str, list[Any]] = {
        "id": ["a", "b"],
        "time": [NOON] * 2,
        "buyer": ["an"] * 2,
        "amount": [1.5] * 2,
        "units": [1, 2],
    }
    rows[name][1] = value
    frame = pd.DataFrame({k: pd.Series(v, dtype=object) for k, v in rows.items()})
    done = lab.ingest(case, frame, store)
    assert done.new == {"sales": 1}
    assert [why.startswith(message) for _, why in done.refused] == [True]


def test_each_row_that_no_json_says_keeps_its_own_reason(store: Any, tmp_path: Path):
    made = pa.table(
        {"id": ["a", "b"], "time": pa.array([1, 2], pa.time64("us")), "buyer": ["an"] * 2, "amount": [1.5] * 2}
    )
    done = load(store, tmp_path, made)
    assert [why.split(" (")[0] for _, why in done.refused] == [
        "Sale.time: 00:00:00.000001 is of the type time, not a time",
        "Sale.time: 00:00:00.000002 is of the type time, not a time",
    ]


def test_a_whole_number_of_any_length_is_too_large(store: Any, tmp_path: Path):
    path = text(tmp_path, f"id,time,buyer,amount,units\na,{NOON},an,1,{'1' * 5000}\nb,{NOON},an,1,2\n")
    done = lab.ingest_file(case, path, store)
    assert done.new == {"sales": 1}
    assert [(row, "is beyond ±9.0072e+15" in why) for row, why in done.refused] == [(0, True)]


def test_a_long_cell_after_a_blank_line_is_refused_by_its_row(store: Any, tmp_path: Path):
    path = text(tmp_path, f"id,time,buyer,amount\n\na,{NOON},{'x' * 200_000},1\nb,{NOON},an,1\n")
    done = lab.ingest_file(case, path, store)
    assert (done.new, [row for row, _ in done.refused]) == ({"sales": 1}, [1])


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\r", "\n\n"])
def test_a_header_alone_is_a_file_without_rows(store: Any, tmp_path: Path, end: str):
    assert lab.ingest_file(case, text(tmp_path, f"id,time,buyer,amount{end}"), store).rows == 0


def test_rows_may_end_as_on_an_old_mac(store: Any, tmp_path: Path):
    path = text(tmp_path, f"id,time,buyer,amount\ra,{NOON},an,1\rb,bad,an,1\r")
    done = lab.ingest_file(case, path, store)
    assert (done.new, [row for row, _ in done.refused]) == ({"sales": 1}, [1])


FRAMES = [
    ({"shrae": [0.5]}, "'sales' has no column 'shrae'"),
    ({"row": ["x"]}, "the column 'row' does not hold whole numbers"),
    ({"row": [None]}, "the column 'row' does not hold whole numbers"),
    (None, "'sales' has no column 'foo'"),
]


@pytest.mark.parametrize(("columns", "message"), FRAMES, ids=["unknown", "no-number", "null", "none-known"])
def test_a_frame_has_the_columns_that_a_file_would_have(store: Any, columns: dict[str, Any] | None, message: str):
    made = table(**columns) if columns else pa.table({"foo": [1]})
    with pytest.raises(MlpkgError, match=message):
        lab.ingest(case, made.to_pandas(), store)
