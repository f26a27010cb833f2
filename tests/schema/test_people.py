"""What people read: the catalog, differences between definitions, timelines, explanations and pictures."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import clicks
import handbook
import matplotlib
import numpy as np
import pandas as pd
import pytest
import shopping
from bank import START, Bank, booster, put_live
from command import Command
from project import SETTINGS, Project

import mlpkg as ml
from mlpkg import lab, models
from mlpkg.catalog import changes, describe, markdown
from mlpkg.decisions import Decider
from mlpkg.errors import MlpkgError
from mlpkg.features import OnDemand, to_json
from mlpkg.settings import Settings
from mlpkg.times import DAY, HOUR, iso

matplotlib.use("Agg")

LONG = bool(os.environ.get("MLPKG_LONG"))


class Order(ml.Event):
    """An order in the shop."""

    customer: str
    amount: ml.Money
    coupon: str | None = None


orders = ml.Source("orders", Order, subject="customer", owner="the shop", retention="30d", allowed_lateness="5d")
returned = orders.outcome("returned", bool)
habits = ml.FeatureSet(
    "shop",
    on=orders,
    customer=orders.by("customer").agg(
        n=ml.count(over=["1d", "7d"]),
        coupons=ml.nunique("coupon", over="7d"),
        spent=ml.sum("amount", over="7d", where="amount > 10", empty=0.0),
        gap=ml.time_since_last(over="7d"),
        dear=ml.ratio(ml.count(where="amount > 20"), ml.count(), over="7d"),
        lately=ml.change(ml.mean("amount"), over="1d", against="7d"),
    ),
    returns=returned.by("customer").agg(n=ml.count(over="7d"), dear=ml.max("amount", over="7d")),
    amount=ml.field("amount"),
)
shop = ml.UseCase("shop", habits, policy=lambda score, event: "send")
by_both = ml.FeatureSet("pairs", on=orders, both=orders.by("customer", "coupon").agg(spent=ml.sum("amount", over="7d")))
pairs = ml.UseCase("pairs", by_both, policy=lambda score, event: "send")


def of_morning(time: Any) -> Any:
    return time // HOUR % 24 < 12


mornings = ml.FeatureSet("mornings", on=orders, morning=orders.by(of_morning).agg(n=ml.count(over="7d")))
by_morning = ml.UseCase("mornings", mornings, policy=lambda score, event: "send")


def definition(features: ml.FeatureSet) -> dict[str, Any]:
    return json.loads(to_json(features))


def change_words(old: ml.FeatureSet, new: ml.FeatureSet) -> list[str]:
    return [str(change) for change in changes(definition(old), definition(new))]


def with_members(features: ml.FeatureSet, **members: Any) -> ml.FeatureSet:
    kept = {k: v for k, v in (features.members | members).items() if v is not None}
    return ml.FeatureSet(features.name, on=features.on, **kept)


# -- the catalog -----------------------------------------------------------------------------------------------------


def test_the_catalog_names_every_source_field_and_feature(stocked: Project, cli: Command) -> None:
    assert cli("catalog", "fraud", "-o", "out").status == 0
    page, data = (stocked.folder / "out" / name for name in ("catalog.md", "catalog.json"))
    text = page.read_text()
    (case,) = json.loads(data.read_text())
    (source,) = case["sources"]
    assert [f["name"] for f in case["features"]] == handbook.features.names
    assert [f["name"] for f in source["fields"]] == ["customer_id", "terminal_id", "amount"]
    assert (source["fields"][2]["step"], source["fields"][2]["bounds"]) == (0.01, ["at least 0"])
    assert (source["outcomes"][0]["default"], source["outcomes"][0]["matures_after"]) == (False, "7d")
    for feature in handbook.features.features:
        assert f'<a id="fraud-{feature.name}"></a>`{feature.name}` | {feature.description} |' in text


def test_a_catalog_written_twice_is_the_same_to_the_byte(stocked: Project, cli: Command) -> None:
    for folder in ("one", "two"):
        assert cli("catalog", "-o", folder).status == 0
    for name in ("catalog.md", "catalog.json"):
        assert (stocked.folder / "one" / name).read_bytes() == (stocked.folder / "two" / name).read_bytes()


def test_the_catalog_says_which_models_use_a_feature(stocked: Project, cli: Command) -> None:
    live = models.versions(stocked.state, "fraud")[0]
    changed = with_members(
        handbook.features, customer=handbook.transactions.by("customer_id").agg(n_tx=ml.count(over=["1d", "14d"]))
    )
    other = models.save(stocked.state, "fraud", booster(changed), changed, metrics={}, lineage={}, policy={})
    (case,) = cli("catalog", "fraud", "--json").json
    uses = {f["name"]: f["used_by"] for f in case["features"]}
    assert uses["customer_n_tx_1d"] == sorted([live, other]) and uses["customer_avg_amount_7d"] == [live]
    assert [(f["name"], f["used_by"]) for f in case["older_features"]] == [("customer_n_tx_14d", [other])]
    assert {m["version"]: m["active"] for m in case["models"]} == {live: True, other: False}
    since = next(m["since_then"] for m in case["models"] if m["version"] == other)
    assert "added: customer_avg_amount_7d: mean of amount over transactions of the same customer_id in 7d" in since
    assert f"`{live}`](#fraud-{live}) (active)" in cli("catalog", "fraud").out


def test_a_catalog_without_a_store_tells_of_the_code_and_makes_none(project: Project, cli: Command) -> None:
    answer = cli("catalog", "fraud")
    assert answer.status == 0 and "## fraud" in answer.out and "No model is active" in answer.out
    assert f"there is no store in {project.state}" in answer.err and "check MLPKG_STATE" in answer.err
    assert "there was no store to look into" in answer.out
    assert not project.state.exists()


def test_every_part_and_unit_of_a_feature_is_said_in_words() -> None:
    words = {f.name: f.description for f in clicks.features.features}
    begin = {
        "session_again_all_before": "whether item was the same before (1 or 0) over clicks of the same session",
        "session_again_all_ago": "seconds since item was last the same over",
        "session_often_1h_2": "number 2 of the 2 most frequent values of category over",
        "session_before_all_1": "number 1 of the 3 latest values of category over",
        "session_idle_all": "seconds since the last event over",
        "session_gap_all": "max gap in seconds over",
        "shown_user_places_7d_le_3": "count of place above 1 and up to 3 over",
        "shown_user_places_7d_gt_3": "count of place above 3 over",
        "item_trend_7d": "trend of price per second over",
        "aisle_busy_1h": "count relative to that in 1d, less 1, over clicks of the same category in 1h",
    }
    assert {name: words[name][: len(start)] for name, start in begin.items()} == begin
    assert words["session_price_last_5"].endswith("of the same session in the last 5 events")


def test_the_catalog_lists_all_functions_with_what_they_say_of_themselves() -> None:
    """Folds and the functions of keys too."""
    described = describe(clicks.coupons, Path("nowhere"))
    page = markdown([described])
    assert (
        "- `click_functions.fall`, for `session_fall_last_5`: How far the latest price lies below the highest." in page
    )
    assert "- `click_functions.hour_of_day`, for `hourly_n_3d`, `hourly_n_7d`, `hourly_users_3d`\n" in page
    assert set(described["code"]) == {
        f"click_functions.{f}" for f in ("during_evening", "fall", "hour_of_day", "price_band")
    }


def test_a_feature_that_all_models_use_names_none_of_them(stocked: Project, cli: Command) -> None:
    (live,) = models.versions(stocked.state, "fraud")
    page = cli("catalog", "fraud").out
    row = next(line for line in page.splitlines() if "`customer_n_tx_1d`" in line)
    assert row.endswith("| all |") and f"all are [`{live}`](#fraud-{live}) (active)." in page


# -- differences -----------------------------------------------------------------------------------------------------


def test_a_definition_does_not_differ_from_itself(stocked: Project, cli: Command) -> None:
    version = models.versions(stocked.state, "fraud")[0]
    assert cli("features", "diff", "fraud", version).out == "no difference\n"
    file = models.find(stocked.state, "fraud", version).folder / "features.json"
    assert cli("features", "diff", version, file, "--json").json == []


def test_another_window_is_one_change_and_the_new_name_is_said() -> None:
    by = handbook.transactions.by("customer_id")
    old = ml.FeatureSet("f", on=handbook.transactions, customer=by.agg(avg_amount=ml.mean("amount", over=["1d", "7d"])))
    new = ml.FeatureSet(
        "f", on=handbook.transactions, customer=by.agg(avg_amount=ml.mean("amount", over=["1d", "14d"]))
    )
    assert change_words(old, new) == [
        "changed: customer_avg_amount_7d: mean over 7d → 14d (now customer_avg_amount_14d)"
    ]


def test_what_is_added_and_removed_is_said_in_words() -> None:
    less = with_members(handbook.features, amount=None)
    assert change_words(less, handbook.features) == ["added: amount: amount of the event"]
    assert change_words(handbook.features, less) == ["removed: amount: amount of the event"]


def test_a_condition_a_delay_and_the_value_of_nothing_are_changes() -> None:
    def mean_of(delay: str = "0s", **more: Any) -> ml.FeatureSet:
        by = handbook.transactions.by("customer_id", delay=delay)
        return ml.FeatureSet("f", on=handbook.transactions, a=by.agg(n=ml.mean("amount", over="7d", **more)))

    assert change_words(mean_of(), mean_of(where="amount > 5")) == ["changed: a_n_7d: mean where none → amount > 5"]
    assert change_words(mean_of(), mean_of(delay="1d")) == ["changed: a_n_7d: mean delay 0d → 1d"]
    assert change_words(mean_of(), mean_of(empty=0.0)) == ["changed: a_n_7d: mean empty none → 0.0"]


def test_another_key_is_a_change() -> None:
    def by(*key: Any) -> ml.FeatureSet:
        return ml.FeatureSet("f", on=orders, a=orders.by(*key).agg(n=ml.count(over="7d")))

    assert change_words(by("customer"), by("customer", "coupon")) == [
        "changed: a_n_7d: count key customer → customer, coupon"
    ]
    assert change_words(by("customer"), by(of_morning, "customer")) == [
        "changed: a_n_7d: count key customer → of_morning, customer"
    ]


def test_other_code_of_a_function_is_a_change() -> None:
    def during_night(time: Any) -> Any:
        return time // HOUR % 24 < 6

    during_night.__module__ = handbook.__name__
    during_night.__qualname__ = "during_night"
    new = with_members(handbook.features, during_night=OnDemand(during_night))
    (line,) = change_words(handbook.features, new)
    assert line.startswith("changed: during_night: the code of during_night changed (")


def test_what_changed_of_a_source_is_said_too() -> None:
    class Transaction(ml.Event):
        customer_id: int
        amount: ml.Money
        channel: str | None = None

    longer = ml.Source("transactions", Transaction, subject="customer_id", retention="120d", allowed_lateness="3d")
    longer.outcome("fraud", bool, default=False, matures_after="14d")
    old = ml.FeatureSet("f", on=handbook.transactions, amount=ml.field("amount"))
    new = ml.FeatureSet("f", on=longer, amount=ml.field("amount"))
    assert change_words(old, new) == [
        "changed: source transactions: retention 90d → 120d",
        "changed: source transactions: field terminal_id removed (whole number)",
        "changed: source transactions: field channel added (text, optional)",
        "changed: source transactions: outcome fraud: true or false; false where nothing is reported for 7d → "
        "true or false; false where nothing is reported for 14d",
    ]


def test_a_misspelt_version_gets_a_suggestion(project: Project, cli: Command) -> None:
    assert cli("features", "diff", "fraud", "frauds").said_one_line("'frauds'", "did you mean 'fraud'?")
    (project.folder / "list.json").write_text("[]")
    assert cli("features", "diff", "fraud", "list.json").said_one_line("list.json is not the definition")


# -- what the store holds --------------------------------------------------------------------------------------------


def test_a_timeline_shows_what_the_store_holds_of_an_entity(stocked: Project, cli: Command) -> None:
    rows: Any = lab.events(handbook.transactions, store=(store := ml.open_store(stocked.settings)))
    store.close()
    latest = rows[rows["customer_id"] == 7].sort_values(["time", "position"]).tail(5)
    (timeline,) = cli("timeline", "fraud", "customer_id=7", "-n", 5, "--json").json["timelines"]
    assert (timeline["stream"], timeline["key"], len(timeline["latest"])) == ("transactions", "customer_id", 5)
    assert [r["id"] for r in timeline["latest"]] == latest["id"].tolist()
    assert [r["amount"] for r in timeline["latest"]] == latest["amount"].tolist()
    text = cli("timeline", "fraud", "customer_id=7", "-n", 5).out
    assert text.startswith(f"transactions of customer_id=7: {timeline['rows']} rows, the latest 5\n")
    assert len(text.strip().splitlines()) == 7


def test_a_timeline_of_an_outcome_shows_the_truth(stocked: Project, cli: Command) -> None:
    store = ml.open_store(stocked.settings)
    rows: Any = lab.events(handbook.transactions, store=store)
    store.close()
    terminal = int(rows.loc[rows["fraud"].notna(), "terminal_id"].iloc[-1])
    answer = cli("timeline", "fraud", f"terminal_id={terminal}", "--stream", "transactions.fraud", "-n", 0, "--json")
    (timeline,) = answer.json["timelines"]
    reported = rows[(rows["terminal_id"] == terminal) & rows["fraud"].notna()]
    assert sorted(r["id"] for r in timeline["latest"]) == sorted(reported["id"])
    assert all(True in r.values() for r in timeline["latest"])


@pytest.fixture(scope="module")
def _platform(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tmp_path_factory.mktemp("platform") / "state"
    store: Any = ml.open_store(Settings(state=state))
    store.register("shop", habits)
    rng = np.random.default_rng(7)
    moment = START
    for i in range(120):
        moment += int(rng.integers(1, 6)) * HOUR
        late = int(rng.integers(0, 4)) * DAY if rng.random() < 0.3 else 0
        body: dict[str, Any] = {
            "id": f"o{i}",
            "time": iso(moment - late),
            "customer": "an" if rng.random() < 0.6 else "bo",
        }
        body |= {"amount": float(rng.integers(0, 4000)) / 100}
        body |= {"coupon": str(rng.choice(["ten", "free"]))} if rng.random() < 0.5 else {}
        store.accept(orders, body, arrived=moment)
        if rng.random() < 0.4:
            report = {"id": f"o{int(rng.integers(0, i + 1))}", "returned": True}
            store.report(returned, report, arrived=moment)
    store.close()
    return state


@pytest.fixture
def shop_platform(_platform: Path, project: Project) -> Iterator[Any]:
    """A shop whose orders come late, out of order and without coupons; its active model is none."""
    cases = f"    shop = {__name__}:shop\n    pairs = {__name__}:pairs\n    mornings = {__name__}:by_morning\n"
    (project.folder / "settings.ini").write_text(SETTINGS + cases)
    shutil.copytree(_platform, project.state)
    store = ml.open_store(project.settings)
    store.register("shop", habits)
    with contextlib.closing(store):
        yield store


def test_the_log_lends_a_timeline_its_words(shop_platform: Any, cli: Command) -> None:
    timelines = cli("timeline", "shop", "customer=an", "-n", 0, "--json").json["timelines"]
    events: Any = lab.events(orders, store=shop_platform)
    of_customer = events[events["customer"] == "an"].sort_values(["time", "position"])
    latest = next(t["latest"] for t in timelines if t["stream"] == "orders")
    assert [r["coupon"] for r in latest] == [c if isinstance(c, str) else None for c in of_customer["coupon"]]
    assert {t["stream"] for t in timelines} == {"orders", "orders.returned"}


def test_the_timeline_of_a_key_of_several_parts_is_named_by_all_of_them(shop_platform: Any, cli: Command) -> None:
    answer = cli("timeline", "pairs", "customer=an", "coupon=ten")
    assert answer.said_one_line("orders by customer,coupon are not built")
    shop_platform.register("pairs", pairs.features)
    (timeline,) = cli("timeline", "pairs", "customer=an", "coupon=ten", "-n", 0, "--json").json["timelines"]
    rows: Any = lab.events(orders, store=shop_platform)
    of_pair = rows[(rows["customer"] == "an") & (rows["coupon"] == "ten")]
    assert sorted(r["id"] for r in timeline["latest"]) == sorted(of_pair["id"]) and len(of_pair) > 5
    assert cli("timeline", "pairs", "customer=an").said_one_line("keeps no timeline by customer")


def test_a_key_that_is_not_kept_is_refused_with_those_that_are(stocked: Project, cli: Command) -> None:
    words = ("keeps no timeline by custmer_id", "it keeps: transactions by customer_id")
    assert cli("timeline", "fraud", "custmer_id=7").said_one_line(*words)


def test_a_value_of_the_wrong_type_is_refused(stocked: Project, cli: Command) -> None:
    answer = cli("timeline", "fraud", "customer_id=seven")
    assert answer.status == 2 and "'seven' is no int" in answer.err


def test_a_decision_is_printed_with_the_texts_of_its_categories(project: Project, cli: Command) -> None:
    """As it was recorded, with their codes, for machines."""
    (project.folder / "settings.ini").write_text(SETTINGS + "    shopping = shopping:shopping\n")
    with contextlib.closing(ml.open_store(project.settings)) as store:
        put_live(shopping.shopping, store)
        body = {"id": "p1", "time": iso(START), "buyer": 1, "kind": "tea", "price": 3.0}
        decided = Decider(shopping.shopping, store).decide(body, arrived=START)
    printed = cli("decisions", "shopping", "p1").json
    assert (printed["features"]["kind"], printed["features"]["buyer_usual_7d"]) == ("tea", "tea")
    assert cli("decisions", "shopping", "p1", "--json").json["features"] == decided.features


# -- a mistyped state ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("decisions", "fraud"),
        ("models", "fraud"),
        ("verify", "fraud"),
        ("dead-letters", "list"),
        ("dead-letters", "retry", "--all"),
        ("outcome", "fraud", "--waiting"),
        ("outcome", "fraud", "tx-1", "true"),
        ("timeline", "fraud", "customer_id=7"),
        ("report", "fraud"),
        ("export", "fraud"),
        ("replay", "fraud", "--from", "2018-04-01", "--to", "2018-04-02", "--into", "fresh"),
        ("training-set", "fraud", "--from", "2018-04-01", "--to", "2018-04-02", "-o", "rows.csv"),
    ],
)
def test_a_verb_that_reads_makes_no_store(command: tuple[str, ...], project: Project, cli: Command) -> None:
    state = project.folder / "mistyped"
    assert cli(*command, state=state).said_one_line("there is no store", "check MLPKG_STATE")
    assert not state.exists()


def test_the_lab_reads_and_makes_no_store(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    state = project.folder / "mistyped"
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("MLPKG_STATE", str(state))
    with pytest.raises(MlpkgError, match=f"there is no store in {state}; check MLPKG_STATE"):
        lab.events(handbook.transactions)
    assert not state.exists()


# -- explanations ----------------------------------------------------------------------------------------------------


def test_every_feature_of_every_event_is_explained_by_the_rows_that_count(shop_platform: Any) -> None:
    """Also where events came late, and where more was known than at the event's own position."""
    rows: Any = lab.events(orders, store=shop_platform)
    served = lab.preview(habits, rows, store=shop_platform)
    for i in range(0, len(rows), 7 if LONG else 23):
        event = rows.iloc[i]
        for feature in habits.names:
            explanation = lab.explain(habits, feature, event, store=shop_platform)
            assert np.array_equal([explanation.value], [served[feature].iloc[i]], equal_nan=True)
            lab.explain(habits, feature, event["id"], seen=10**6, store=shop_platform)


def test_an_explanation_says_why_an_event_does_not_count(shop_platform: Any) -> None:
    rows: Any = lab.events(orders, store=shop_platform)
    reasons = set()
    for event in rows["id"].iloc[60 : 90 : 1 if LONG else 3]:
        for feature in ("customer_spent_7d", "customer_coupons_7d", "customer_gap_7d", "returns_n_7d"):
            shown: Any = lab.explain(habits, feature, event, store=shop_platform).rows
            reasons |= set(shown["why"])
            assert shown["counts"].eq(shown["why"].isin(["", "reported", "presumed"])).all()
    assert reasons >= {"", "came later", "not where amount > 10", "coupon is missing", "is the event itself"}


def test_an_aggregate_of_aggregates_is_explained_by_its_parts(shop_platform: Any) -> None:
    explanation = lab.explain(habits, "customer_lately_1d", "o80", store=shop_platform)
    day, week = explanation.parts.values()
    assert explanation.value == day.value / week.value - 1
    assert day.rows["counts"].sum() < week.rows["counts"].sum()
    shares = lab.explain(habits, "customer_dear_7d", "o80", store=shop_platform)
    assert "not where amount > 20" in set(next(iter(shares.parts.values())).rows["why"])


def test_an_explanation_follows_a_key_of_several_parts(shop_platform: Any) -> None:
    both = orders.by("customer", of_morning, delay="1d").agg(n=ml.count(over="7d"), most=ml.max("amount", over="20d"))
    coupon = orders.by("customer", "coupon").agg(n=ml.count(over="7d"))
    features = ml.FeatureSet("several", on=orders, both=both, coupon=coupon)
    rows: Any = lab.events(orders, store=shop_platform)
    counted = 0
    for event in rows.loc[rows["coupon"].notna(), "id"][::5]:
        for feature in features.names:
            shown: Any = lab.explain(features, feature, event, store=shop_platform).rows
            counted += int(shown["counts"].sum()) if len(shown) else 0
    assert counted > 50


def test_what_is_not_known_yet_and_what_is_presumed_is_told_apart(bank: Bank) -> None:
    for day in range(16):
        bank.pays(f"t{day}", day)
    bank.hears("t2", True, 15.5)
    bank.pays("t16", 16)
    rows: Any = lab.explain(handbook.features, "terminal_risk_30d", "t16", store=bank.store).rows
    why = dict(zip(rows["id"], rows["why"], strict=True))
    assert (why["t2"], why["t1"], why["t12"]) == ("reported", "presumed", "not known yet")
    assert rows.loc[rows["id"] == "t2", "fraud"].item() and rows["counts"].sum() == 10


def forgetful(explanation: Any) -> None:
    """Leave out a row that counts."""
    explanation.leave_out(np.arange(len(explanation.event)) == np.flatnonzero(explanation.counts)[0], "forgotten")


def credulous(explanation: Any) -> None:
    """Count a row that came later."""
    assert "came later" in explanation.why
    explanation.why[explanation.why == "came later"] = ""


@pytest.mark.parametrize("mistake", [forgetful, credulous])
@pytest.mark.parametrize("feature", ["customer_n_7d", "customer_spent_7d"])
def test_an_explanation_whose_rows_do_not_give_the_number_fails(
    mistake: Any, feature: str, shop_platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    explaining = import_module("mlpkg.lab.explain")  # `lab.explain` is the function
    rows: Any = lab.events(orders, store=shop_platform)
    explained: Any = {id: lab.explain(habits, feature, id, store=shop_platform).rows for id in rows["id"][60:]}
    event = next(
        id
        for id, explanation in explained.items()
        if "came later" in set(explanation["why"]) and explanation["counts"].any()
    )
    apply = explaining.apply_rules

    def wrongly(aggregate: Any, stream: Any, window: str, explanation: Any, own: int) -> None:
        apply(aggregate, stream, window, explanation, own)
        mistake(explanation)

    monkeypatch.setattr(explaining, "apply_rules", wrongly)
    with pytest.raises(AssertionError):
        lab.explain(habits, feature, event, store=shop_platform)


def test_the_numbers_are_put_into_the_formula(bank: Bank) -> None:
    for i, amount in enumerate((10.25, 3.5, 7.0)):
        bank.pays(f"t{i}", i / 10, amount=amount)
    explanation = lab.explain(handbook.features, "customer_avg_amount_1d", "t2", store=bank.store)
    assert explanation.words == f"(10.25 + 3.5 + 7) / 3 = {20.75 / 3!r}"
    assert explanation.words in explanation._repr_html_() and "t1" in repr(explanation)


def swing(amounts: Any) -> Any:
    return max(amounts) - min(amounts)


def test_what_has_no_formula_is_explained_by_the_values_it_was_given(bank: Bank) -> None:
    """A function of one's own is called by its name; of very many values, the first and the last are shown."""
    features = ml.FeatureSet(
        "given",
        on=handbook.transactions,
        customer=handbook.transactions.by("customer_id").agg(
            middle=ml.median("amount", over=["1d", "7d"]),
            swing=ml.fold(swing, "amount", over="1d"),
            same=ml.seen("amount", over="7d"),
            most=ml.max_by("amount", by="terminal_id", over="1d"),
        ),
    )
    for i in range(12):
        bank.pays(f"t{i}", i / 2, amount=i + 0.25)
    words = {name: lab.explain(features, name, "t11", store=bank.store).words for name in features.names}
    assert words == {
        "customer_middle_1d": "median of amount, of 10.25, 11.25 = 10.75",
        "customer_middle_7d": "median of amount, of 0.25, 1.25, 2.25, …, 10.25, 11.25 = 5.75",
        "customer_swing_1d": "swing(amount), of 10.25, 11.25 = 1.0",
        "customer_same_7d_before": "whether amount was the same before (1 or 0), of 0.25, 1.25, 2.25, …, 9.25, 10.25 = 0.0",
        "customer_same_7d_ago": "seconds since amount was last the same, of 0.25, 1.25, 2.25, …, 9.25, 10.25 = missing",
        "customer_most_1d": "amount where terminal_id is largest, of (10.25, 7), (11.25, 7) = 11.25",
    }


def test_fields_and_functions_of_the_event_are_explained_by_its_fields(bank: Bank) -> None:
    bank.pays("t0", 0.5, amount=12.0)
    explanation = lab.explain(handbook.features, "amount", "t0", store=bank.store)
    assert (explanation.value, explanation.words) == (12.0, "amount of the event = 12.0")
    night = lab.explain(handbook.features, "during_night", "t0", store=bank.store)
    assert night.words == "during_night(time=2018-04-01T12:00:00Z) = 0.0" and not night.parts


def test_a_feature_or_event_that_is_not_there_is_named(bank: Bank) -> None:
    bank.pays("t0", 0)
    with pytest.raises(MlpkgError, match="did you mean 'customer_n_tx_7d'"):
        lab.explain(handbook.features, "customer_n_tx_7", "t0", store=bank.store)
    with pytest.raises(MlpkgError, match="there is no event 't9' of 'transactions'"):
        lab.explain(handbook.features, "amount", "t9", store=bank.store)


# -- previews, pictures, judgements ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["position", "time"])
def test_a_preview_of_rows_without_their_columns_says_which(name: str, bank: Bank) -> None:
    bank.pays("t0", 0)
    rows: Any = lab.events(handbook.transactions, store=bank.store).drop(columns=name)
    with pytest.raises(MlpkgError, match=f"no column '{name}'; give rows of lab.events"):
        lab.preview(handbook.features, rows, store=bank.store)


def test_a_picture_has_the_feature_as_it_was_at_each_event(bank: Bank) -> None:
    for i in range(8):
        bank.pays(f"t{i}", i, amount=5.0 * i, customer_id=i % 2)
    bank.hears("t3", True, 9)
    ax = lab.plot_timeline(handbook.features, "customer_avg_amount_30d", customer_id=1, store=bank.store)
    (line,) = ax.lines
    rows: Any = lab.events(handbook.transactions, store=bank.store)
    served = lab.preview(handbook.features, rows[rows["customer_id"] == 1], store=bank.store)
    assert np.array_equal(line.get_ydata(), served["customer_avg_amount_30d"])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["event", "fraud", "customer_avg_amount_30d"]
    with pytest.raises(MlpkgError, match="no event of customer_id=5"):
        lab.plot_timeline(handbook.features, "amount", customer_id=5, store=bank.store)


@pytest.fixture
def loaded_later(tmp_path: Path) -> Iterator[Any]:
    """A shop whose orders were loaded first, and after all of them their returns, with the times at which each arrived."""
    settings = Settings(state=tmp_path / "later")
    store = ml.open_store(settings)
    store.register("shop", habits)
    for i in range(20):
        body = {"id": f"o{i}", "time": iso(START + i * DAY), "customer": "an" if i % 3 else "bo", "amount": float(i)}
        store.accept(orders, body, arrived=START + i * DAY)
    for i in range(0, 20, 2):
        store.report(returned, {"id": f"o{i}", "returned": i % 4 == 0}, arrived=START + i * DAY + 2 * HOUR)
    with contextlib.closing(store):
        yield store


LATE = "all of orders.returned comes after these events in the log.*history='as_arrived'"


@pytest.mark.filterwarnings("error")
def test_a_history_that_was_loaded_later_is_seen_by_arrival(loaded_later: Any) -> None:
    rows: Any = lab.events(orders, store=loaded_later)
    known = lab.preview(habits, rows, store=loaded_later)
    trained = lab.training_set(habits, START, START + 30 * DAY, store=loaded_later)
    assert sum(known["returns_n_7d"].tolist()) > 0
    assert known["returns_n_7d"].tolist() == trained["returns_n_7d"].tolist()
    with pytest.raises(MlpkgError, match="there is no history='by_arrival'"):
        lab.preview(habits, rows, history="by_arrival", store=loaded_later)  # type: ignore[arg-type]


def test_as_logged_warns_of_what_was_loaded_later(loaded_later: Any) -> None:
    rows: Any = lab.events(orders, store=loaded_later)
    logged: Any = {"store": loaded_later, "history": "as_logged"}
    with pytest.warns(UserWarning, match=LATE):
        assert sum(lab.preview(habits, rows, **logged)["returns_n_7d"].tolist()) == 0
    with pytest.warns(UserWarning, match=LATE):
        lab.training_set(habits, START, START + 30 * DAY, **logged)
    with pytest.warns(UserWarning, match=LATE):
        assert lab.explain(habits, "returns_n_7d", "o9", **logged).value == 0


@pytest.mark.filterwarnings("error")
def test_an_explanation_by_arrival_gives_what_a_preview_by_arrival_does(loaded_later: Any) -> None:
    rows: Any = lab.events(orders, store=loaded_later)
    known = lab.preview(habits, rows, store=loaded_later).set_index("id")
    for event in ("o3", "o9", "o16"):
        for feature in habits.names:
            explanation = lab.explain(habits, feature, event, store=loaded_later)
            assert explanation.value == known.loc[event, feature] or explanation.value != explanation.value
    explanation = lab.explain(habits, "returns_dear_7d", "o9", store=loaded_later)
    assert set(explanation.rows.loc[explanation.rows["counts"], "id"]) == {"o6"}  # bo made o3 and o6 before


@pytest.mark.filterwarnings("error")
def test_a_history_that_came_as_it_happened_is_not_warned_of(shop_platform: Any) -> None:
    """Also of its first events, before which nothing was reported."""
    rows: Any = lab.events(orders, store=shop_platform)
    lab.preview(habits, rows.head(1), store=shop_platform)
    lab.explain(habits, "returns_n_7d", rows["id"].iloc[0], store=shop_platform)
    lab.training_set(habits, START, START + DAY, store=shop_platform)


def test_a_picture_joins_no_values_of_different_entities(bank: Bank) -> None:
    """The customers of a terminal are points, and so is what is made of them; the terminal's own features are lines."""
    for i in range(6):
        bank.pays(f"t{i}", i, customer_id=i % 2)
    names = ["customer_n_tx_7d", "terminal_n_tx_7d", "amount"]
    ax = lab.plot_timeline(handbook.features, names, terminal_id=7, store=bank.store)
    drawn = {line.get_label(): line.get_linestyle() for a in ax.figure.axes for line in a.lines}
    assert drawn == {"customer_n_tx_7d": "None", "terminal_n_tx_7d": "-", "amount": "-"}
    assert ax.figure.get_layout_engine() is not None  # nothing is cut off where it is saved


def test_an_entity_that_a_function_gives_is_named_by_it(shop_platform: Any, cli: Command) -> None:
    """A plot names the entity by the function; a timeline accepts the written form of the key, too."""
    shop_platform.register("mornings", mornings)
    ax = lab.plot_timeline(mornings, "morning_n_7d", of_morning=1, store=shop_platform)
    rows: Any = lab.events(orders, store=shop_platform)
    early = rows[rows["time"].dt.hour < 12]
    (line,) = [each for a in ax.figure.axes for each in a.lines]
    assert len(line.get_xdata()) == len(early) and line.get_linestyle() == "-"
    for named in ("of_morning=1", "of_morning(time)=1"):
        (timeline,) = cli("timeline", "mornings", named, "-n", 0, "--json").json["timelines"]
        assert [r["id"] for r in timeline["latest"]] == early.sort_values(["time", "position"])["id"].tolist()


def test_only_mature_outcomes_are_judged() -> None:
    now = pd.Timestamp.now("UTC")
    frame = pd.DataFrame(
        {
            "time": [now - pd.Timedelta(days=d) for d in (9, 8, 2, 1)],
            "fraud": pd.array([False, True, True, None], "boolean"),
        }
    )
    assert lab.mature(frame, handbook.frauds).index.tolist() == [0, 1]
