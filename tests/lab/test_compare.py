"""Two models on the same rows, and one decision whole."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import handbook
import lightgbm as lgb
import matplotlib
import numpy as np
import pandas as pd
import pytest
from bank import START, Bank, booster, put_live
from command import Command
from project import Project

import mlpkg as ml
from mlpkg import decisions, lab, models
from mlpkg.errors import MlpkgError
from mlpkg.lab.bootstrap import FEW_ENTITIES, MeanMeasure, RankMeasure, bootstrap
from mlpkg.lab.ingest import ingest_file
from mlpkg.settings import Settings
from mlpkg.times import DAY, instant, iso, now

matplotlib.use("Agg")

FEATURES = handbook.features.names
FROM, TO = "2018-05-21", "2018-06-04"
terse = ml.FeatureSet(
    "fraud", on=handbook.transactions, **{k: handbook.features.members[k] for k in ("customer", "amount")}
)


def keep(store: Any, features: ml.FeatureSet, learned: Any) -> str:
    """Save a model without making it live."""
    return models.save(store.settings.state, "fraud", learned, features, metrics={}, lineage={}, policy={})


@dataclass
class Fortnight:
    """Two weeks that a model decided, and candidates that did not."""

    store: Any
    live: str
    terse: str  # knows less
    blind: str  # was told the contrary about payments of at most 30

    def compare(self, a: Any, b: Any, **how: Any) -> lab.Comparison:
        return lab.compare(a, b, FROM, TO, use_case=handbook.fraud, store=self.store, **how)


def learned(features: ml.FeatureSet, rows: Any, label: Any) -> lgb.Booster:
    """A model with leaves enough to tell small payments from others throughout."""
    data = lgb.Dataset(rows[features.names].to_numpy(float), label.astype(int), feature_name=features.names)
    return lgb.train({"objective": "binary", "verbose": -1, "num_threads": 1, "seed": 0}, data, 40)


@pytest.fixture(scope="module")
def fortnight(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fortnight]:
    folder = tmp_path_factory.mktemp("fortnight")
    with closing(ml.open_store(Settings(state=folder / "history"))) as history:
        ingest_file(handbook.fraud, simulated, history)
        rows: Any = lab.training_set(handbook.features, "2018-04-01", FROM, store=history)
        label, small = rows["label"].to_numpy(bool), rows["amount"].to_numpy() <= 30
        live = put_live(handbook.fraud, history, learned(handbook.features, rows, label))
        decisions.replay(handbook.fraud, history, instant(FROM), instant(TO), folder / "state")
    with closing(ml.open_store(Settings(state=folder / "state"))) as store:
        blind, knows_less = learned(handbook.features, rows, label ^ small), learned(terse, rows, label)
        yield Fortnight(store, live, keep(store, terse, knows_less), keep(store, handbook.features, blind))


def bits(frame: Any) -> np.ndarray:
    return np.column_stack([frame[name].to_numpy().view(np.int64) for name in frame])


def recorded(store: Any, features: ml.FeatureSet) -> Any:
    """The features as decisions recorded them."""
    types = {f.name: "int64" if f.integer else "float64" for f in features.features}
    return lab.decisions(use_case=handbook.fraud, store=store)[features.names].astype(types)


# -- intervals -------------------------------------------------------------------------------------------------------


def drawn(seed: int, entities: int = 60, rows: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entities, each hard or easy for both models and liking one of them; the second is worse by 0.2 in truth."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(entities), rows)
    a = rng.normal(0, 2, entities)[who] + rng.normal(0, 0.3, len(who))
    return who, a, a + 0.2 + rng.normal(0, 0.5, entities)[who] + rng.normal(0, 0.3, len(who))


def test_the_interval_covers_a_known_difference_as_often_as_it_says() -> None:
    """And would not, if the rows of one entity were taken for independent witnesses."""
    covered = {"entities": 0, "rows": 0}
    for seed in range(100):
        who, a, b = drawn(seed)
        for how, those in (("entities", who), ("rows", np.arange(len(who)))):
            (interval,) = bootstrap({"m": MeanMeasure(a, b)}, those, draws=300)["m"]
            covered[how] += interval.low < 0.2 < interval.high
    assert covered["entities"] >= 88
    assert covered["rows"] <= 70


def test_a_paired_interval_is_narrower_than_one_of_two_averages() -> None:
    who, a, b = drawn(1)
    intervals = bootstrap({"both": MeanMeasure(a, b), "a": MeanMeasure(0 * a, a), "b": MeanMeasure(0 * b, b)}, who)
    width = {name: interval.high - interval.low for name, (interval,) in intervals.items()}
    assert width["both"] < np.hypot(width["a"], width["b"]) / 3


def test_intervals_of_many_segments_hold_together() -> None:
    rng = np.random.default_rng(5)
    loud = {1: 0, 20: 0}
    for _ in range(60):
        a, who = rng.normal(0, 1, 2000), np.arange(2000)
        measure = {"m": MeanMeasure(a, a + rng.normal(0, 1, 2000))}
        for n in loud:
            intervals = bootstrap(measure, who, np.array_split(who, n), draws=300)["m"]
            loud[n] += any(p.low > 0 or p.high < 0 for p in intervals)
    assert max(loud.values()) <= 9  # 3 are expected of either; of twenty intervals of their own it would be 38


def test_many_positives_have_the_interval_that_all_their_scores_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    label = (rng.random(6000) < 0.5).astype(float)
    a, b = label + rng.normal(0, 1, 6000), label + rng.normal(0, 0.9, 6000)
    for by in ("auc", "average_precision"):
        widths = []
        for levels in (100_000, 1000):
            monkeypatch.setattr("mlpkg.lab.bootstrap.LEVELS", levels)
            (interval,) = bootstrap({"m": RankMeasure(by, label, a, b)}, np.arange(6000) // 6, draws=100)["m"]
            widths.append(interval.high - interval.low)
        assert widths[0] == pytest.approx(widths[1], rel=0.01)


def test_a_comparison_asked_for_twice_is_the_same(fortnight: Fortnight) -> None:
    first, again = (fortnight.compare("served", fortnight.terse, by="amount") for _ in range(2))
    pd.testing.assert_frame_equal(first.metrics, again.metrics)
    pd.testing.assert_frame_equal(first.segments, again.segments)


# -- two models ------------------------------------------------------------------------------------------------------


def test_a_model_against_itself_differs_nowhere(fortnight: Fortnight) -> None:
    comparison = fortnight.compare(fortnight.live, fortnight.live, by=["amount", "during_night"])
    for table in (comparison.metrics, comparison.segments):
        known = table[table["why"] == ""]
        assert len(known) >= 7 and not known[["difference", "low", "high"]].to_numpy().any()
        assert not table["difference"].fillna(0).any() and set(table["verdict"]) == {""}
    assert not len(comparison.changed) and "0 decisions would change" in repr(comparison)


def test_what_was_served_is_what_was_recorded(fortnight: Fortnight) -> None:
    comparison = fortnight.compare("served", fortnight.live)
    served: Any = lab.decisions(use_case=handbook.fraud, as_of=now(), store=fortnight.store)
    assert comparison.rows["id"].tolist() == served["id"].tolist() and len(served) > 500
    for side in "ab":  # the model that served gives it again
        assert comparison.rows[f"score_{side}"].tolist() == served["score"].tolist()
        assert comparison.rows[f"action_{side}"].tolist() == served["action"].tolist()
    assert comparison.rows["fraud"].tolist() == served["fraud"].tolist()


def test_each_model_has_the_features_of_its_own_definition(fortnight: Fortnight, tmp_path: Path) -> None:
    """The features are those that the model would have got online; `verify` recomputes them without a difference."""
    comparison = fortnight.compare(fortnight.live, fortnight.terse)
    store, again = fortnight.store, tmp_path / "again"
    decisions.replay(handbook.fraud, store, instant(FROM), instant(TO), again, model=fortnight.terse)
    with closing(ml.open_store(Settings(state=again))) as again:
        assert decisions.verify(handbook.fraud, again).models == {fortnight.terse: len(comparison.rows)}
        assert decisions.verify(handbook.fraud, again).mismatches == 0
        assert (bits(comparison.features[1]) == bits(recorded(again, terse))).all()
        scores = lab.decisions(use_case=handbook.fraud, store=again)["score"]
    assert comparison.rows["score_b"].tolist() == scores.tolist()
    assert decisions.verify(handbook.fraud, fortnight.store).mismatches == 0
    assert (bits(comparison.features[0]) == bits(recorded(fortnight.store, handbook.features))).all()


def test_a_candidate_that_is_worse_in_one_segment_is_flagged_there_only(fortnight: Fortnight) -> None:
    comparison = fortnight.compare("served", fortnight.blind, by={"amount": [30, 80]})
    assert set(comparison.stands_out["segment"]) == {"≤ 30"} and set(comparison.stands_out["verdict"]) == {"worse"}
    assert set(comparison.stands_out["measure"]) >= {"log_loss", "brier", "auc"}
    assert comparison.segments.groupby("segment")["rows"].max().sum() == len(comparison.rows)
    figure = comparison.plot(["log_loss", "auc"])
    for ax, better in zip(figure.axes, (-1, 1), strict=True):  # the right is better in each panel
        left, right = ax.get_xlim()
        assert np.sign(right - left) == better
        colours = [line.get_color() for line in ax.lines if line.get_marker() == "o"]
        assert colours[1:] == ["tab:red", "0.6", "0.6"]


def test_what_actions_cost_is_judged_by_the_truth(fortnight: Fortnight) -> None:
    def costs(probability: Any, event: Any) -> dict[str, Any]:
        return {"approve": probability * event.amount, "review": 4.0, "decline": (1 - probability) * 10}

    comparison = fortnight.compare("served", fortnight.terse, costs=costs)
    rows: Any = comparison.rows
    for side in "ab":
        action, truth = rows[f"action_{side}"], rows["fraud"].astype(float)
        paid = np.select([action == "approve", action == "review"], [truth * rows["amount"], 4.0], (1 - truth) * 10)
        assert comparison.metrics.loc["cost", side] == pytest.approx(paid.mean(), rel=1e-12)
    with pytest.raises(MlpkgError, match="have no action"):
        fortnight.compare("served", fortnight.terse, costs=lambda p, event: {"approve": p})


def test_the_decisions_that_would_change_are_listed(fortnight: Fortnight) -> None:
    comparison = fortnight.compare("served", fortnight.blind)
    changed = comparison.changed
    assert changed.columns.tolist() == ["id", "time", "score_a", "score_b", "action_a", "action_b", "fraud"]
    assert len(changed) == (comparison.rows["action_a"] != comparison.rows["action_b"]).sum() > 20
    amounts = comparison.rows.loc[changed.index, "amount"]
    assert (changed["action_b"] == [handbook.policy(s, ml_event(a)) for s, a in zip(changed["score_b"], amounts)]).all()


def ml_event(amount: float) -> Any:
    return type("event", (), {"amount": amount})


def test_a_segment_may_be_a_feature_of_either_model(fortnight: Fortnight) -> None:
    comparison = fortnight.compare(fortnight.terse, fortnight.live, by=["terminal_n_tx_7d", "customer_n_tx_1d"])
    assert set(comparison.segments["by"]) == {"terminal_n_tx_7d", "customer_n_tx_1d"}
    with pytest.raises(MlpkgError, match="no column 'amuont'; did you mean 'amount'"):
        fortnight.compare(fortnight.terse, fortnight.live, by="amuont")


def test_a_model_that_is_not_there_is_named(fortnight: Fortnight) -> None:
    with pytest.raises(MlpkgError, match="there is no model at"):
        fortnight.compare("served", "20180101T000000-00000000")


# -- what cannot be judged -------------------------------------------------------------------------------------------


def test_only_mature_rows_are_judged_and_the_others_counted(bank: Bank) -> None:
    for day in range(20):
        bank.pays(f"t{day}", day, customer_id=day)
    bank.hears("t19", True, 19.5)
    bank.store.accept(handbook.transactions, bank.payment("undecided", 3), arrived=START + 3 * DAY)
    span = (iso(START), iso(START + 20 * DAY))
    how: Any = {"use_case": handbook.fraud, "store": bank.store, "as_of": iso(START + 20 * DAY)}
    comparison = lab.compare("served", bank.version, *span, **how)
    assert comparison.left_out == {
        "more were not decided": 1,
        "were decided by the fallback": 0,
        "too young": 6,
        "not known": 0,
    }
    judged = comparison.rows[comparison.rows["judged"]]
    assert judged["id"].tolist() == [f"t{day}" for day in range(14)]
    assert "14 of 20 rows judged" in repr(comparison) and "6 too young" in comparison._repr_html_()
    assert comparison.metrics.loc["brier", "rows"] == 14 and comparison.metrics.loc["rate of approve", "rows"] == 20
    both = lab.compare(bank.version, bank.version, *span, **how, costs=lambda p, event: {"approve": 4.0, "decline": p})
    assert both.metrics.loc["cost", "rows"] == 15  # also where a price does not depend on the truth
    assert len(both.rows) == 21 and both.left_out == {"too young": 6, "not known": 0}


def test_with_one_class_or_few_rows_a_measure_is_null_and_says_why(bank: Bank) -> None:
    for day in range(FEW_ENTITIES - 1):
        bank.pays(f"t{day}", day, customer_id=day)
    span: Any = (bank.version, bank.version, iso(START), iso(START + 9 * DAY))
    metrics = lab.compare(*span, use_case=handbook.fraud, store=bank.store, by="terminal_id").metrics
    assert np.isnan(metrics.loc["auc", "a"]) and metrics.loc["auc", "why"] == "no positive"
    assert metrics.loc["brier", "a"] > 0 and metrics.loc["brier", "why"] == f"only {FEW_ENTITIES - 1} entities"
    assert np.isnan(metrics.loc["brier", "low"])
    early = lab.compare(*span, use_case=handbook.fraud, store=bank.store, as_of=iso(START))
    assert set(early.metrics["why"].head(4)) == {"no row can be judged"}
    none = lab.compare(bank.version, "served", "2017-01-01", "2017-02-01", use_case=handbook.fraud, store=bank.store)
    assert not len(none.rows) and none.metrics["why"].ne("").all() and none.plot() and repr(none)


# -- fields of text, fields that may be missing ----------------------------------------------------------------------


class Order(ml.Event):
    customer: str
    channel: str
    coupon: str | None = None
    items: int | None = None


orders = ml.Source("orders", Order, subject="customer", retention="30d", allowed_lateness="5d")
returned = orders.outcome("returned", bool)
habits = ml.FeatureSet("shop", on=orders, customer=orders.by("customer").agg(n=ml.count(over=["1d", "7d"])))


def by_the_words(score: float, event: Any) -> str:
    return f"{event.channel} {'plain' if event.coupon is None and event.items is None else event.coupon}"


shop = ml.UseCase("shop", habits, policy=by_the_words)


def test_the_policy_sees_events_as_they_were_sent(tmp_path: Path) -> None:
    with closing(ml.open_store(Settings(state=tmp_path))) as store:
        version = put_live(shop, store)
        decider = decisions.Decider(shop, store)
        for i in range(30):
            moment = START + i * DAY // 4
            more = {"coupon": "ten", "items": 2} if i % 3 == 0 else {}
            body = {"id": f"o{i}", "time": iso(moment), "customer": f"c{i % 12}", "channel": ("web", "shop")[i % 2]}
            decider.decide(body | more, arrived=moment)
        span: Any = ("served", version, START, START + 30 * DAY)
        comparison = lab.compare(*span, use_case=shop, store=store, by=["channel", "coupon", "items"])
    assert not len(comparison.changed) and set(comparison.rows["action_b"]) == {
        "web ten",
        "shop ten",
        "web plain",
        "shop plain",
    }
    assert comparison.rows["channel"].tolist()[:2] == ["web", "shop"]
    rows = comparison.segments.drop_duplicates(["by", "segment"]).set_index(["by", "segment"])
    assert set(rows.index) == {
        ("channel", "web"),
        ("channel", "shop"),
        ("coupon", "ten"),
        ("coupon", "missing"),
        ("items", "2"),
        ("items", "missing"),
    }
    assert comparison.left_out["not known"] == 30 and comparison.entity == "customer"


# -- one decision ----------------------------------------------------------------------------------------------------


def test_a_decision_is_shown_with_the_numbers_of_its_record(fortnight: Fortnight) -> None:
    served: Any = lab.decisions(use_case=handbook.fraud, store=fortnight.store)
    row = served.loc[served["score"].idxmax()]
    decision = lab.decision(row["id"], use_case=handbook.fraud, store=fortnight.store)
    values = decision.features["value"]
    assert values.to_dict() == decision.record.features and type(values["customer_n_tx_1d"]) is int
    assert [v if v is not None else np.nan for v in values] == pytest.approx([row[n] for n in FEATURES], nan_ok=True)
    assert decision.model and (decision.record.score, decision.record.action, decision.model.version) == (
        row["score"],
        row["action"],
        fortnight.live,
    )
    assert (
        decision.event["amount"] == row["amount"]
        and decision.features.loc["amount", "meaning"] == "amount of the event"
    )
    for text in (repr(decision), decision._repr_html_()):
        assert row["id"] in text and row["action"] in text and fortnight.live in text


def test_the_reasons_add_up_to_the_score(fortnight: Fortnight) -> None:
    served: Any = lab.decisions(use_case=handbook.fraud, store=fortnight.store)
    for id in served["id"].iloc[::200]:
        decision = lab.decision(id, use_case=handbook.fraud, store=fortnight.store)
        raw = decision.reasons["contribution"].sum()
        assert 1 / (1 + np.exp(-raw)) == pytest.approx(decision.record.score, rel=1e-9)
        assert set(decision.reasons.index) == {*FEATURES, "(base)"}
        sizes = decision.reasons["contribution"].abs().iloc[:-1]
        assert sizes.is_monotonic_decreasing


def test_other_models_are_asked_about_the_same_moment(fortnight: Fortnight) -> None:
    compared = fortnight.compare("served", fortnight.terse).rows
    for row in compared.iloc[::300].itertuples():
        rescored: Any = lab.decision(row.id, use_case=handbook.fraud, store=fortnight.store).by()
        assert set(rescored.index) == {fortnight.live, fortnight.terse, fortnight.blind}
        assert rescored.loc[fortnight.live].tolist() == [row.score_a, row.action_a, True]
        assert rescored.loc[fortnight.terse].tolist() == [row.score_b, row.action_b, False]


def test_what_a_decision_could_see_is_what_was_recorded(bank: Bank) -> None:
    """An event may be decided long after it was accepted; then it saw more than its own position."""
    bank.store.accept(handbook.transactions, bank.payment("early", 2), arrived=START + 2 * DAY)
    bank.store.accept(handbook.transactions, bank.payment("late", 1, amount=90.0), arrived=START + 3 * DAY)
    record = bank.pays("early", 2)
    assert record.features["customer_n_tx_7d"] == 2
    how: Any = {"use_case": handbook.fraud, "store": bank.store}
    decision = lab.decision("early", **how)
    explained: Any = decision.explain("customer_n_tx_7d")
    assert explained.value == 2 and set(explained.rows["id"]) == {"early", "late"}
    assert decision.by()["score"].tolist() == [record.score]
    compared = lab.compare("served", bank.version, START, START + 3 * DAY, **how)
    features: Any = compared.features[1]
    assert features["customer_n_tx_7d"].tolist() == [2] and compared.rows["score_b"].tolist() == [record.score]


def test_the_outcome_is_shown_with_when_it_was_reported(bank: Bank) -> None:
    for day in range(3):
        bank.pays(f"t{day}", day)
    bank.hears("t0", False, 4)
    report = {"id": "t0", "fraud": True, "corrects": True}
    bank.store.report(handbook.frauds, report, arrived=START + 6 * DAY)
    outcomes: Any = lab.decision("t0", use_case=handbook.fraud, store=bank.store).outcomes
    assert outcomes["value"].tolist() == [False, True]
    assert [t.isoformat()[:10] for t in outcomes["reported"]] == ["2018-04-05", "2018-04-07"]
    assert outcomes["note"].tolist() == ["reported, corrected later,", "reported"]
    silent = lab.decision("t1", use_case=handbook.fraud, as_of=now(), store=bank.store)
    assert "fraud = False (presumed, as nothing was reported)" in repr(silent)


def test_a_decision_that_was_not_made_is_refused(bank: Bank) -> None:
    bank.store.accept(handbook.transactions, bank.payment("t0", 1), arrived=START + DAY)
    for id, hint in (("t0", "there is such an event"), ("t1", "see lab.decisions")):
        with pytest.raises(MlpkgError, match=f"no decision on the event '{id}'; {hint}"):
            lab.decision(id, use_case=handbook.fraud, store=bank.store)


# -- replays by another model ----------------------------------------------------------------------------------------


def test_a_replay_may_be_decided_by_another_model(stocked: Project, cli: Command) -> None:
    with closing(ml.open_store(stocked.settings)) as store:
        other, live = keep(store, terse, booster(terse)), store.active_version("fraud")
    span = ("--from", "2018-05-27", "--to", "2018-05-29", "--into", "again")
    assert cli("replay", "fraud", *span, "--model", "20180101T000000-00000000").said_one_line("there is no model at")
    assert not (stocked.folder / "again").exists()
    done = cli("replay", "fraud", *span, "--model", other, "--json")
    assert done.status == 0 and done.json["decisions"] > 50
    with closing(ml.open_store(stocked.settings)) as store:
        assert store.active_version("fraud") == live
    again = stocked.folder / "again"
    assert cli("verify", "fraud", "--json", state=again).json["models"] == {other: done.json["decisions"]}
    with closing(ml.open_store(Settings(state=again))) as store:
        assert store.active_version("fraud") == other
        assert store.promotions("fraud")[-1]["why"].startswith("asked for at")
