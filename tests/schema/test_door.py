"""The door of events as a whole: the verdict on any value equals what the rules say in plain words."""

import json
import os
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NewType
from uuid import UUID

import msgspec
import numpy as np
import pandas as pd
import pytest
from door_values import EVERYTHING, GOOD, KINDS, Refusal, bodies, judge, time_of, times, values
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from project import Project
from pydantic import BaseModel, create_model

import mlpkg as ml
from mlpkg.errors import MlpkgError
from mlpkg.times import read_time

LONG = bool(os.environ.get("MLPKG_LONG"))
MANY = settings(
    max_examples=10_000 if LONG else 40,
    deadline=None,
    derandomize=not LONG,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def verdict(body: Any) -> Refusal | dict[str, Any]:
    """What the door makes of an event."""
    try:
        row = EVERYTHING.parse(body)
    except ml.Rejected as no:
        return Refusal(no.field.partition(".")[2], no.reason)
    assert json.loads(row.body) == row.values and row.codes == EVERYTHING.codes_of(row.body)
    return {"id": row.id, "time": row.time, **row.values}


def same(actual: Refusal | dict[str, Any], right: Refusal | dict[str, Any]) -> bool:
    if isinstance(actual, Refusal) and isinstance(right, Refusal):
        return actual.field == right.field and (
            actual.reason.startswith(right.reason) if right.reason.endswith("; ") else actual.reason == right.reason
        )
    return repr(actual) == repr(right)  # bit for bit: -0.0 is not 0.0, and 1 is not True


@MANY
@given(bodies())
@example(GOOD | {"ratio": 1.2e-7})
@example(GOOD | {"ratio": -0.0})
@example(GOOD | {"count": 10**4299})
def test_any_event_is_judged_as_the_rules_say(body: dict[str, Any]):
    right = judge(body)
    for written in (body, json.dumps(body), json.dumps(body, ensure_ascii=False).encode()):
        assert same(actual := verdict(written), right), (actual, right)


@pytest.mark.parametrize("name", KINDS)
def test_any_value_of_a_field_is_judged_as_the_rules_say(name: str):
    @MANY
    @given(values(KINDS[name]))
    def check(value: Any) -> None:
        body = GOOD | {name: value}
        assert same(actual := verdict(json.dumps(body)), right := judge(body)), (actual, right)

    check()


@MANY
@given(times() | st.text("0123456789-+:.,TZz UTCGM", max_size=28))
def test_any_text_is_a_time_as_the_rules_say(text: str):
    try:
        actual: int | str = read_time(text)
    except ValueError as no:
        actual = str(no)
    assert actual == time_of(text)


@MANY
@given(st.sampled_from(list(KINDS)), values(KINDS["count"]), values(KINDS["count"]), st.booleans())
def test_a_key_given_twice_is_refused_at_every_json_door(name: str, first: Any, second: Any, escaped: bool):
    """Whatever the values are, and where an escape hides that the keys are the same."""
    rest = json.dumps({k: v for k, v in GOOD.items() if k != name})[:-1]
    again = f"\\u{ord(name[0]):04x}{name[1:]}" if escaped else name
    text = f'{rest}, "{name}": {json.dumps(first)}, "{again}": {json.dumps(second)}}}'
    for written in (text, text.encode()):
        assert verdict(written) == Refusal(name, "is given twice")


OUTCOMES = [
    ("paid", bool, '"yes"', "is a text, not true or false"),
    ("paid", bool, "1", "is a number, not true or false"),
    ("stars", int, '"5"', "is a text, not a whole number"),
    ("stars", int, "5.0", "is written with decimals, not as a whole number"),
    ("stars", int, str(2**42 + 1), "is beyond ±4.39805e+12"),
    ("stars", int, "9" * 5000, "is beyond ±4.39805e+12"),
    ("loss", float, '"5.5"', "is a text, not a number"),
    ("loss", float, "1e-7", "is finer than its resolution of 1e-06; declare a finer Resolution"),
    ("loss", float, "1e7", "is beyond ±4.39805e+06, the most its resolution allows"),
    ("loss", float, "9" * 5000, "is beyond ±4.39805e+06, the most its resolution allows"),
    ("loss", float, "NaN", "is not a finite number"),
    ("reason", str, "5", "is a number, not a text"),
    ("reason", str, "null", "is null, but required"),
]


@pytest.mark.parametrize(("name", "kind", "value", "reason"), OUTCOMES, ids=lambda v: str(v)[:30])
def test_an_outcome_is_judged_as_an_event_is(name: str, kind: type, value: str, reason: str):
    outcome = ml.Source("orders", ml.Event).outcome(name, kind)
    for body in (f'{{"id": "o-1", "{name}": {value}}}', f'{{"id": "o-1", "{name}": {value}}}'.encode()):
        with pytest.raises(ml.Rejected) as refused:
            outcome.parse(body)
        assert (refused.value.field, refused.value.reason) == (f"{name.title()}.{name}", reason)
    good = {"paid": True, "stars": 5, "loss": 5.5, "reason": "late"}[name]
    for body, why in (
        ({"id": "o-1", name: good, f"{name}x": 1}, f"is not a field of this outcome; did you mean {name!r}?"),
        ({"id": "o-1", f"{name}x": good}, f"is not a field of this outcome; did you mean {name!r}?"),
    ):
        with pytest.raises(ml.Rejected, match=r"\?") as refused:
            outcome.parse(body)
        assert refused.value.reason == why
    with pytest.raises(ml.Rejected, match="is given twice"):
        outcome.parse(f'{{"id": "o-1", "{name}": {json.dumps(good)}, "{name}": {json.dumps(good)}}}')


class Profile(ml.Event):
    customer: int
    segment: str | None = None


PROFILES = ml.Table("profiles", Profile, key="customer")


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"segmnt": "new"}, "segmnt", "is not a field of this source; did you mean 'segment'?"),
        ({"customer": None}, "customer", "is null, but required"),
        ({"customer": "5"}, "customer", "is a text, not a whole number"),
        ({"deleted": "yes"}, "deleted", "is a text, not true or false"),
        ({"deleted": True, "segment": "new"}, "segment", "is not a field of this source; there is"),
        ({"deleted": True, "customer": 10**30}, "customer", "is beyond ±9.0072e+15"),
    ],
)
def test_a_row_of_a_table_is_judged_as_an_event_is(change: dict[str, Any], field: str, reason: str):
    body = {"id": "p-1", "time": "2018-07-25T10:00:00Z", "customer": 5} | change
    for written in (body, json.dumps(body), json.dumps(body).encode(), msgspec.json.encode(body) if field else b""):
        with pytest.raises(ml.Rejected) as refused:
            PROFILES.parse(written)
        assert refused.value.field == f"Profile.{field}" and refused.value.reason.startswith(reason)
    twice = json.dumps(body)[:-1] + ', "customer": 5}'
    with pytest.raises(ml.Rejected, match="is given twice"):
        PROFILES.parse(twice)


class Part(BaseModel):
    """A model inside an event."""

    a: int


Colour = Enum("Colour", {"RED": "red", "BLUE": "blue"})

NO_COLUMN = [
    (datetime, "keep a time as a whole number of seconds, or make it the event's time"),
    (date | None, "keep a time as a whole number of seconds"),
    (pd.Timestamp, "keep a time as a whole number of seconds"),
    (timedelta, "keep a duration as a whole number of seconds"),
    (list[int], "a field holds one value"),
    (tuple[str, ...] | None, "a field holds one value"),
    (set, "a field holds one value"),
    (dict[str, int], "write each of its keys as a field"),
    (Part, "write each of its parts as a field of its own"),
    (np.ndarray, "write each of its parts as a field of its own"),
    (Decimal, "write float with a Resolution, or Money"),
    (Colour, "write Literal['red', 'blue']"),
    (UUID, "write str, and send its text"),
    (bytes, "write str, and send its text"),
    (int | str, "choose one type"),
    (int | float | None, "choose one type"),
    (Literal[1, 2], "write the values as texts, or take int with bounds"),
    (Any, "choose one of them"),
    (NewType("Amount", float), "write float"),
    (Annotated[float, ml.Resolution(0.3)], "write it as 0.01 or 1 / 64"),
    (Annotated[float, ml.Resolution(0)], "write it as 0.01 or 1 / 64"),
]


@pytest.mark.parametrize(("kind", "hint"), NO_COLUMN, ids=lambda v: None if isinstance(v, str) else str(v)[-30:])
def test_a_field_that_no_column_holds_is_one_line_with_a_hint(kind: Any, hint: str):
    contract = create_model("Order", __base__=ml.Event, amount=(kind, ...))
    for define in (
        lambda: ml.Source("orders", contract),
        lambda: ml.Table("orders", contract, key="amount"),
        lambda: ml.Source("orders", ml.Event).outcome("amount", kind),
    ):
        with pytest.raises(MlpkgError) as refused:
            define()
        message = str(refused.value)
        assert message.startswith(("source 'orders': field 'amount': ", "outcome 'amount': field 'amount': ")), message
        assert hint in message and "\n" not in message and len(message) < 300


def test_what_is_no_contract_is_refused_with_a_hint():
    for wrong in (Part, dict, Part(a=1)):
        with pytest.raises(MlpkgError, match=r"is no contract; write a subclass of ml\.Event"):
            ml.Source("orders", wrong)  # type: ignore[arg-type]


def test_the_command_line_says_which_field_no_column_holds(project: Project):
    (project.folder / "settings.ini").write_text(
        "[DEFAULT]\nstate = state\nuse_cases =\n    shop = shop_of_dates:shop\n"
    )
    (project.folder / "shop_of_dates.py").write_text(
        "from datetime import datetime\nimport mlpkg as ml\n\nclass Order(ml.Event):\n    paid: datetime\n\n"
        "orders = ml.Source('orders', Order)\n"
        "shop = ml.UseCase('shop', ml.FeatureSet('shop', on=orders, x=ml.field('paid')))\n"
    )
    for command in (["catalog", "shop"], ["ingest", "shop", "orders.csv"], ["decide", "shop", "{}"]):
        project.run(*command).said_one_line("source 'orders': field 'paid': datetime", "a whole number of seconds")
