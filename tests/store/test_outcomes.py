"""The truth comes late, twice, contradicts itself, or never comes."""

from contextlib import closing

import handbook
import msgspec
import pandas as pd
import pytest
from bank import START, Bank
from command import Command
from project import Project

import mlpkg as ml
from mlpkg import lab
from mlpkg.decisions import verify
from mlpkg.times import DAY


def served_is_trained(bank: Bank) -> None:
    """What the decisions of a bank saw is what a training set and a recomputation say they saw."""
    assert verify(bank.case, bank.store).mismatches == 0
    rows = lab.training_set(bank.case.features, "2018-04-01", "2018-08-01", store=bank.store)
    for row in rows.to_dict("records"):
        record = bank.store.entry(f"decisions.{bank.case.name}", row["id"])
        served = msgspec.json.decode(record.body)["features"]
        assert {k: v for k, v in served.items() if v is not None} == {k: row[k] for k in served if not pd.isna(row[k])}


def label(bank: Bank, id: str, as_of: float) -> bool | None:
    """What a training set says about an event, as known on a day."""
    rows = lab.training_set(
        bank.case.features, "2018-04-01", "2018-08-01", as_of=START + round(as_of * DAY), store=bank.store
    ).set_index("id")
    value = rows.loc[id, "label"]
    return None if pd.isna(value) else bool(value)


def test_silence_means_honest_once_the_payment_is_old_enough(early_bank: Bank):
    early_bank.pays("old", 0)
    assert early_bank.pays("a", 6.75).features["known_n_30d"] == 0
    at_seven = early_bank.pays("b", 7).features
    assert (at_seven["known_n_30d"], at_seven["known_risk_30d"]) == (1, 0.0)
    served_is_trained(early_bank)


def test_a_report_counts_before_silence_would(early_bank: Bank):
    """The delay of a feature is one thing, the age at which silence counts another."""
    early_bank.pays("old", 0)
    early_bank.hears("old", True, 0.5)
    half = early_bank.pays("a", 0.75).features
    assert (half["known_n_30d"], half["known_risk_30d"]) == (1, 1.0)
    assert half["later_n_30d"] == 0 and half["later_risk_30d"] is None
    day = early_bank.pays("b", 1).features
    assert (day["later_n_30d"], day["later_risk_30d"]) == (1, 1.0)
    served_is_trained(early_bank)


def test_an_honest_report_counts_before_silence_would(early_bank: Bank):
    early_bank.pays("old", 0)
    early_bank.hears("old", False, 2)
    features = early_bank.pays("a", 3).features
    assert (features["known_n_30d"], features["known_risk_30d"]) == (1, 0.0)
    served_is_trained(early_bank)


def test_a_late_report_corrects_what_was_presumed_from_then_on(bank: Bank):
    bank.pays("old", 0)
    before = bank.pays("a", 8)
    assert (before.features["terminal_n_tx_7d"], before.features["terminal_risk_7d"]) == (1, 0.0)
    bank.hears("old", True, 9)
    assert bank.pays("b", 10).features["terminal_risk_7d"] == 1.0
    assert bank.pays("a", 8) == before
    served_is_trained(bank)


def test_an_outcome_counts_from_its_place_in_the_log_not_from_the_time_it_names(bank: Bank):
    """Two payments of one moment, and the report between them: only the second can have known."""
    bank.pays("old", 0)
    first = bank.pays("a", 8)
    bank.hears("old", True, 8)
    second = bank.pays("b", 8)
    assert (first.features["terminal_risk_7d"], second.features["terminal_risk_7d"]) == (0.0, 1.0)
    served_is_trained(bank)


def test_a_report_may_come_before_its_event_and_waits_for_it(early_bank: Bank):
    receipt = early_bank.hears("fast", True, 0)
    assert receipt.new and receipt.waiting
    assert [(e.source, e.id) for e in early_bank.store.waiting()] == [("transactions.fraud", "fast")]
    own = early_bank.pays("fast", 1)
    assert early_bank.store.waiting() == []
    assert own.features["known_n_30d"] == 0, "the truth about an event is never known to the decision on it"
    assert early_bank.pays("next", 1).features["known_risk_30d"] == 1.0
    assert label(early_bank, "fast", as_of=1) is True
    served_is_trained(early_bank)


def test_a_waiting_report_survives_the_process(early_bank: Bank):
    early_bank.hears("fast", True, 0)
    again = Bank(early_bank.case, early_bank.store.settings.state)
    with closing(again.store):
        assert [e.id for e in again.store.waiting()] == ["fast"]
        again.pays("fast", 1)
    assert early_bank.store.waiting() == []


def test_a_report_never_counts_for_the_decision_on_its_own_event(early_bank: Bank):
    """Not even in a decision that is asked for again, or first asked for, after the report."""
    body = early_bank.payment("it", 1)
    early_bank.store.accept(handbook.transactions, body, arrived=START + DAY)
    early_bank.hears("it", True, 1)
    decision = early_bank.decider.decide(body, arrived=START + DAY)
    assert decision.features["known_n_30d"] == 0
    assert early_bank.decider.decide(body) == decision
    served_is_trained(early_bank)


def test_an_outcome_sent_again_changes_nothing(bank: Bank):
    bank.pays("old", 0)
    first = bank.hears("old", True, 1)
    size = bank.size
    again = bank.hears("old", True, 30)
    assert (again.new, again.position) == (False, first.position) and first.new
    assert bank.size == size
    assert bank.pays("a", 8).features["terminal_risk_7d"] == 1.0
    assert label(bank, "old", as_of=1) is True


def test_a_contradicting_outcome_is_a_conflict_and_changes_nothing(bank: Bank):
    bank.pays("old", 0)
    bank.hears("old", True, 1)
    size = bank.size
    with pytest.raises(ml.Rejected) as refused:
        bank.hears("old", False, 2)
    assert (refused.value.status, refused.value.event, refused.value.source) == (409, "old", "transactions.fraud")
    assert bank.size[0] == size[0]
    assert label(bank, "old", as_of=30) is True


def test_a_waiting_outcome_may_not_be_contradicted_either(bank: Bank):
    bank.hears("fast", True, 0)
    assert bank.hears("fast", True, 0).waiting
    with pytest.raises(ml.Rejected, match="other content"):
        bank.hears("fast", False, 0)
    assert len(bank.store.waiting()) == 1


@pytest.mark.parametrize(
    ("report", "field"),
    [
        ({}, "Fraud.id"),
        ({"fraud": True}, "Fraud.id"),
        ({"id": "", "fraud": True}, "Fraud.id"),
        ({"id": "old"}, "Fraud.fraud"),
        ({"id": "old", "fraud": None}, "Fraud.fraud"),
        ({"id": "old", "fraud": "yes"}, "Fraud.fraud"),
        ({"id": "old", "fraud": 1}, "Fraud.fraud"),
        ({"id": "old", "fraud": True, "time": "2018-04-01T00:00:00Z"}, "Fraud.time"),
    ],
)
def test_a_report_about_nothing_or_of_nothing_is_refused(bank: Bank, report: dict, field: str):
    bank.pays("old", 0)
    position, dead, _ = bank.size
    with pytest.raises(ml.Rejected) as refused:
        bank.store.report(handbook.frauds, report)
    assert (refused.value.field, refused.value.status, refused.value.source) == (field, 422, "transactions.fraud")
    assert bank.size == (position, dead + 1, 0)


def test_a_label_is_what_was_known_as_of_a_time(bank: Bank):
    bank.pays("honest", 0)
    bank.pays("fraud", 0)
    bank.pays("late", 0)
    bank.hears("fraud", True, 3)
    bank.hears("late", True, 10)
    known = {day: [label(bank, id, day) for id in ("honest", "fraud", "late")] for day in (2.5, 3, 6.5, 7, 9.5, 10)}
    assert known == {
        2.5: [None, None, None],
        3: [None, True, None],
        6.5: [None, True, None],
        7: [False, True, False],
        9.5: [False, True, False],
        10: [False, True, True],
    }


def test_as_of_bounds_the_labels_and_not_the_features(bank: Bank):
    bank.pays("old", 0)
    bank.hears("old", True, 1)
    bank.pays("new", 8)
    then, now = (
        lab.training_set(handbook.features, "2018-04-01", "2018-05-01", as_of=as_of, store=bank.store)
        for as_of in ("2018-04-01", None)
    )
    assert then["label"].isna().tolist() == [True, True] and now["label"].tolist() == [True, False]
    pd.testing.assert_frame_equal(then.drop(columns="label"), now.drop(columns="label"))
    assert now["terminal_risk_7d"].tolist() == [0.0, 1.0]


def test_the_command_line_reports_and_lists_what_waits(stocked: Project, cli: Command):
    first = cli("outcome", "fraud", "tx-9", "true", "--json")
    assert first.status == 0 and first.json["new"], first.err
    assert not cli("outcome", "fraud", "tx-9", "true", "--json").json["new"]
    cli("outcome", "fraud", "tx-9", "false").said_one_line("tx-9", "was used before for other content")
    cli("outcome", "fraud", "tx-9", "perhaps").said_one_line("Fraud.fraud", "perhaps", "not true or false")
    assert cli("outcome", "fraud", "not-yet", "true", "--json").json["waiting"]
    assert [w["id"] for w in cli("outcome", "fraud", "--waiting", "--json").json] == ["not-yet"]
    assert cli("outcome", "fraud", "tx-9").status == 2


def test_the_command_line_says_how_to_write_what_it_decides(stocked: Project, cli: Command):
    for text in ("", "tx-1", '{"id": "n1"', "payments.parquet"):
        cli("decide", "fraud", text).said_one_line("is not JSON", "a JSON object in quotes, or - to read it")
    cli("decide", "fraud", "[]").said_one_line("is a list, not an object")
    payment = '{"id": "n1", "time": "2018-06-09T12:00:00Z", "customer_id": 5, "terminal_id": 3, "amount": 57.16}'
    cli("decide", "fraud", payment).said_one_line("before the event arrived", "say --arrived TIME")
    cli("training-set", "fraud", "--from", "2018-05-02", "--to", "2018-05-01", "-o", "rows.csv").said_one_line(
        "there is nothing from 2018-05-02T00:00:00Z to 2018-05-01T00:00:00Z"
    )


def test_the_command_line_corrects_what_was_reported(stocked: Project, cli: Command):
    assert cli("outcome", "fraud", "tx-9", "True").out == "tx-9: noted\n"
    cli("outcome", "fraud", "tx-9", "false").said_one_line("was used before for other content", "say --corrects")
    assert cli("outcome", "fraud", "tx-9", "false", "--corrects").out == "tx-9: noted\n"
