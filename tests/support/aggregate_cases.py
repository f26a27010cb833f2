"""Payments, worlds and cases of every aggregate, shared by the tests that hold the two paths together."""

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Annotated, Any

import numpy as np
import oracle
from hypothesis import strategies as st
from oracle import NULL, UNITS, Ask, Condition, Event, Moment, Stream, Twice, World
from pydantic import Field
from user_functions import apart, drawdown, plain_apart, plain_drawdown

import mlpkg as ml
from mlpkg.aggregates import REGISTRY
from mlpkg.engine.history import Events, History
from mlpkg.engine.tiles import Tiles, summarise
from mlpkg.engine.timeline import Packed, Timeline
from mlpkg.features import FeatureSet, compute, evaluate, from_json, to_json

LONG = bool(os.environ.get("MLPKG_LONG"))


HOUR, DAY = UNITS["h"], UNITS["d"]


MOST = 2**42  # steps: the door lets no more through


class Payment(ml.Event):
    card: int
    shop: str | None = None
    amount: Annotated[float, Field(ge=0, le=100_000), ml.Resolution(0.01)]
    tip: float | None = None
    level: Annotated[int | None, Field(ge=-1000, le=1000)] = None
    night: bool = False


payments = ml.Source("payments", Payment, retention="8d", allowed_lateness="8d")


looks = ml.Source(
    "looks", Payment, retention="8d", allowed_lateness="8d"
)  # the same fields, asked without being among the rows


FIELDS = {
    "card": oracle.Field("int"),
    "shop": oracle.Field("text"),
    "amount": oracle.Field("number", 100),
    "tip": oracle.Field("number", 1_000_000),
    "level": oracle.Field("int"),
    "night": oracle.Field("bool"),
}


NIGHT = Condition("night", lambda r: r["night"])


BIG = Condition("amount > 20.5", lambda r: r["amount"] > 2050)


MIXED = Condition("shop != 'a' and level <= 2 or night", lambda r: r["night"] or _other(r))


UNSURE = Condition("not (shop == 'a' or level > 2)", lambda r: _other(r))


GIVEN = Condition("tip is not None and not shop in ('a', 'b')", lambda r: r["tip"] is not None and _neither(r))


def _other(r: Any) -> bool | None:
    """``shop != 'a' and level <= 2``: false where one is, else unknown where one is."""
    parts = [None if r["shop"] is None else r["shop"] != "a", None if r["level"] is None else r["level"] <= 2]
    return False if False in parts else None if None in parts else True


def _neither(r: Any) -> bool | None:
    return None if r["shop"] is None else r["shop"] not in ("a", "b")


def _of(*columns: str, **options: Any) -> list[Ask]:
    return [Ask("", (c,), options) for c in columns]


NUMBERS = ("amount", "tip", "level", "night")


EXAMPLES: dict[str, list[Ask]] = {
    "count": [Ask(""), *_of("tip", "shop")],
    "nunique": _of("tip", "shop", "level"),
    "share": [Ask("", a) for a in [("shop", "a"), ("amount", 20.5), ("level", 2), ("night", True), ("tip", 0.000_3)]],
    "mode": _of("shop", "level", "tip", "night"),
    "top_k": [*_of("shop", k=3), *_of("level", k=2), *_of("amount", k=1)],
    "histogram": [*_of("amount", edges=(5, 20.5, 30)), *_of("level", edges=(0,)), *_of("tip", edges=(-1, 0, 2))],
    "seen": _of("shop", "amount", "level"),
    "sum": _of(*NUMBERS),
    "mean": _of(*NUMBERS),
    "min": _of(*NUMBERS),
    "max": _of(*NUMBERS),
    "var": [*_of("amount", "tip", "level", "night"), *_of("level", ddof=0), *_of("amount", ddof=2)],
    "std": [*_of("amount", "tip", "level", "night"), *_of("tip", ddof=0)],
    "skew": _of("amount", "level", "night"),
    "kurt": _of("amount", "level", "night"),
    "ratio": [
        Ask("", (Ask("count", where=NIGHT), Ask("count"))),
        Ask("", (Ask("sum", ("tip",)), Ask("mean", ("level",)))),
        Ask("", (Ask("max", ("level",)), Ask("min", ("level",), where=BIG))),
    ],
    "first": _of("shop", *NUMBERS),
    "last": _of("shop", *NUMBERS),
    "first_k": [*_of("shop", k=2), *_of("tip", k=3)],
    "last_k": [*_of("shop", k=3), *_of("level", k=2)],
    "min_by": [Ask("", ("shop",), {"by": "amount"}), Ask("", ("tip",), {"by": "level"})],
    "max_by": [Ask("", ("shop",), {"by": "level"}), Ask("", ("amount",), {"by": "tip"})],
    "quantile": [*_of("amount"), *_of("level", "tip", q=0.9), *_of("tip", q=0.0), *_of("amount", q=1.0), *_of("tip", q=0.35)],
    "median": _of(*NUMBERS),
    "rank": _of(*NUMBERS),
    "time_since_last": [Ask("")],
    "time_since_first": [Ask("")],
    "mean_gap": [Ask("")],
    "max_gap": [Ask("")],
    "rate": [Ask(""), Ask("", options={"per": "7m"}), Ask("", options={"per": "30d"})],
    "streak": [Ask("", (condition,)) for condition in (NIGHT, BIG, MIXED, UNSURE, GIVEN)],
    "decayed_sum": [*_of("amount", "tip", half_life="90s"), *_of("level", half_life="1d"), *_of("tip", half_life="7h")],
    "decayed_mean": [*_of("amount", "tip", half_life="90s"), *_of("level", half_life="1d"), *_of("tip", half_life="7h")],
    "trend": _of(*NUMBERS),
    "change": [
        Ask("", (Ask("mean", ("amount",)),), {"against": "6d"}),
        Ask("", (Ask("count", where=BIG),), {"against": "90s"}),
        Ask("", (Ask("sum", ("level",)),), {"against": "1d"}),
    ],
    "fold": [Ask("", (Twice(drawdown, plain_drawdown), "tip")), Ask("", (Twice(apart, plain_apart), "amount", "shop"))],
}  # fmt: skip


ELSEWHERE = {"latest"}  # of tables, in test_streams


WINDOWS = ("90s", "6h", "3d", "last 1", "last 4", "all")


def gives_text(ask: Ask) -> bool:
    """Whether its result is the code of a text, which no number can stand in for."""
    verbs = {"mode", "top_k", "first", "last", "first_k", "last_k", "min_by", "max_by", "latest"}
    return ask.verb in verbs and ask.args[0] == "shop"


def asked(verb: str) -> list[Ask]:
    """Each example of an aggregate in several forms: plain, with a condition, delayed, with a value for nothing.

    In the short form all but the plain one have every other window only.
    """
    asks = []
    for n, example in enumerate(EXAMPLES[verb]):
        plain = replace(example, verb=verb, over=WINDOWS)
        some, others = (WINDOWS, WINDOWS) if LONG else (WINDOWS[n % 2 :: 2], WINDOWS[1 - n % 2 :: 2])
        asks += [
            plain,
            replace(plain, where=(UNSURE, BIG, MIXED, GIVEN, NIGHT)[n % 5], over=some),
            replace(plain, delay="6h", over=tuple(window for window in others if window != "90s")),
        ]
        if not gives_text(plain):
            choices: dict[str, Any] = {"where": (BIG, NIGHT)[n % 2], "empty": (-1.5, 0.0)[n % 2]}
            asks.append(replace(plain, late="45m", delay="90s", over=others, **choices))
    return asks


def many(features: FeatureSet, history: History, rows: np.ndarray, seen: np.ndarray) -> dict[str, list[Any]]:
    """Many moments of the past at once."""
    out = compute(features, history, rows, seen)
    for feature in features.features:
        assert out[feature.name].dtype == (np.int64 if feature.integer else np.float64), feature.name
    return {name: column.tolist() for name, column in out.items()}


def one(features: FeatureSet, world: World, moment: Moment, summed_up: random.Random | None = None) -> dict[str, Any]:
    """One moment, on timelines that hold what a store would hold: rows or, where they may be, rows that were `summed_up`."""
    needed = {(s.stream, s.key): s.columns for s in features.streams}

    def read(stream: str, key: str, value: int, since: int, edges: Any) -> Packed | Timeline | Tiles:
        rows = [e for e in world.streams[stream].events if e.position <= moment.position and e.values[key] == value]
        rows = sorted((e for e in rows if e.time > since), key=lambda e: (e.time, e.position))
        time, position = sealed([e.time for e in rows]), sealed([e.position for e in rows])
        columns = {c: sealed([code(e.values[c]) for e in rows]) for c in needed[stream, key]}
        if moment.position % 3 == 1:
            table = np.stack([time, position, *columns.values()], axis=1)
            return Packed(table.tobytes(), tuple(columns))
        if edges is None or summed_up is None or not rows:
            return Timeline(time, position, columns, sealed([0, len(rows)]))
        parted = np.diff(np.searchsorted(since + edges, time)) > 0
        starts = np.flatnonzero([True, *(parted | np.array([summed_up.random() < 0.3 for _ in parted], bool))])
        ends = np.array([*starts[1:], len(rows)])
        cells = summarise(np.stack([*columns.values(), position], axis=1), starts)
        for array in (cells, ends):
            array.flags.writeable = False
        return Tiles(time[ends - 1], ends - starts, {c: cells[:, i] for i, c in enumerate(columns)})

    codes = tuple(code(moment.present[name]) for name in FIELDS)
    values = evaluate(features, codes, moment.time, moment.position, moment.own, read)
    return dict(zip(features.names, values, strict=True))


def code(value: Any) -> int:
    return NULL if value is None else oracle.text_code(value) if isinstance(value, str) else int(value)


def sealed(values: Sequence[int]) -> np.ndarray:
    """A read-only array: an aggregate that writes into its input fails."""
    array = np.array(values, np.int64)
    array.flags.writeable = False
    return array


def history_of(world: World) -> History:
    sources = {}
    for name, stream in world.streams.items():
        events = stream.events
        columns = {c: sealed([code(e.values[c]) for e in events]) for c in FIELDS}
        position, time = (sealed([getattr(e, a) for e in events]) for a in ("position", "time"))
        sources[name] = Events(position, time, time, columns, [f"e{e.position}" for e in events])
    return History(sources, {})


@cache
def features_of(verb: str, cls: type, on: str) -> tuple[FeatureSet, FeatureSet]:
    """The examples of an aggregate as one feature set, and what becomes of it by way of its JSON."""
    members = {}
    for k, ask in enumerate(asked(verb)):
        members[f"m{k}"] = payments.by(*[str(p) for p in ask.by], delay=ask.late).agg(
            x=ask.build({**REGISTRY, verb: cls})
        )
    made = FeatureSet("suite", on=payments if on == "payments" else looks, **members)
    return made, from_json(to_json(made))


def world_of(rows: Sequence[dict[str, Any]]) -> World:
    """Make a world of rows in the order of arrival; rows with ``"look": True`` are events of the source `looks`."""
    streams = {name: Stream(FIELDS, 8 * DAY) for name in ("payments", "looks")}
    for k, row in enumerate(rows):
        values = {c: row.get(c) for c in FIELDS} | {"card": row.get("card", 1), "night": bool(row.get("night"))}
        values["amount"] = row.get("amount", 1000)
        streams["looks" if row.get("look") else "payments"].events.append(Event(3 * k + 2, row["time"], values))
    return World(streams)


NOON = 17_622 * DAY + 12 * HOUR  # in April 2018


@st.composite
def streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Few cards, few values, times on a grid of which the windows are multiples, arrival out of order."""
    grid = draw(st.sampled_from([1, 90 * UNITS["s"], 45 * UNITS["m"], 6 * HOUR, DAY]))
    spread = draw(st.sampled_from([3, 12, 40]))
    late = draw(st.sampled_from([0, 0, 5, 40]))
    small = st.one_of(st.none(), st.integers(-3, 3))
    wide = st.one_of(small, st.integers(-MOST, MOST), st.sampled_from([MOST, -MOST, 2_000_000, 300]))
    row = st.fixed_dictionaries(
        {
            "card": st.integers(1, 2),
            "time": st.integers(0, spread).map(lambda k: NOON + k * grid),
            "shop": st.sampled_from(["a", "b", "é", None]),
            "amount": st.one_of(st.integers(2048, 2053), st.integers(0, 5000)),
            "tip": wide,
            "level": st.one_of(small, st.integers(-1000, 1000)),
            "night": st.booleans(),
            "look": st.sampled_from([False, False, False, True]),
        }
    )
    drawn = draw(st.lists(st.tuples(row, st.integers(0, late)), max_size=12))
    arrived: Any = lambda pair: pair[0]["time"] + pair[1] * grid  # noqa: E731
    return [r for r, lag in sorted(drawn, key=arrived)]
