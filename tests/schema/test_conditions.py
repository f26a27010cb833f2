"""Conditions over nulls: what `where=` and `streak` keep is what SQLite keeps, whatever is asked and in which path."""

import random
import sqlite3
from typing import Any

import numpy as np
import pytest
from aggregate_cases import FIELDS, HOUR, LONG, NOON, code, history_of, many, one, payments, world_of
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Moment

import mlpkg as ml
from mlpkg.engine.columns import NULL
from mlpkg.engine.filters import Filter
from mlpkg.features import FeatureSet

Pair = tuple[str, str]  # a condition as a definition has it, and in SQL

SQL_OF = {"==": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


def comparisons() -> st.SearchStrategy[Pair]:
    """One comparison of a field with constants, in both languages."""
    texts = st.sampled_from(["a", "b", "é", "c"])
    numbers = st.one_of(st.integers(-2, 3), st.sampled_from([0.5, -1.25, 2.5]))
    constants = {"shop": texts, "level": numbers, "tip": numbers}
    pairs = [st.just(("night", "night"))]
    for name, constant in constants.items():
        signs = st.sampled_from(["==", "!="] if name == "shop" else [*SQL_OF])
        pairs += [
            st.tuples(signs, constant).map(lambda p, n=name: (f"{n} {p[0]} {p[1]!r}", f"{n} {SQL_OF[p[0]]} {p[1]!r}")),
            st.lists(constant, min_size=1, max_size=3).flatmap(
                lambda constants, n=name: st.sampled_from(_lists(n, constants))
            ),
            st.sampled_from([(f"{name} is None", f"{name} IS NULL"), (f"{name} is not None", f"{name} IS NOT NULL")]),
        ]
    return st.one_of(pairs)


def _lists(name: str, constants: list[Any]) -> list[Pair]:
    listed = ", ".join(map(repr, constants))
    return [
        (f"{name} in ({listed},)", f"{name} IN ({listed})"),
        (f"{name} not in [{listed}]", f"{name} NOT IN ({listed})"),
    ]


def joined(parts: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    """Conditions of conditions."""
    both = st.tuples(parts, st.sampled_from(["and", "or"]), parts)
    return st.one_of(
        parts.map(lambda p: (f"not ({p[0]})", f"NOT ({p[1]})")),
        both.map(lambda p: (f"({p[0][0]}) {p[1]} ({p[2][0]})", f"({p[0][1]}) {p[1]} ({p[2][1]})")),
    )


CONDITIONS = st.recursive(comparisons(), joined, max_leaves=6)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "shop": st.sampled_from(["a", "b", "é", None]),
            "level": st.one_of(st.none(), st.integers(-2, 3)),
            "tip": st.one_of(st.none(), st.sampled_from([-1_250_000, 500_000, 0, 2_500_000, 3_000_000])),
            "night": st.booleans(),
        }
    ),
    min_size=1,
    max_size=9,
)


def table_of(rows: list[dict[str, Any]]) -> sqlite3.Connection:
    """The rows in SQLite, in the units of their fields."""
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE rows (k INTEGER PRIMARY KEY, shop TEXT, level INTEGER, tip REAL, night INTEGER)")
    units = [(r["shop"], r["level"], None if r["tip"] is None else r["tip"] / 1e6, r["night"]) for r in rows]
    db.executemany("INSERT INTO rows (shop, level, tip, night) VALUES (?, ?, ?, ?)", units)
    return db


@settings(max_examples=20_000 if LONG else 100, deadline=None, derandomize=not LONG, database=None)
@given(CONDITIONS, ROWS)
def test_a_condition_keeps_the_rows_that_sqlite_keeps(condition: Pair, rows: list[dict[str, Any]]):
    text, sql = condition
    columns = {name: np.array([code(row[name]) for row in rows], np.int64) for name in rows[0]}
    kept = np.flatnonzero(Filter(text, payments.seen).mask(columns)) + 1
    with table_of(rows) as db:
        assert kept.tolist() == [k for (k,) in db.execute(f"SELECT k FROM rows WHERE {sql} ORDER BY k")], condition


@settings(max_examples=2_000 if LONG else 30, deadline=None, derandomize=not LONG, database=None)
@given(CONDITIONS, ROWS, st.integers(0, 2**32))
def test_both_paths_count_and_string_together_what_sqlite_does(condition: Pair, rows: list[dict[str, Any]], seed: int):
    """A streak is the number of rows of which the condition is true, after the last one of which it is false."""
    text, sql = condition
    group = payments.by("card").agg(
        n=ml.count(over="all", where=text), m=ml.mean("tip", over="all", where=text), s=ml.streak(text, over="all")
    )
    features = FeatureSet("asked", on=payments, x=group)
    world = world_of([{"time": NOON + k * HOUR, **row} for k, row in enumerate(rows)])
    events = world.streams["payments"].events
    every = np.arange(len(events))
    past = many(features, history_of(world), every, np.array([e.position for e in events]))
    with table_of(rows) as db:
        for k, e in enumerate(events):
            among = f"FROM rows WHERE k <= {k + 1} AND"
            n, mean = db.execute(f"SELECT count(*), avg(tip) {among} ({sql})").fetchone()
            after = f"k > coalesce((SELECT max(k) {among} NOT ({sql})), 0)"
            (streak,) = db.execute(f"SELECT count(*) {among} ({sql}) AND {after}").fetchone()
            live = one(features, world, Moment(e.time, e.position, e.position, e.values), random.Random(seed))
            for got in ({name: column[k] for name, column in past.items()}, live):
                assert (got["x_n_all"], got["x_s_all"]) == (n, streak), (condition, k)
                assert got["x_m_all"] == pytest.approx(np.nan if mean is None else mean, nan_ok=True, abs=1e-9)


def test_not_equal_and_not_equal_to_count_the_same_rows():
    """The example that once was wrong: a missing note is neither 'a' nor something else."""
    codes = {"shop": np.array([code("a"), code("b"), NULL])}
    for text in ("shop != 'a'", "not shop == 'a'", "not (shop == 'a')", "shop not in ('a',)", "not not shop != 'a'"):
        assert Filter(text, payments.seen).mask(codes).tolist() == [False, True, False], text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shop == None", "nothing equals None; write shop is None"),
        ("shop != None", "nothing equals None"),
        ("level in (1, None)", "nothing equals None"),
        ("shop is null", "a missing value is None"),
        ("shop is 'a'", "`is` asks for None alone"),
        ("shop in ()", "`in` needs constants"),
        ("shop in 'abc'", "`in` needs constants"),
        ("shop in ('a', 3)", "a text can only be compared"),
        ("shop < 'a'", "a text can only be compared"),
        ("level > 'a'", "'a' is not a number"),
        ("tip > 1e999", "inf is not a number"),
        ("levle > 2", "did you mean 'level'"),
        ("level > 2 if night else 3", "is not a comparison"),
        ("not " * 3_000 + "night", "cannot be read"),
    ],
)
def test_what_has_no_meaning_over_nulls_is_refused_with_a_hint(text: str, message: str):
    assert {*FIELDS} == {*payments.seen}
    for aggregate in (ml.count(over="1d", where=text), ml.streak(text, over="1d")):
        with pytest.raises(ValueError, match=r"^payments\.mine: where=") as refused:
            payments.by("card").agg(mine=aggregate)
        assert message in str(refused.value)
