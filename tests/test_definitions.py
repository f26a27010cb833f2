"""What cannot be is refused where it is defined, in words that name the feature and say what to do."""

from typing import Any

import pytest

import mlpkg as ml
from mlpkg.times import DAY


class Order(ml.Event):
    customer: str
    amount: ml.Money
    items: int


orders = ml.Source("orders", Order, keep="30d")


def spread(amount: Any) -> float:
    return float(amount.max() - amount.min())


@pytest.mark.parametrize(
    ("aggregate", "said"),
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
def test_what_cannot_be_is_refused_where_it_is_defined(aggregate: Any, said: str):
    with pytest.raises(ValueError, match=said) as told:
        orders.by("customer").agg(mine=aggregate())
    assert str(told.value).startswith("orders.mine: ")


def test_a_window_may_reach_as_far_as_events_are_kept():
    group = orders.by("customer", delay="5d").agg(n=ml.count(over="25d"), usual=ml.median("amount", over="last 3"))
    assert group.delay == 5 * DAY
