"""A third opinion on every feature: plain Python over lists of rows, whole numbers, one moment at a time.

It shares no function with the kernel and imports nothing of mlpkg. A test writes down what it asks as `Ask`s, from which both
sides are made: the definitions (`Ask.build`) and the answers (`World.answer`). Amounts are whole steps of their column, as the
timelines hold them; a text is its text, a missing value None.
"""

import hashlib
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from math import isqrt
from typing import Any

SECOND = 1_000_000
UNITS = {"us": 1, "ms": 1_000, "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND, "d": 86_400 * SECOND}
NULL = -(2**63)


def micros(text: str) -> int:
    """Microseconds of a duration."""
    digits = "".join(c for c in text if c.isdigit())
    return int(digits) * UNITS[text[len(digits) :]]


# -- what is asked -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """A condition: as a definition has it, and in Python, where None is unknown."""

    text: str
    holds: Callable[[Mapping[str, Any]], bool | None]


@dataclass(frozen=True)
class Twice:
    """A user's function: over arrays, as a definition has it, and over plain numbers."""

    many: Callable[..., Any]
    plain: Callable[..., Any]


@dataclass(frozen=True)
class Ask:
    """One aggregate over one stream by one key."""

    verb: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    over: tuple[str, ...] = ()
    delay: str | None = None
    where: Condition | None = None
    empty: float | None = None
    stream: str = "payments"
    by: tuple[str | Twice, ...] = ("card",)
    late: str = "0s"  # the delay of by()

    def build(self, registry: Mapping[str, Callable[..., Any]]) -> Any:
        """The aggregate as a definition has it."""

        def plainly(x: Any) -> Any:
            if isinstance(x, Ask):
                return x.build(registry)
            return x.text if isinstance(x, Condition) else x.many if isinstance(x, Twice) else x

        common = {"delay": self.delay, "where": self.where and self.where.text, "empty": self.empty}
        options = {k: v for k, v in common.items() if v is not None} | ({"over": list(self.over)} if self.over else {})
        return registry[self.verb](*map(plainly, self.args), **self.options, **options)


@dataclass(frozen=True)
class Near:
    """A result whose last step is a formula of floats: the exact value, and how far off the result may be."""

    value: Fraction
    within: Fraction


class Code(int):
    """The code of a text."""


def text_code(text: str) -> Code:
    """The 64-bit hash that stands for a text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=b"mlpkg.text").digest()
    return Code(struct.unpack("<q", digest)[0])


# -- what happened -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """What a column is: its kind, and how many steps make one."""

    kind: str
    scale: int = 1


@dataclass(frozen=True)
class Event:
    position: int
    time: int
    values: Mapping[str, Any]


@dataclass
class Stream:
    """Events of a source; or facts that are said later about the events of the stream `base`."""

    fields: Mapping[str, Field]
    keep: int
    base: str | None = None
    presumed: Mapping[str, Any] | None = None
    after: int = 0
    events: list[Event] = field(default_factory=list)
    reports: dict[int, list[tuple[int, Mapping[str, Any]]]] = field(
        default_factory=dict
    )  # position of the event -> versions


@dataclass(frozen=True)
class Moment:
    """The event that is decided, the position up to which the log is seen, and the event's own."""

    time: int
    position: int
    own: int
    present: Mapping[str, Any]


@dataclass(frozen=True)
class ValidatedEvent:
    """A row as one moment sees it: `order` decides among equal times, `event` is the position of the event."""

    time: int
    order: int
    event: int
    values: Mapping[str, Any]


@dataclass
class World:
    """All streams."""

    streams: dict[str, Stream]
    _latest: tuple[Any, dict[Any, list[ValidatedEvent]]] = (None, {})  # of one moment, the rows by stream and key
    _entities: dict[Any, dict[Any, list[Event]]] = field(default_factory=dict)  # by stream and key, the events of each

    def visible(self, stream: Stream, events: list[Event], moment: Moment) -> list[ValidatedEvent]:
        """The rows of these events that a moment may see, oldest first."""
        if stream.base is None:
            rows = [
                ValidatedEvent(e.time, e.position, e.position, e.values)
                for e in events
                if e.position <= moment.position
            ]
        else:
            rows = []
            for e in events:
                if e.position == moment.own:
                    continue  # never the truth about itself
                versions = [
                    (max(position, e.position + 1), facts)
                    for position, facts in sorted(stream.reports.get(e.position, []), key=first)
                ]
                held = [(since, facts) for since, facts in versions if since <= moment.position]
                if held:
                    since, facts = held[-1]
                    order = since if stream.presumed is None else e.position
                    rows.append(ValidatedEvent(e.time, order, e.position, {**e.values, **facts}))
                elif (
                    stream.presumed is not None
                    and e.position <= moment.position
                    and e.time <= moment.time - stream.after
                ):
                    rows.append(ValidatedEvent(e.time, e.position, e.position, {**e.values, **stream.presumed}))
        return sorted(rows, key=lambda r: (r.time, r.order, -r.event))

    def mine(self, ask: Ask, moment: Moment) -> list[ValidatedEvent]:
        """Those of a stream that have the key of the event."""
        if self._latest[0] is not moment:
            self._latest = (moment, {})
        cached, stream = self._latest[1], self.streams[ask.stream]
        if (ask.stream, ask.by) not in cached:
            base = stream.base or ask.stream
            if (base, ask.by) not in self._entities:
                entities = self._entities.setdefault((base, ask.by), {})
                for e in self.streams[base].events:
                    entities.setdefault(key_of(ask.by, e.values, e.time), []).append(e)
            key = key_of(ask.by, moment.present, moment.time)
            events = [] if key is None else self._entities[base, ask.by].get(key, [])
            cached[ask.stream, ask.by] = self.visible(stream, events, moment)
        return cached[ask.stream, ask.by]

    def answer(self, ask: Ask, moment: Moment) -> dict[str, Any]:
        """The results by the ends of their names: window and part."""
        stream, rows = self.streams[ask.stream], self.mine(ask, moment)
        delay = micros(ask.late) + micros(ask.delay or "0s")
        out = {}
        for over in ask.over:
            window = Window(rows, stream, moment, over, delay, ask.where)
            parts = VERBS[ask.verb](window, *ask.args, **ask.options)
            for part, value in parts.items() if isinstance(parts, dict) else [("", parts)]:
                if ask.empty is not None:
                    value = filled(value, ask.empty, window.nothing)
                out[over.replace(" ", "_") + (f"_{part}" if part else "")] = value
        return out


def filled(value: Any, empty: float, nothing: bool) -> Any:
    """A result with `empty=`, which stands in for null, and for the int of a window without a row; what is an int becomes a float."""
    if value is None or (nothing and type(value) is int):
        return float(empty)
    return float(value) if type(value) is int else value


def first(pair: tuple[int, Any]) -> int:
    return pair[0]


def key_of(parts: Sequence[str | Twice], values: Mapping[str, Any], time: int) -> tuple[Any, ...] | None:
    """The key of a row, None where a part is missing."""
    key = []
    for part in parts:
        if isinstance(part, str):
            key.append(values[part])
        else:
            names = part.many.__code__.co_varnames[: part.many.__code__.co_argcount]
            args = [time if n == "time" else values[n] for n in names]
            key.append(None if None in args else part.plain(*args))
    return None if None in key else tuple(key)


class Window:
    """The rows of one window of one moment; asking for rows notes whether there were none."""

    def __init__(
        self,
        rows: list[ValidatedEvent],
        stream: Stream,
        moment: Moment,
        over: str,
        delay: int,
        where: Condition | None = None,
    ):
        self.all, self.stream, self.moment, self.over, self.delay = rows, stream, moment, over, delay
        self.t, self.end = moment.time, moment.time - delay
        self.last = int(over.split()[1]) if over.startswith("last ") else None
        self.width = None if self.last is not None or over == "all" else micros(over)
        self.conditions = [where] if where else []
        self.nothing = False

    def rows(self, *columns: str) -> list[ValidatedEvent]:
        """The rows that count for an aggregate of these columns, oldest first."""
        start = self.t - self.stream.keep if self.width is None else self.end - self.width
        rows = [r for r in self.all if start < r.time <= self.end]
        for condition in self.conditions:
            rows = [r for r in rows if condition.holds(r.values)]
        for name in columns:
            rows = [r for r in rows if r.values[name] is not None]
        if self.last is not None:
            rows = rows[-self.last :]
        self.nothing = not rows
        return rows

    def others(self, *columns: str) -> list[ValidatedEvent]:
        """The same without the event that is decided."""
        rows = [r for r in self.rows(*columns) if r.event != self.moment.own]
        self.nothing = not rows
        return rows

    def codes(self, column: str) -> list[Any]:
        return [r.values[column] for r in self.rows(column)]

    def scale(self, column: str) -> int:
        return self.stream.fields[column].scale

    def shown(self, column: str, value: Any) -> float | Code | None:
        """A value as a result has it: in its unit, or the code of its text."""
        if value is None:
            return None
        return (
            text_code(value) if self.stream.fields[column].kind == "text" else float(value) / float(self.scale(column))
        )

    def value(self, ask: Ask, over: str | None = None) -> Any:
        """An aggregate over this window, or over another of the same moment."""
        assert ask.delay is None and ask.empty is None
        other = Window(self.all, self.stream, self.moment, over or self.over, self.delay)
        other.conditions = [*self.conditions, *([ask.where] if ask.where else [])]
        return VERBS[ask.verb](other, *ask.args, **ask.options)


# -- counting ------------------------------------------------------------------------------------------------------


def count(w: Window, column: str | None = None) -> int:
    return len(w.rows(*([column] if column else [])))


def nunique(w: Window, column: str) -> int:
    return len(set(w.codes(column)))


def share(w: Window, column: str, value: Any) -> float | None:
    codes = w.codes(column)
    if not isinstance(value, str):
        value = Fraction(str(value) if isinstance(value, float) else int(value)) * w.scale(column)
    return sum(x == value for x in codes) / len(codes) if codes else None


def _by_frequency(w: Window, column: str) -> list[Any]:
    codes = w.codes(column)
    latest = {x: i for i, x in enumerate(codes)}
    often = Counter(codes)
    return sorted(often, key=lambda x: (-often[x], -latest[x]))


def mode(w: Window, column: str) -> float | Code | None:
    ordered = _by_frequency(w, column)
    return w.shown(column, ordered[0]) if ordered else None


def _numbered(w: Window, column: str, k: int, values: list[Any]) -> dict[str, Any]:
    return {str(i + 1): w.shown(column, values[i]) if i < len(values) else None for i in range(k)}


def top_k(w: Window, column: str, k: int) -> dict[str, Any]:
    return _numbered(w, column, k, _by_frequency(w, column))


def histogram(w: Window, column: str, edges: Sequence[float]) -> dict[str, int]:
    values = [Fraction(x, w.scale(column)) for x in w.codes(column)]
    exact = [Fraction(str(e)) for e in edges]
    below = [None, *exact[:-1]]
    out = {
        f"le_{e}": sum((low is None or low < x) and x <= high for x in values)
        for e, low, high in zip(edges, below, exact, strict=True)
    }
    return {**out, f"gt_{edges[-1]}": sum(x > exact[-1] for x in values)}


def seen(w: Window, column: str) -> dict[str, Any]:
    rows = w.others(column)
    present = w.moment.present[column]
    same = [r for r in rows if present is not None and r.values[column] == present]
    return {"before": float(bool(same)), "ago": float(w.t - same[-1].time) / 1e6 if same else None}


# -- sums ----------------------------------------------------------------------------------------------------------


def total(w: Window, column: str) -> float | None:
    codes = w.codes(column)
    return float(sum(codes)) / float(w.scale(column)) if codes else None


def mean(w: Window, column: str) -> float | None:
    codes = w.codes(column)
    return float(sum(codes)) / float(len(codes) * w.scale(column)) if codes else None


def minimum(w: Window, column: str) -> float | Code | None:
    return w.shown(column, min(w.codes(column), default=None))


def maximum(w: Window, column: str) -> float | Code | None:
    return w.shown(column, max(w.codes(column), default=None))


ULPS = Fraction(1, 10**15)


def _root(x: Fraction) -> Fraction:
    """The square root to sixty digits or so."""
    shift = 10**60
    return Fraction(isqrt(x.numerator * x.denominator * shift * shift), x.denominator * shift)


def _power_sum(codes: list[int], k: int) -> Fraction:
    middle = Fraction(sum(codes), len(codes))
    return sum(((x - middle) ** k for x in codes), Fraction(0))


def _variance(w: Window, column: str, ddof: int) -> Fraction | None:
    codes = w.codes(column)
    if len(codes) <= ddof:
        return None
    return _power_sum(codes, 2) / (len(codes) - ddof) / w.scale(column) ** 2


def _near(value: Fraction, size: Fraction | int = 0) -> Near | float:
    return Near(value, ULPS * max(abs(value), size)) if value or size else 0.0


def var(w: Window, column: str, ddof: int = 1) -> Near | float | None:
    variance = _variance(w, column, ddof)
    return None if variance is None else _near(variance)


def std(w: Window, column: str, ddof: int = 1) -> Near | float | None:
    variance = _variance(w, column, ddof)
    return None if variance is None else _near(_root(variance))


def skew(w: Window, column: str) -> Near | float | None:
    """n √(n−1) / (n−2) · Σd³ / (Σd²)^1.5."""
    codes = w.codes(column)
    n = len(codes)
    if n < 3:
        return None
    if len(set(codes)) == 1:
        return 0.0
    m2 = _power_sum(codes, 2)
    return _near(n * _root(Fraction(n - 1)) / (n - 2) * _power_sum(codes, 3) / (m2 * _root(m2)), 1)


def kurt(w: Window, column: str) -> Near | float | None:
    """n (n+1) (n−1) / ((n−2) (n−3)) · Σd⁴ / (Σd²)² − 3 (n−1)² / ((n−2) (n−3))."""
    codes = w.codes(column)
    n = len(codes)
    if n < 4:
        return None
    if len(set(codes)) == 1:
        return 0.0
    less = Fraction(3 * (n - 1) ** 2, (n - 2) * (n - 3))
    value = Fraction(n * (n + 1) * (n - 1), (n - 2) * (n - 3)) * _power_sum(codes, 4) / _power_sum(codes, 2) ** 2 - less
    return _near(value, 2 * less)


def ratio(w: Window, a: Ask, b: Ask) -> float | None:
    over, under = w.value(a), w.value(b)
    w.rows()
    return None if over is None or under is None or under == 0 else float(over) / float(under)


# -- order ---------------------------------------------------------------------------------------------------------


def first_of(w: Window, column: str) -> float | Code | None:
    return first_k(w, column, 1)["1"]


def last_of(w: Window, column: str) -> float | Code | None:
    return last_k(w, column, 1)["1"]


def first_k(w: Window, column: str, k: int) -> dict[str, Any]:
    return _numbered(w, column, k, w.codes(column))


def last_k(w: Window, column: str, k: int) -> dict[str, Any]:
    return _numbered(w, column, k, w.codes(column)[::-1])


def min_by(w: Window, column: str, by: str) -> float | Code | None:
    best = None
    for row in w.rows(column, by):
        best = row if best is None or row.values[by] <= best.values[by] else best
    return w.shown(column, best and best.values[column])


def max_by(w: Window, column: str, by: str) -> float | Code | None:
    best = None
    for row in w.rows(column, by):
        best = row if best is None or row.values[by] >= best.values[by] else best
    return w.shown(column, best and best.values[column])


def quantile(w: Window, column: str, q: float = 0.5) -> float | None:
    codes = sorted(w.codes(column))
    if not codes:
        return None
    h = (len(codes) - 1) * Fraction(str(q))
    i = h.numerator // h.denominator
    rest = h - i
    s = float(w.scale(column))
    a, b = float(codes[i]) / s, float(codes[min(i + 1, len(codes) - 1)]) / s
    return a + (b - a) * (float(rest.numerator) / float(rest.denominator))


def rank(w: Window, column: str) -> float | None:
    values = [r.values[column] for r in w.others(column)]
    present = w.moment.present[column]
    if not values or present is None:
        return None
    return float(2 * sum(x < present for x in values) + sum(x == present for x in values)) / float(2 * len(values))


# -- time ----------------------------------------------------------------------------------------------------------


def time_since_last(w: Window) -> float | None:
    rows = w.others()
    return float(w.t - rows[-1].time) / 1e6 if rows else None


def time_since_first(w: Window) -> float | None:
    rows = w.rows()
    return float(w.t - rows[0].time) / 1e6 if rows else None


def mean_gap(w: Window) -> float | None:
    rows = w.rows()
    return float(rows[-1].time - rows[0].time) / float((len(rows) - 1) * SECOND) if len(rows) > 1 else None


def max_gap(w: Window) -> float | None:
    rows = w.rows()
    return float(max(b.time - a.time for a, b in pairwise(rows))) / 1e6 if len(rows) > 1 else None


def rate(w: Window, per: str = "1h") -> float | None:
    rows = w.rows()
    length = w.width or (w.t - rows[0].time if rows else 0)
    return float(len(rows) * micros(per)) / float(length) if length else None


def streak(w: Window, condition: Condition) -> int:
    length = 0
    w.conditions = [*w.conditions, Condition("", lambda r: condition.holds(r) is not None)]
    for row in reversed(w.rows()):
        if not condition.holds(row.values):
            break
        length += 1
    return length


# -- decay and shape -----------------------------------------------------------------------------------------------


def weight(k: int) -> int:
    """⌊2^30 · 2^(−k/64)⌋: the 64th root of a whole number is six square roots."""
    x = 2 ** (30 * 64 - k) if k < 30 * 64 else 0
    for _ in range(6):
        x = isqrt(x)
    return x


def _weighted(w: Window, column: str, half_life: str) -> list[tuple[int, int]]:
    step = micros(half_life)
    return [(weight((w.end - r.time) * 64 // step), r.values[column]) for r in w.rows(column)]


def decayed_sum(w: Window, column: str, half_life: str) -> float | None:
    weighted = _weighted(w, column, half_life)
    return float(sum(g * x for g, x in weighted)) / float(2**30 * w.scale(column)) if weighted else None


def decayed_mean(w: Window, column: str, half_life: str) -> float | None:
    weighted = _weighted(w, column, half_life)
    weights = sum(g for g, _ in weighted)
    return float(sum(g * x for g, x in weighted)) / float(w.scale(column) * weights) if weights else None


def trend(w: Window, column: str) -> float | None:
    points = [(r.time - w.t, r.values[column]) for r in w.rows(column)]
    n, u, x = len(points), sum(u for u, _ in points), sum(x for _, x in points)
    over = n * sum(u * x for u, x in points) - u * x
    under = n * sum(u * u for u, _ in points) - u * u
    return float(over) / float(under) * 1e6 / float(w.scale(column)) if under else None


def change(w: Window, a: Ask, against: str) -> float | None:
    now, then = w.value(a), w.value(a, against)
    w.rows()
    return None if now is None or then is None or then == 0 else float(now) / float(then) - 1.0


def fold(w: Window, f: Twice, *columns: str) -> float | None:
    rows = w.rows(*columns)
    args = [[w.shown(c, r.values[c]) for r in rows] for c in columns]
    return f.plain(*args) if rows else None


def latest(w: Window, column: str) -> float | Code | None:
    rows = w.rows()
    row = rows[-1].values if rows else None
    return None if row is None or row.get("deleted") else w.shown(column, row[column])


VERBS: dict[str, Callable[..., Any]] = {
    "count": count, "nunique": nunique, "share": share, "mode": mode, "top_k": top_k, "histogram": histogram, "seen": seen,
    "sum": total, "mean": mean, "min": minimum, "max": maximum, "var": var, "std": std, "skew": skew, "kurt": kurt, "ratio": ratio,
    "first": first_of, "last": last_of, "first_k": first_k, "last_k": last_k, "min_by": min_by, "max_by": max_by,
    "quantile": quantile, "median": quantile, "rank": rank,
    "time_since_last": time_since_last, "time_since_first": time_since_first, "mean_gap": mean_gap, "max_gap": max_gap,
    "rate": rate, "streak": streak,
    "decayed_sum": decayed_sum, "decayed_mean": decayed_mean, "trend": trend, "change": change,
    "fold": fold, "latest": latest,
}  # fmt: skip


# -- comparing -----------------------------------------------------------------------------------------------------


def bits(value: Any) -> str:
    """Type and bits of a result, as text; all that is missing is one."""
    if value is None or value != value or (isinstance(value, int) and value == NULL):
        return "null"
    return f"float {value.hex()}" if isinstance(value, float) else f"int {int(value)}"


def agrees(actual: Any, expected: Any) -> bool:
    """Whether a result equals the oracle's: to the bit, or within the tolerance that the oracle names."""
    if isinstance(expected, Near):
        return type(actual) is float and actual == actual and abs(Fraction(actual) - expected.value) <= expected.within
    return bits(actual) == bits(expected)
