"""What holds for every aggregate, checked over the registry.

Whoever registers an aggregate adds its examples to `aggregate_cases` and its oracle to `oracle`; then the suite compares
both paths with the oracle, on streams that are hard and on random ones.
"""

import json
import pickle
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from functools import cache
from inspect import signature
from types import FunctionType
from typing import Any

import numpy as np
import oracle
import pandas as pd
import pytest
from aggregate_cases import (
    DAY,
    ELSEWHERE,
    EXAMPLES,
    HOUR,
    LONG,
    MOST,
    NOON,
    asked,
    features_of,
    history_of,
    many,
    one,
    streams,
    world_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import UNITS, VERBS, Ask, Moment, World, agrees, bits

from mlpkg.aggregates import REGISTRY, from_spec
from mlpkg.engine import history, timeline, windows
from mlpkg.engine import order_statistics as order
from mlpkg.features import FeatureSet
from mlpkg.features import plan as reduction

# -- the kernel in small pieces ---------------------------------------------------------------------------------------


@cache
def sized_functions() -> dict[FunctionType, tuple[Any, tuple[Any, ...]]]:
    """The kernel's functions that take the size of a piece as `most`: their defaults, and those with very small pieces."""
    namespaces = [vars(m) for m in (history, order, reduction, timeline, windows)]
    namespaces += [vars(c) for space in namespaces for c in space.values() if isinstance(c, type)]
    sized = {}
    for function in {f for space in namespaces for f in space.values() if isinstance(f, FunctionType)}:
        parameters = signature(function).parameters
        if "most" in parameters:
            with_default = [p for p in parameters.values() if p.default is not p.empty]
            small = tuple(5 if p.name == "most" else p.default for p in with_default)
            sized[function] = (function.__defaults__, small)
    assert sized
    return sized


@contextmanager
def small_blocks() -> Iterator[None]:
    """The kernel works in pieces of bounded size; inside this block the pieces have at most five rows."""
    for function, (_, small) in sized_functions().items():
        function.__defaults__ = small
    try:
        yield
    finally:
        for function, (before, _) in sized_functions().items():
            function.__defaults__ = before


# -- the suite ------------------------------------------------------------------------------------------------------


def not_a_value(verb: str) -> Iterator[str]:
    """What keeps an aggregate from being a value: frozen, and the same after a pickle and after its JSON."""
    cls = REGISTRY[verb]
    if not is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        yield f"{verb} is no frozen dataclass"
    if not cls.__doc__ or not (cls.__doc__.strip()):
        yield f"{verb} has no docstring"
    if cls.verb() != verb:
        yield f"{verb} calls itself {cls.verb()}"
    for ask in asked(verb):
        made = ask.build(REGISTRY)
        if pickle.loads(pickle.dumps(made)) != made:
            yield f"{verb} is another after a pickle: {made}"
        again = from_spec(json.loads(json.dumps(made.spec())))
        if again.spec() != made.spec() or type(again) is not type(made):
            yield f"{verb} is another after its JSON: {made.spec()}, then {again.spec()}"


def differences(verb: str, world: World, rng: random.Random) -> Iterator[str]:
    """Where an aggregate is wrong on a stream: computed at its own events, and at those of another source."""
    has_events = any(stream.events for stream in world.streams.values())
    for on in ("payments", "looks"):
        if LONG or world.streams[on].events or not has_events:  # no rows at all are one stream of the hard ones
            yield from differences_on(on, verb, world, rng)


def differences_on(on: str, verb: str, world: World, rng: random.Random) -> Iterator[str]:
    """The short form compares every value with the oracle, and draws which of the other comparisons it makes."""
    asks, events = asked(verb), world.streams[on].events
    features, restored = features_of(verb, REGISTRY[verb], on)
    last = max((e.position for s in world.streams.values() for e in s.events), default=0)
    later = [e.position if rng.random() < 0.7 else rng.randint(e.position, last) for e in events]
    moments = [Moment(e.time, p, e.position, e.values) for e, p in zip(events, later)]
    seen, every = np.array(later, np.int64), range(len(events))

    def past(world: World, as_of_rows: Sequence[int], rows: Sequence[int], of: FeatureSet = features) -> Any:
        return many(of, history_of(world), np.array(rows, np.int64), seen[np.array(as_of_rows, np.int64)])

    whole = past(world, every, every)

    def drawn() -> bool:
        return LONG or rng.random() < 0.25

    def compare(what: str, columns: dict[str, list[Any]], places: Sequence[int]) -> Iterator[str]:
        for name, column in columns.items():
            for i, value in zip(places, column, strict=True):
                if bits(value) != bits(whole[name][i]):
                    yield f"{what}: {name} of {moments[i]} is {value!r}, was {whole[name][i]!r}"

    for i, moment in enumerate(moments):
        answers = [(k, *pair) for k, ask in enumerate(asks) for pair in world.answer(ask, moment).items()]
        if (names := [f"m{k}_x_{end}" for k, end, _ in answers]) != features.names:
            yield f"names: {features.names}, expected {names}"
            return
        for name, (k, _, value) in zip(names, answers, strict=True):
            if not agrees(whole[name][i], value):
                yield f"oracle: {name} of {moment} is {whole[name][i]!r}, not {value!r}: {asks[k]}"
        forms = [("alone", None), ("alone, summed up", rng)]
        for what, summed_up in forms if LONG else [rng.choice(forms)]:
            yield from compare(what, {n: [v] for n, v in one(features, world, moment, summed_up).items()}, [i])

    if drawn():
        yield from compare("after its JSON", past(world, every, every, of=restored), every)
    if drawn():
        with small_blocks():
            yield from compare("in pieces", past(world, every, every), every)
    if not events:
        return
    if drawn():
        half = sorted(rng.sample(every, (len(events) + 1) // 2))
        yield from compare("for some rows", past(world, half, half), half)
    cards = sorted({e.values["card"] for e in events})
    if drawn():
        names = dict(zip(cards, rng.sample(range(-5, 5), len(cards)), strict=True))
        yield from compare("under other keys", past(renamed(world, names), every, every), every)
    for card in cards:
        if drawn():
            of_card = [i for i, e in enumerate(events) if e.values["card"] == card]
            yield from compare(
                f"card {card} only", past(only(world, card, last), of_card, range(len(of_card))), of_card
            )
    if drawn():
        until = rng.choice(later)
        early = [i for i, p in enumerate(later) if p <= until]
        yield from compare("before later events came", past(only(world, None, until), early, early), early)


def renamed(world: World, cards: dict[int, int]) -> World:
    """The same with other keys."""
    return World(
        {
            name: replace(
                s, events=[replace(e, values={**e.values, "card": cards.get(e.values["card"], 99)}) for e in s.events]
            )
            for name, s in world.streams.items()
        }
    )


def only(world: World, card: int | None, until: int) -> World:
    """The events of one card, or of all, up to a position."""
    return World(
        {
            name: replace(s, events=[e for e in s.events if e.position <= until and card in (None, e.values["card"])])
            for name, s in world.streams.items()
        }
    )


# -- streams that are hard ------------------------------------------------------------------------------------------

FAR_TIMES = {"1970": 0, "2199": 84_005 * DAY}


def _rows(*times: int, **columns: Any) -> list[dict[str, Any]]:
    """Rows in the order of arrival, with columns of as many values, or of fewer that are repeated."""
    return [{"time": t, **{c: v[k % len(v)] for c, v in columns.items()}} for k, t in enumerate(times)]


def _edges(width: int) -> list[int]:
    return [NOON - width - 1, NOON - width, NOON - width + 1, NOON - 1, NOON, NOON + 1]


HARD: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "a look at nothing": _rows(NOON, look=[True]),
    "one event": _rows(NOON, shop="a", tip=[3], level=[2]),
    "one event and a look": _rows(NOON, NOON, look=[False, True], shop="a", tip=[3], level=[2]),
    "nothing but nulls": _rows(*range(NOON, NOON + 5 * HOUR, HOUR), look=[False, False, False, True, False]),
    "all equal": _rows(*range(NOON, NOON + 9 * HOUR, HOUR), shop="a", tip=[7], level=[-1], night=[True]),
    "all at once": _rows(*[NOON] * 7, shop="abcab", tip=[5, -5, None], level=[1, 2, None, 2], look=[False] * 4 + [True]),
    "later positions at the same time": _rows(NOON - 1, NOON, NOON, NOON + 1, NOON, shop="ab", level=[1, 2, 3], tip=[1, 2]),
    "both edges of 90 seconds": _rows(*_edges(90 * UNITS["s"]), shop="abc", tip=[1, 2, 4, 8], level=[1, -2, 4]),
    "both edges of 6 hours, doubled": _rows(
        *sorted(_edges(6 * HOUR) * 2), shop="aab", tip=[1, 2, 4, 8], level=[1, -2, 4, None, 3]
    ),
    "both edges of 3 days, the latest first": _rows(*_edges(3 * DAY)[::-1], shop="ab", tip=[1, 2, 4], level=[None, 5, 5]),
    "the edge of keep": _rows(*_edges(8 * DAY), shop="abc", tip=[1, 2, 4, 8], level=[1, -2, 4]),
    "bounds of the columns": _rows(
        *range(NOON, NOON + 8 * HOUR, HOUR), tip=[MOST, -MOST, MOST, 0], amount=[10_000_000, 0], level=[1000, -1000, 1000]
    ),
    "all at the upper bound": _rows(*range(NOON, NOON + 8 * HOUR, HOUR), tip=[MOST], amount=[10_000_000], level=[1000]),
    "zeros": _rows(*range(NOON, NOON + 5 * HOUR, HOUR), shop="aab", tip=[0], amount=[0], level=[0]),
    "a zero among negatives": _rows(*range(NOON, NOON + 6 * HOUR, HOUR), tip=[-3, 0, -3], amount=[0, 1], level=[-2, 0]),
    "the first hours of 1970": _rows(0, 1, HOUR, HOUR, 7 * HOUR, shop="ab", tip=[4, 1], level=[3, None, 1]),
    "from 1970 to 2199": _rows(
        0, FAR_TIMES["2199"], HOUR, FAR_TIMES["2199"] - HOUR, NOON, FAR_TIMES["2199"], shop="abc", tip=[9, 1, 4], level=[1, 2]
    ),
    "each later than the one before it": _rows(
        *range(NOON + 12 * HOUR, NOON, -HOUR), shop="abca", tip=[1, 5, 2, None], level=[3, 1, 2], night=[True, False]
    ),
    "entities that take turns": _rows(
        *range(NOON, NOON + 15 * HOUR, HOUR), card=[1, 2, -(2**40), 2**50], shop="abc", tip=[1, 5, 2], level=[3, 1]
    ),
}  # fmt: skip


def problems(verb: str, rows: Sequence[dict[str, Any]], seed: int = 0) -> list[str]:
    """What is wrong with a registered aggregate on a stream, in words; an empty list if nothing is."""
    if verb not in EXAMPLES or verb not in VERBS:
        return [f"{verb} is registered, but has no example or no oracle here"]
    return list(differences(verb, world_of(rows), random.Random(f"{verb} {len(rows)} {seed}")))


ALL = pytest.mark.parametrize("verb", sorted({*REGISTRY} - ELSEWHERE))


@ALL
def test_it_is_a_value(verb: str):
    assert list(not_a_value(verb)) == []


@ALL
def test_it_is_right_where_it_is_hard(verb: str):
    for name, rows in HARD.items():
        for seed in range(5 if LONG else 1):
            assert problems(verb, rows, seed) == [], name


@ALL
def test_it_is_right_on_random_streams(verb: str):
    @settings(
        max_examples=100 if LONG else 3, deadline=None, derandomize=not LONG, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(streams(), st.integers(0, 2**32))
    def right(rows: list[dict[str, Any]], seed: int) -> None:
        assert list(differences(verb, world_of(rows), random.Random(seed))) == []

    assert verb in EXAMPLES, f"{verb} is registered, but has no example here"
    right()


def test_every_registered_aggregate_is_under_test():
    """The examples and oracles are those of the registry, no more and no fewer."""
    assert set(REGISTRY) == {*EXAMPLES} | ELSEWHERE
    assert set(REGISTRY) == {*VERBS}


# -- the suite finds what is wrong ----------------------------------------------------------------------------------


class Count(REGISTRY["count"]):
    """Counts one too many wherever it is asked for more than eight moments at once."""

    def compute(self, *args: Any) -> Any:
        values = super().compute(*args)
        return values + (values.shape[-1] > 8)


class Mean(REGISTRY["mean"]):
    """Is right to fifteen digits."""

    def compute(self, *args: Any) -> Any:
        values = super().compute(*args)
        return np.where(np.isnan(values), values, values * (1 + 2**-52))


class Median(REGISTRY["median"]):
    """Writes into its input."""

    def compute(self, windows: Any, *args: Any) -> Any:
        values = super().compute(windows, *args)
        windows.timeline.time[:0] = 0
        return values


class Nunique(REGISTRY["nunique"]):
    """Counts a row that arrives later."""

    def compute(self, *args: Any) -> Any:
        values = super().compute(*args)
        return values + (args[0].as_of.log_position < args[0].timeline.position.max(initial=0))


class Unheard(REGISTRY["count"]):
    """A new aggregate without an example and without an oracle."""


WRONG = [(Count, "alone:"), (Mean, "oracle:"), (Median, "read-only"), (Nunique, "oracle:"), (Unheard, "has no example")]


@pytest.mark.parametrize("wrong, message", WRONG, ids=lambda p: getattr(p, "__name__", ""))
def test_a_wrong_aggregate_fails_the_suite(wrong: type, message: str, monkeypatch: pytest.MonkeyPatch):
    """Each is wrong in a way of its own, and the suite names that way."""
    monkeypatch.setitem(REGISTRY, wrong.verb(), wrong)
    messages = []
    for rows in HARD.values():
        try:
            messages += problems(wrong.verb(), rows)
        except ValueError as error:
            messages.append(str(error))
        if any(message in text for text in messages):
            return
    pytest.fail(f"no {message!r} in {messages[:3]}")


# -- the oracle against another -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_oracle_says_what_pandas_says(seed: int):
    """Where pandas has the word; to the digits that floats leave it."""
    rng = random.Random(seed)
    tips = [None if rng.random() < 0.2 else rng.randrange(-5_000_000, 5_000_000) for _ in range(rng.randrange(1, 30))]
    times = sorted(NOON - rng.randrange(DAY) for _ in tips)
    world = world_of([{"time": t, "tip": x, "level": k} for k, (t, x) in enumerate(zip(times, tips))])
    moment = Moment(NOON, 10**6, 0, {"card": 1, "tip": 123})
    series = pd.Series([None if x is None else x / 1e6 for x in tips], dtype="float64")
    known = series.dropna()
    half = pd.Timedelta(hours=2)
    ages = (NOON - pd.Series(times)[known.index]) / half.total_seconds() / 1e6
    expected = {
        "count": series.count(), "nunique": series.nunique(), "sum": series.sum(min_count=1), "mean": series.mean(),
        "min": series.min(), "max": series.max(), "var": series.var(), "std": series.std(), "skew": series.skew(),
        "kurt": series.kurt(), "median": series.median(), "first": known.iloc[0] if len(known) else None,
        "last": known.iloc[-1] if len(known) else None,
        "rank": ((known < 123e-6).mean() + (known <= 123e-6).mean()) / 2 if len(known) else None,
        "trend": np.polyfit(np.array(times)[known.index] / 1e6 - NOON / 1e6, known, 1)[0] if len(known) > 1 else None,
    }  # fmt: skip
    for verb, value in expected.items():
        answer = world.answer(Ask(verb, ("tip",), over=("2d",)), moment)["2d"]
        assert near(answer, value), (verb, answer, value)
    for q in (0.1, 0.25, 0.9):
        answer = world.answer(Ask("quantile", ("tip",), {"q": q}, over=("2d",)), moment)["2d"]
        assert near(answer, series.quantile(q)), (q, answer)
    decayed = {"decayed_sum": (known * 2**-ages).sum(), "decayed_mean": (known * 2**-ages).sum() / (2**-ages).sum()}
    for verb, value in decayed.items():
        answer = world.answer(Ask(verb, ("tip",), {"half_life": "2h"}, over=("2d",)), moment)["2d"]
        assert not len(known) or near(answer, value, 0.05 * known.abs().max()), (verb, answer, value)


def near(answer: Any, value: Any, within: float = 1e-6) -> bool:
    if answer is None or pd.isna(value):
        return answer is None and pd.isna(value)
    plain = float(answer.value) if isinstance(answer, oracle.Near) else answer
    return abs(plain - value) <= max(within, 1e-6 * abs(value))
