"""The truth comes late, twice, contradicts itself, or never comes."""

import handbook
import msgspec
import pandas as pd
from bank import START, Bank
from command import Command
from project import Project

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
