"""What cannot be is refused where it is defined, in words that name the feature and say what to do."""

import re
import sys
from typing import Any

import pytest
from command import Command
from project import Project

import mlpkg as ml
from mlpkg.times import DAY


class Order(ml.Event):
    customer: str
    amount: ml.Money
    items: int


orders = ml.Source("orders", Order, retention="30d")


def spread(amount: Any) -> float:
    return float(amount.max() - amount.min())


@pytest.mark.parametrize(
    ("aggregate", "message"),
    [
        (lambda: ml.top_k("customer", k=0, over="7d"), "k=0 is not a whole number from 1"),
        (lambda: ml.last_k("amount", k="3", over="7d"), "k='3' is not a whole number"),
        (lambda: ml.quantile("amount", q=95, over="7d"), "q=95 is not a number from 0.0 to 1.0"),
        (lambda: ml.std("amount", ddof=-1, over="7d"), "ddof=-1 is not a whole number"),
        (lambda: ml.mean("amount", over="7d", empty="x"), "empty='x' is not a number"),  # type: ignore[arg-type]
        (lambda: ml.mode("customer", over="7d", empty=0), "gives a category"),
        (lambda: ml.fold("amount", over="7d"), "fold needs a function and columns"),  # type: ignore[arg-type]
        (lambda: ml.fold(spread, over="7d"), "fold needs a function and columns"),
        (lambda: ml.count(), "count needs over="),
        (lambda: ml.count(over=7), "count needs over=, a window such as '7d', 'last 20' or 'all'"),  # type: ignore[arg-type]
        (lambda: ml.count(over="last10"), "with a space"),
        (lambda: ml.count(over="7"), "'7' is not a duration"),
        (lambda: ml.count(over="31d"), r"further back than the source keeps its events \(30d"),
        (lambda: ml.count(over="30d", delay="1d"), "and its delay of 1d"),
        (lambda: ml.count(over="7d", where="amount = 3"), "write comparisons such as amount == 3"),
        (lambda: ml.mean("amonut", over="7d"), "did you mean 'amount'"),
        (lambda: ml.sum("customer", over="7d"), "has no meaning"),
        (lambda: ml.sum("items", over="7d"), "give the field bounds"),
        (lambda: ml.count(over=["7d", "7d"]), "named twice"),
        (lambda: ml.ratio(ml.sum("amount", over="7d"), ml.count(), over="7d"), "without over="),
        (lambda: ml.change(ml.count(), over="7d"), "needs against="),
        (lambda: ml.decayed_sum("amount", over="7d"), "needs half_life="),
        (lambda: ml.histogram("amount", over="7d", edges=(5, 1)), "ascending"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_defined(aggregate: Any, message: str):
    with pytest.raises(ValueError, match=message) as refused:
        orders.by("customer").agg(mine=aggregate())
    assert str(refused.value).startswith("orders.mine: ")


def test_a_window_may_reach_as_far_as_events_are_kept():
    group = orders.by("customer", delay="5d").agg(n=ml.count(over="25d"), usual=ml.median("amount", over="last 3"))
    assert group.delay == 5 * DAY


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("average", "mean"), ("avg", "mean"), ("Mean", "mean"), ("meann", "mean"), ("stddev", "std"), ("distinct", "nunique"),
        ("count_distinct", "nunique"), ("n_unique", "nunique"), ("total", "sum"), ("maximum", "max"), ("percentile", "quantile"),
        ("time_since", "time_since_last"), ("decayed", "decayed_sum"), ("Sources", "Source"), ("usecase", "use_case"),
    ],
)  # fmt: skip
def test_a_name_that_mlpkg_has_not_leads_to_the_near_one(name: str, near: str):
    with pytest.raises(AttributeError, match=f"mlpkg has no '{name}'.*did you mean ml.{near}\\?$"):
        getattr(ml, name)


def test_a_name_like_no_other_leads_to_the_list_of_aggregates():
    with pytest.raises(AttributeError, match=r"the aggregates are change, count, .*, trend, var"):
        ml.xyzzy  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(ml, "__wrapped__") and not hasattr(ml, "_private")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (ml.count, "Count is a class, not an aggregate; call it, as in ml.count"),
        (spread, r"spread is a function, not an aggregate; give it to a fold: ml.fold\(spread, 'amount'"),
        (max, "max is a function"),
        (lambda x: x, "<lambda> is a function"),
        ("mean", "'mean' is no aggregate; write one such as ml.mean"),
        (ml.field("amount"), ".*is no aggregate"),
        (None, "None is no aggregate"),
        (ml.streak("amonut > 3", over="7d"), "where='amonut > 3': there is no column 'amonut'; did you mean 'amount'"),
    ],
)
def test_what_is_no_aggregate_is_refused_with_what_to_write(value: Any, message: str):
    with pytest.raises(ValueError, match=rf"^orders\.mine: {message}"):
        orders.by("customer").agg(mine=value)


FINE = """import mlpkg as ml
from datetime import datetime


class Order(ml.Event):
    customer: int
    amount: ml.Money


orders = ml.Source("orders", Order)
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('orders.by("customer").agg(x=ml.average("amount", over="7d"))', "shop.py:12: mlpkg has no 'average', .*did you mean ml.mean"),
        ('orders.by("customer").agg(x=ml.mean("amonut", over="7d"))', "shop.py:12: orders.x: .*did you mean 'amount'"),
        ('orders.by("customer").agg(x=len)', "shop.py:12: orders.x: len is a function"),
        ('orders.by("costumer")', "shop.py:12: .*did you mean 'customer'"),
        ("orders.agg(x=3)", "shop.py:12: 'Source' object has no attribute 'agg'"),
        ("1 / 0", "shop.py:12: ZeroDivisionError: division by zero"),
        ("undefined", "shop.py:12: NameError: name 'undefined'"),
        ("import nothing_of_this_name", "shop.py:12: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("class When(ml.Event):\n    at: datetime\n\n\nml.Source('whens', When).columns", "shop.py:1[0-9]: .*at"),
        ("shop = = 3", r"invalid syntax \(shop.py, line 12\)"),
        ("", "shop has no 'shop'; define it there, as in ml.UseCase"),
        ("other = ml.UseCase('other', ml.FeatureSet('other', on=orders, a=ml.field('amount')), policy=print)", "the use cases other"),
        ("shop = 3", "shop:shop is a int, not a UseCase"),
    ],
)  # fmt: skip
def test_a_module_that_fails_is_said_in_one_line_with_its_line(
    project: Project, cli: Command, monkeypatch: pytest.MonkeyPatch, text: str, message: str
):
    (project.folder / "settings.ini").write_text("[DEFAULT]\nstate = state\nuse_cases =\n    shop = shop:shop\n")
    (project.folder / "shop.py").write_text(f"{FINE}\n{text}\n")
    monkeypatch.syspath_prepend(project.folder)
    answer = cli("catalog", "shop")
    sys.modules.pop("shop", None)
    answer.said_one_line("mlpkg: ", "shop")
    assert re.search(message, answer.err), answer.err
    assert "beside settings.ini" not in answer.err


def test_a_module_that_is_not_there_may_lie_beside_the_settings(project: Project):
    (project.folder / "settings.ini").write_text("[DEFAULT]\nuse_cases =\n    shop = gone.away:shop\n")
    project.run("catalog", "shop").said_one_line("No module named 'gone'", "beside settings.ini")


def test_no_module_of_the_folder_takes_the_place_of_another(project: Project):
    """The folder of settings.ini comes last on the path, whatever its modules are called."""
    (project.folder / "settings.ini").write_text(
        "[DEFAULT]\nuse_cases =\n    shop = shop:shop\n    other = random:other\n"
    )
    case = "ml.UseCase('shop', ml.FeatureSet('shop', on=orders, a=ml.field('amount')), policy=print)"
    (project.folder / "shop.py").write_text(f"{FINE}\nshop = {case}\n")
    for name in ("types", "random", "numpy", "msgspec"):
        (project.folder / f"{name}.py").write_text("raise ImportError('the module of the folder')")
    shown = project.run("catalog", "shop", "--json")
    assert shown.status == 0, shown.err
    project.run("catalog", "other").said_one_line("random is Python's own", "another name")
