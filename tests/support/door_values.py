"""Values of every kind for the doors of events: as hypothesis draws them, and what a door has to say of each.

`EVERYTHING` is a source with a field of every kind. `bodies` draws events as JSON has them, good and bad; `judge` says in plain
Python what the rules make of one: what is stored, or what is refused and why. `said_by_cell` says which JSON value a cell of a typed
column (Parquet, a data frame) plainly is, and `said_by_text` that of a cell of a CSV file; `cells` and `csv_cells` draw such cells.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from hypothesis import strategies as st
from pydantic import Field

import mlpkg as ml


class Everything(ml.Event):
    """A field of every kind, required and optional, with bounds and without."""

    count: int
    age: Annotated[int, Field(ge=0, le=150)]
    amount: ml.Money
    ratio: float
    tiny: Annotated[float, ml.Resolution(1e-9)]
    level: Annotated[float, Field(gt=-10, lt=10), ml.Resolution(0.5)]
    paid: bool
    name: str
    channel: Literal["web", "shop"]
    visits: int | None = None
    price: ml.Money | None = None
    member: bool | None = None
    note: Annotated[str, Field(min_length=2, max_length=5)] | None = None
    size: int = 3


EVERYTHING = ml.Source("everything", Everything)


@dataclass(frozen=True)
class Kind:
    """What the contract says of a field, written a second time."""

    of: Literal["id", "time", "int", "number", "bool", "text"]
    scale: int = 10**6
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    min_rows: int = 0
    most: int = 10_000
    optional: bool = False
    default: Any = None


KINDS: dict[str, Kind] = {
    "id": Kind("id", min_rows=1, most=200),
    "time": Kind("time"),
    "count": Kind("int"),
    "age": Kind("int", at_least=0, at_most=150),
    "amount": Kind("number", scale=100, at_least=0),
    "ratio": Kind("number"),
    "tiny": Kind("number", scale=10**9),
    "level": Kind("number", scale=2, above=-10, below=10),
    "paid": Kind("bool"),
    "name": Kind("text"),
    "channel": Kind("text", choices=("web", "shop")),
    "visits": Kind("int", optional=True),
    "price": Kind("number", scale=100, at_least=0, optional=True),
    "member": Kind("bool", optional=True),
    "note": Kind("text", min_rows=2, most=5, optional=True),
    "size": Kind("int", default=3),
}


# What the rules say


@dataclass(frozen=True)
class Refusal:
    """A field that is refused, and the reason; of an unknown field only how the reason begins."""

    field: str
    reason: str


def judge(body: Mapping[str, Any]) -> Refusal | dict[str, Any]:
    """What is stored of an event as JSON has it (`time` in microseconds), or the first refusal."""
    for name in body:
        if name not in KINDS:
            return Refusal(name, "is not a field of this source; ")
    for name, kind in KINDS.items():
        if name not in body:
            if kind.optional or kind.default is not None:
                continue
            return Refusal(name, "is missing")
        if reason := _wrong(kind, body[name]):
            return Refusal(name, reason)
    for name, kind in KINDS.items():
        if name in body and (reason := _unkept(kind, body[name])):
            return Refusal(name, reason)
    return {name: _kept(kind, body.get(name, kind.default)) for name, kind in KINDS.items()}


def _wrong(kind: Kind, value: Any) -> str:
    """Why a JSON value is none of this kind, or beyond its bounds; empty if it is one."""
    if value is None:
        if kind.optional:
            return ""
        return "is null; leave it out, or give it a value" if kind.default is not None else "is null, but required"
    what = "a truth value" if type(value) is bool else _WHAT[type(value)]
    if kind.of == "time":
        reason = time_of(value) if type(value) is str else f"is {what}, not a time; write it as in 2018-07-25T10:00:00Z"
        return reason if isinstance(reason, str) else ""
    if kind.choices:
        if value in kind.choices:
            return ""
        return f"is {'' if type(value) is str else f'{what}, '}not 'web' or 'shop'"
    if kind.of == "bool":
        return "" if type(value) is bool else f"is {what}, not true or false"
    if kind.of in ("id", "text"):
        return _wrong_text(kind, value) if type(value) is str else f"is {what}, not a text"
    if kind.of == "int" and type(value) is float:
        whole = value == math.floor(value) if math.isfinite(value) else False
        return "is written with decimals, not as a whole number" if whole else "is not a whole number"
    if type(value) not in (int, float):
        return f"is {what}, not {'a whole number' if kind.of == 'int' else 'a number'}"
    if kind.of == "number" and not math.isfinite(_float(value)):
        return "is not a finite number" if type(value) is float else f"is beyond ±{2**42 / kind.scale:g}{_MOST}"
    return _out_of_bounds(kind, value if kind.of == "int" else float(value))


_WHAT = {str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object"}
_MOST = ", the most its resolution allows"


def _wrong_text(kind: Kind, text: str) -> str:
    if len(text) < kind.min_rows:
        return "is empty" if kind.min_rows == 1 else f"has fewer characters than {kind.min_rows}"
    if len(text) > kind.most:
        return f"has more characters than {kind.most}"
    if kind.of == "id" and (text.isspace() or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)):
        return "is blank or has control characters"
    return ""


def _out_of_bounds(kind: Kind, value: float) -> str:
    if kind.at_least is not None and value < kind.at_least:
        return f"is below {kind.at_least}"
    if kind.at_most is not None and value > kind.at_most:
        return f"is above {kind.at_most}"
    if kind.above is not None and value <= kind.above:
        return f"is not above {kind.above}"
    return f"is not below {kind.below}" if kind.below is not None and value >= kind.below else ""


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _unkept(kind: Kind, value: Any) -> str:
    """Why a column cannot keep a number of the right kind."""
    if value is None or kind.of not in ("int", "number"):
        return ""
    if kind.of == "int":
        return "is beyond ±9.0072e+15" if abs(value) > 2**53 else ""
    steps = abs(float(value) * kind.scale)
    if steps > 2**42 + 0.5:
        return f"is beyond ±{2**42 / kind.scale:g}{_MOST}"
    finer = 0 < steps < 2 / 3
    return f"is finer than its resolution of {1 / kind.scale:g}; declare a finer Resolution" if finer else ""


def _kept(kind: Kind, value: Any) -> Any:
    if kind.of == "time":
        return time_of(value)
    if kind.of == "number" and value is not None:
        return round(float(value) * kind.scale) / kind.scale
    return value


def time_of(text: str) -> int | str:
    """Microseconds of a text that is a time, or why it is none: the rules of times, one character at a time."""
    if _is_number(text):
        return "is a number, not a time; write it as in 2018-07-25T10:00:00Z"
    if _shape(text) == "0000-00-00":
        return "is a day without a time; write it as in 2018-07-25T10:00:00Z"
    no_time = "is not a time; write it as in 2018-07-25T10:00:00Z"
    day, rest = text[:10], text[11:]
    if _shape(day) != "0000-00-00" or text[10:11] not in ("T", "t", " ") or _shape(rest[:5]) != "00:00":
        return no_time
    clock, rest = rest[:5], rest[5:]
    second, fraction = "00", ""
    if _shape(rest[:3]) == ":00":
        second, rest = rest[1:3], rest[3:]
        if rest[:1] in (".", ",") and rest[1:2] and _shape(rest[1:2]) == "0":
            digits = len(rest[1:]) - len(rest[1:].lstrip("0123456789"))
            fraction, rest = rest[1 : 1 + digits], rest[1 + digits :]
    zone = rest.removeprefix(" ")
    if len(fraction) > 9 or int(clock[:2]) > 23:
        return no_time
    if not rest:
        return "has no time zone"
    shift = _shift(zone)
    if shift is None:
        return no_time
    try:
        year, month, of_month = (int(part) for part in day.split("-"))
        moment = datetime(year, month, of_month, int(clock[:2]), int(clock[3:]), int(second), tzinfo=UTC)
        timezone(timedelta(minutes=shift))
    except ValueError:
        return "names a day, a time of day or a zone that does not exist"
    micros = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    micros += int((fraction + "000000")[:6]) - shift * 60_000_000
    return micros if 0 <= micros < 7_258_118_400_000_000 else "is outside 1970–2200"


def _shape(text: str) -> str:
    return "".join("0" if c in "0123456789" else c for c in text)


def _shift(zone: str) -> int | None:
    """Minutes that a zone is ahead of UTC."""
    if zone in ("Z", "z", "UTC", "GMT"):
        return 0
    if zone[:1] not in ("+", "-") or _shape(zone[1:]) not in ("00", "0000", "00:00"):
        return None
    minutes = int(zone[-2:]) if len(zone) > 3 else 0
    return None if minutes > 59 else (int(zone[1:3]) * 60 + minutes) * (-1 if zone[0] == "-" else 1)


def _is_number(text: str) -> bool:
    if not text.isascii() or not any(c.isdigit() for c in text) or text.strip().lstrip("+-")[:1] == "_":
        return False
    try:
        float(text.replace(",", ".").replace("_", ""))
    except ValueError:
        return False
    return True


# Values as JSON has them

_SELDOM = st.sampled_from([False] * 7 + [True])

_NUMBERS = st.one_of(
    st.integers(-200, 200),
    st.integers(),
    st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1, 2**63, 10**18, 10**30, 10**400, -(10**4000), 150, 151, -1]),
    st.floats(),
    st.floats(-1e3, 1e3),
    st.builds(lambda n, scale: n / scale, st.floats(-2, 2), st.sampled_from([1, 2, 100, 10**6, 10**9])),
    st.sampled_from([0.0, -0.0, 5e-324, 1.2e-7, 4.9e-7, 2 / 300, 0.0066, 0.0067, 5.0, 596.0, 1e308, 2**42 / 100]),
)
_TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", " ", "web", "Web", "shop", "5000", "5000.5", "true", "nan", "null", "a\x00b", "a\nb", "ä", "x" * 201]
    ),
    st.text("\x00\x1f\x7f\x85\xa0 a", max_size=3),
)
_OTHERS = st.sampled_from([None, True, False, [], [1], {}, {"a": 1}])


@st.composite
def times(draw: st.DrawFn) -> str:
    """The text of a time, in most cases a valid one."""
    moment = draw(st.datetimes(datetime(1969, 12, 30), datetime(2200, 1, 2)))
    day = (
        f"{moment:%Y-%m-%d}" if not draw(_SELDOM) else draw(st.sampled_from(["2018-02-30", "0000-01-01", "2018-7-25"]))
    )
    clocks = [f"{moment:%H:%M}", f"{moment:%H:%M:%S}", f"{moment:%H:%M:%S}."]
    clock = draw(st.sampled_from(["24:00:00", "23:59:60"] if draw(_SELDOM) else clocks))
    digits = draw(st.text("0123456789", min_size=1, max_size=10)) if clock.endswith(".") else ""
    odd = ["+24:00", "+0160", "", " ", "CET", "+5", "Zz", "  Z"]
    zones = ["Z", "z", "UTC", "GMT", "+00", "-0130", "+05:45", "+23:59", " Z", " UTC", " +0000", " -07:00"]
    zone = draw(st.sampled_from(odd if draw(_SELDOM) else zones))
    text = f"{day}{draw(st.sampled_from('Tt '))}{clock}{digits}{zone}"
    return text.replace(".", ",") if draw(_SELDOM) else text


_NO_TIMES = st.sampled_from(
    ["20240101", "45292.5", "1522663200", "-1", "+1e9", ".5", "4_5", "2018-07-25", "soon", "", "Jan 5 2018", "10:00"]
)


def values(kind: Kind) -> st.SearchStrategy[Any]:
    """JSON values for a field of this kind, half of them of the right type."""
    own = {
        "id": _TEXTS,
        "time": st.one_of(times(), times(), _NO_TIMES),
        "int": _NUMBERS,
        "number": _NUMBERS,
        "bool": st.booleans(),
        "text": _TEXTS,
    }[kind.of]
    return st.one_of(own, own, own, _NUMBERS, _TEXTS, _OTHERS)


GOOD: dict[str, Any] = {
    "id": "e-1",
    "time": "2018-07-25T10:00:00Z",
    "count": 7,
    "age": 33,
    "amount": 57.16,
    "ratio": -0.25,
    "tiny": 3e-9,
    "level": 1.5,
    "paid": True,
    "name": "Ada",
    "channel": "web",
    "visits": None,
    "price": 9.99,
    "member": False,
    "note": "abc",
    "size": 4,
}


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """An event as JSON has it: a good one, of which a few fields are others, missing or unknown."""
    body = dict(GOOD)
    for name in draw(st.lists(st.sampled_from(list(KINDS)), max_size=4)):
        body[name] = draw(values(KINDS[name]))
    for name in draw(st.lists(st.sampled_from(list(KINDS)), max_size=2)) if draw(st.booleans()) else ():
        body.pop(name, None)
    if draw(_SELDOM):
        body[draw(st.sampled_from(["amuont", "Id", "x", "", "corrects"]))] = draw(_OTHERS)
    names = draw(st.permutations(list(body))) if draw(st.booleans()) else list(body)
    return {name: body[name] for name in names}


# Tiles of typed columns: what Parquet and data frames hold, and the JSON value that each plainly says

REFUSED = object()  # a cell that says nothing for its field: it is refused, whatever the reason


def said_by_cell(kind: Kind, cell: Any) -> Any:
    """The JSON value that a cell says for a field of this kind; the cell itself where it says none, which JSON then refuses."""
    if cell is None or (isinstance(cell, float | Decimal | datetime) and cell != cell):
        return None
    if isinstance(cell, UUID):
        return str(cell)
    if isinstance(cell, bytes):
        try:
            return said_by_cell(kind, cell.decode())
        except UnicodeDecodeError:
            return REFUSED
    if isinstance(cell, datetime) and kind.of == "time":
        return cell.isoformat()
    if isinstance(cell, date | time | timedelta):
        return REFUSED
    whole = (
        isinstance(cell, int | float | Decimal)
        and type(cell) is not bool
        and (type(cell) is int or math.isfinite(cell))
        and cell == int(cell)
    )
    if kind.of in ("id", "text"):
        return str(int(cell)) if whole else cell
    if kind.of == "int":
        return int(cell) if whole else cell
    if kind.of == "number":
        return (
            float(cell) if isinstance(cell, Decimal) and not whole else int(cell) if isinstance(cell, Decimal) else cell
        )
    if kind.of == "bool":
        return bool(cell) if whole and cell in (0, 1) else cell
    return cell


CELLS: dict[str, st.SearchStrategy[Any]] = {
    "int8": st.integers(-128, 127),
    "int64": st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-3, 160), st.sampled_from([2**53, 2**53 + 1])),
    "uint64": st.integers(0, 2**64 - 1),
    "float32": st.one_of(st.floats(width=32), st.integers(-3, 160).map(float)),
    "float64": st.one_of(_NUMBERS.filter(lambda x: type(x) is float), st.integers(-3, 160).map(float)),
    "decimal128(38, 0)": st.one_of(st.integers(-(10**38) + 1, 10**38 - 1), st.integers(-3, 160)).map(Decimal),
    "decimal128(12, 3)": st.decimals(-(10**8), 10**8, places=3, allow_nan=False),
    "bool": st.booleans(),
    "string": st.one_of(_TEXTS, times(), _NO_TIMES),
    "large_string": st.one_of(_TEXTS, times()),
    "dictionary": _TEXTS,
    "binary": st.one_of(_TEXTS.map(str.encode), st.binary(max_size=4)),
    "timestamp[us, UTC]": st.datetimes(datetime(1960, 1, 1), datetime(2210, 1, 1), timezones=st.just(UTC)),
    "timestamp[us, +02:00]": st.datetimes(
        datetime(1969, 12, 30), datetime(2200, 1, 2), timezones=st.just(timezone(timedelta(hours=2)))
    ),
}
"""By the name of the Arrow type of a column, the values that its cells may hold; each cell may be null besides."""


def cells(kind: Kind) -> st.SearchStrategy[tuple[str, list[Any]]]:
    """The type of a column for a field of this kind, and some cells of it."""
    own = {
        "id": ["string", "int64", "uint64", "float64", "decimal128(38, 0)", "binary", "dictionary", "large_string"],
        "time": ["timestamp[us, UTC]", "timestamp[us, +02:00]", "string", "int64", "float64"],
        "int": ["int64", "int8", "uint64", "float64", "decimal128(38, 0)", "decimal128(12, 3)", "string", "bool"],
        "number": ["float64", "float32", "int64", "decimal128(38, 0)", "decimal128(12, 3)", "string", "bool"],
        "bool": ["bool", "int8", "float64", "string"],
        "text": ["string", "dictionary", "large_string", "int64", "float64", "binary", "bool"],
    }[kind.of]
    return st.sampled_from(own).flatmap(
        lambda t: st.tuples(st.just(t), st.lists(st.none() | CELLS[t], min_size=1, max_size=8))
    )


# Tiles of CSV files, where all is text


def said_by_text(kind: Kind, cell: str) -> Any:
    """The JSON value that a cell of a CSV file says for a field of this kind; the text itself where it says none."""
    if cell == "":
        return None
    bare = cell.strip(" ")
    if kind.of == "time":
        return bare
    if kind.of == "bool":
        return {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}.get(bare.lower(), cell)
    if kind.of in ("int", "number") and _is_plain_number(bare):
        exact = Decimal(bare)
        if kind.of == "int":
            return int(exact) if exact.adjusted() < 400 and exact == int(exact) else float(bare)
        return float(bare)
    return cell


def _is_plain_number(text: str) -> bool:
    number = text.isascii() and any(c.isdigit() for c in text) and "_" not in text and text == text.strip()
    try:
        return number and Decimal(text).is_finite()
    except ArithmeticError:
        return False


def csv_cells(kind: Kind) -> st.SearchStrategy[str]:
    """Tiles of a CSV file for a field of this kind, as programs and people write them."""
    number = _NUMBERS.filter(lambda x: math.isfinite(_float(x))).map(repr)
    precise = st.decimals(-1000, 1000, places=25).map(lambda d: f"{d:f}")
    spaced = st.sampled_from(
        ["5 ", " 5", " 5.50 ", " true ", "TRUE", "False", "1", "0.0", "1e3", "+5", "5.", ".5", "1,5", "1 000", "0x10"]
    )
    texts = _TEXTS.filter(lambda t: "\x00" not in t)
    return st.one_of(number, precise, spaced, texts, times() if kind.of == "time" else st.booleans().map(str))
