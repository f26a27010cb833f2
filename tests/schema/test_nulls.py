"""What a null does: the table of docs/features.md, aggregate by aggregate, in both paths."""

import re
from contextlib import closing
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pytest
from bank import put_live
from paths import ROOT
from pydantic import Field

import mlpkg as ml
from mlpkg import lab
from mlpkg.aggregates import REGISTRY
from mlpkg.decisions import Decider, verify
from mlpkg.engine.columns import NULL, Column, text_code
from mlpkg.engine.filters import Filter
from mlpkg.settings import Settings
from mlpkg.times import instant

PAGE = (ROOT / "docs" / "features.md").read_text("utf-8")
SECTION = PAGE.partition("## Nulls")[2].partition("\n## ")[0]


class Order(ml.Event):
    customer: int
    amount: Annotated[float, Field(ge=0, le=1000), ml.Resolution(0.01)] | None = None
    shop: str | None = None


class Profile(ml.Event):
    customer: int
    city: str | None = None


orders = ml.Source("orders", Order, retention="30d")
profiles = ml.Table("profiles", Profile, key="customer")


def spread(x: Any) -> float:
    return float(x.max() - x.min())


def rows_of(head: str) -> list[list[str]]:
    """The cells of the table of that section whose head begins so."""
    table = SECTION.partition(f"| {head}")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def shown(value: Any) -> str:
    """A feature as the page shows it."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "null"
    names: dict[Any, str] = {text_code(text): f"'{text}'" for text in ("a", "b", "Rome")}
    return names.get(value) or f"{float(value):.6g}"


EXAMPLES = [(cells[0].strip("`"), cells[1]) for cells in rows_of("aggregate")]
NAMESPACE = {**{name: getattr(ml, name) for name in ml.__all__}, "ml": ml, "spread": spread}


def aggregate_of(text: str) -> Any:
    made = eval(text, NAMESPACE)
    return made if made.over else eval(f"{text[:-1]}{'' if text.endswith('()') else ', '}over='all')", NAMESPACE)


def test_the_page_says_of_every_aggregate_what_a_null_does():
    assert {text.partition("(")[0] for text, _ in EXAMPLES} | {"latest"} == {*REGISTRY}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The five orders of the page through the store: features as served, and of the same events as trained."""
    members = {f"m{k}": orders.by("customer").agg(x=aggregate_of(text)) for k, (text, _) in enumerate(EXAMPLES)}
    members["p"] = profiles.latest("city")
    features = ml.FeatureSet("nulls", on=orders, **members)
    case = ml.UseCase("nulls", features, policy=lambda score, event: "ship")
    with closing(ml.open_store(Settings(state=tmp_path_factory.mktemp("nulls")))) as store:
        put_live(case, store)
        decider = Decider(case, store)
        for k, city in enumerate(("Rome", None)):
            body = {"id": f"p{k}", "time": f"2026-01-01T00:0{k}:00Z", "customer": 1, "city": city}
            store.accept(profiles, body, arrived=instant(body["time"]))
        for k, (time, amount, shop) in enumerate(rows_of("time")):
            fields = {"amount": None if amount == "null" else float(amount), "shop": None if shop == "null" else shop}
            body = {"id": f"o{k}", "time": f"2026-01-01T{time}:00Z", "customer": 1, **fields}
            decision = decider.decide(body, arrived=instant(body["time"]))
        assert verify(case, store).mismatches == 0
        trained = lab.training_set(features, "2026-01-01", "2026-01-02", store=store).iloc[-1]
        explained = {name: lab.explain(features, name, "o4", store=store) for name in features.names}
    return decision.features, trained, explained


@pytest.mark.parametrize("k", range(len(EXAMPLES)), ids=[text for text, _ in EXAMPLES])
def test_a_null_does_what_the_page_says(served: Any, k: int):
    online, trained, _ = served
    names = [name for name in online if re.match(rf"m{k}_", name)]
    for row in (online, trained):
        values = [None if pd.isna(row[name]) else row[name] for name in names]
        assert ", ".join(map(shown, values)) == EXAMPLES[k][1], EXAMPLES[k][0]


def test_the_latest_row_of_a_table_counts_even_if_it_is_null(served: Any):
    assert served[0]["p_city"] is None and pd.isna(served[1]["p_city"])


def test_the_page_has_the_truth_table_of_conditions():
    """Each line of it, evaluated."""
    columns = {name: Column(name, "bool", nullable=True) for name in ("a", "b")}
    code = {"true": 1, "false": 0, "unknown": NULL}
    heads = ["not a", "a and b", "a or b"]
    lines = rows_of("`a`")
    assert len(lines) == 9
    for a, b, *truths in lines:
        codes = {"a": np.array([code[a]]), "b": np.array([code[b]])}
        for text, value in zip(heads, truths, strict=True):
            masks = [Filter(c, columns).mask(codes)[0] for c in (text, f"not ({text})")]
            assert masks == [value == "true", value == "false"], (a, b, text)


def test_an_explanation_says_which_rows_a_null_left_out(served: Any):
    k = next(k for k, (text, _) in enumerate(EXAMPLES) if text.startswith("streak"))
    rows = served[2][f"m{k}_x_all"].rows
    assert rows["why"].tolist() == ["", "", "shop == 'b' is unknown", "", ""]
    assert rows["shop"].isna().tolist() == [False, False, True, False, False]
