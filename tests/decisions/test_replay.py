"""Training and serving give the same features and scores, and `replay` and `verify` recompute any record."""

import os
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import handbook
import numpy as np
import pandas as pd
import pytest
from bank import START, Bank, booster, put_live
from command import Command
from project import Project

import mlpkg as ml
from mlpkg import lab
from mlpkg.models import find, promote
from mlpkg.settings import Settings
from mlpkg.times import DAY, instant, iso

LONG = bool(os.environ.get("MLPKG_LONG"))
FEATURES = handbook.features.names


def decided(cli: Command, state: Path) -> pd.DataFrame:
    """The recorded decisions of a store: a row of features per event, as served, and the score."""
    records = cli("decisions", "fraud", "-n", 0, "--json", state=state).json
    rows = [{"id": r["event"], **r["features"], "score": r["score"]} for r in records]
    return pd.DataFrame(rows).astype({f.name: "int64" if f.integer else "float64" for f in handbook.features.features})


def bits(frame: pd.DataFrame) -> np.ndarray:
    """Every number of the features as its 64 bits."""
    return np.column_stack([frame[name].to_numpy().view(np.int64) for name in FEATURES])


def change_a_record(store: Path, event: str, feature: str, value: float) -> None:
    """Change one number of one recorded decision, as anyone with write access to the file can."""
    with closing(sqlite3.connect(store)) as db, db:
        changed = db.execute(
            "update log set body = json_set(body, '$.features.' || ?, json(?)) where id = ? "
            "and source = (select id from source where name = 'decisions.fraud')",
            (feature, repr(value), event),
        )
        assert changed.rowcount == 1


def test_a_replayed_week_is_the_training_set_to_the_bit(stocked: Project, cli: Command):
    """Everything from the command line: what a person would do to see whether notebook and production agree."""
    with closing(ml.open_store(stocked.settings)) as store:
        train = lab.training_set(handbook.features, "2018-04-01", "2018-05-25", store=store)
        learned = booster(handbook.features, train[FEATURES].to_numpy(float), train["label"].to_numpy(bool))
        version = put_live(handbook.fraud, store, learned)
    again = stocked.folder / "again"
    span = ("--from", "2018-05-27", "--to", "2018-06-03")
    replayed = cli("replay", "fraud", *span, "--into", again, "--json")
    assert replayed.status == 0, replayed.err
    assert replayed.json["decisions"] == replayed.json["events"] > 500
    assert replayed.json["outcomes"] > 5 and replayed.json["refused"] == 0
    made = cli("training-set", "fraud", *span, "-o", "week.parquet")
    assert made.status == 0, made.err

    expected, repeated = pd.read_parquet(stocked.folder / "week.parquet"), decided(cli, again)
    assert repeated["id"].tolist() == expected["id"].tolist()
    assert (bits(repeated) == bits(expected)).all()
    scores = np.asarray(learned.predict(expected[FEATURES].to_numpy(float), num_threads=1))
    assert repeated["score"].tolist() == scores.tolist()
    assert max(repeated["terminal_risk_7d"].tolist()) > 0 and len(set(repeated["score"])) > 20

    fine = cli("verify", "fraud", "--json", state=again)
    assert fine.status == 0, fine.err
    assert (fine.json["decisions"], fine.json["mismatches"]) == (len(expected), 0)
    assert fine.json["models"] == {version: len(expected)}

    victim = repeated["id"].iloc[123]
    was = float(repeated["customer_avg_amount_7d"].iloc[123])
    change_a_record(again / "mlpkg.db", victim, "customer_avg_amount_7d", float(np.nextafter(was, np.inf)))
    caught = cli("verify", "fraud", state=again)
    assert caught.status == 1
    assert f"{len(expected)} decisions by 1 models, 1 mismatches" in caught.out
    named = [line for line in caught.out.splitlines() if line.startswith("  ")]
    assert len(named) == 1 and victim in named[0] and "customer_avg_amount_7d" in named[0] and repr(was) in named[0]


def test_a_week_of_real_payments_replays_to_the_bit(real: Path, project: Project, cli: Command):
    """Real payments of some customers and terminals, with the months before the week, decided one by one."""
    rows = pd.read_parquet(real, filters=[("TX_DATETIME", "<", datetime(2018, 6, 8))])
    every = 50 if LONG else 150
    rows = rows.loc[(rows["TERMINAL_ID"] % every == 3) | (rows["CUSTOMER_ID"] % every == 3)]
    rows.to_parquet(project.folder / "part.parquet", index=False)
    with closing(ml.open_store(project.settings)) as store:
        lab.ingest_file(handbook.fraud, project.folder / "part.parquet", store)
        put_live(handbook.fraud, store)
        expected = lab.training_set(handbook.features, "2018-06-01", "2018-06-08", store=store)
    span = ("--from", "2018-06-01", "--to", "2018-06-08")
    replayed = cli("replay", "fraud", *span, "--into", "again", "--json")
    assert replayed.status == 0, replayed.err
    repeated = decided(cli, project.folder / "again")
    assert repeated["id"].tolist() == expected["id"].tolist() and len(repeated) > 100_000 // every
    assert (bits(repeated) == bits(expected)).all()
    assert cli("verify", "fraud", "--json", state=project.folder / "again").json["mismatches"] == 0


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("customer_n_tx_1d", "json_set(body, '$.features.customer_n_tx_1d', 7)"),
        (
            "customer_n_tx_1d",
            "json_set(body, '$.features.customer_n_tx_1d', 1.0)",
        ),  # the same number, but of another type
        ("terminal_risk_30d", "json_set(body, '$.features.terminal_risk_30d', null)"),
        ("amount", "json_remove(body, '$.features.amount')"),
        ("odd", "json_set(body, '$.features.odd', 1.0)"),
        ("score", "json_set(body, '$.score', 0.123)"),
        ("as_of", "json_set(body, '$.as_of[1]', 1)"),
    ],
)
def test_whatever_is_changed_in_a_record_is_named(bank: Bank, what: str, change: str):
    for k in range(5):
        bank.pays(f"tx-{k}", k * 2)
    bank.store.db.execute(f"update log set body={change} where id='tx-3' and about is not null")
    result = ml.decisions.verify(handbook.fraud, bank.store)
    assert result.mismatches == 1
    assert [(d.event, d.what) for d in result.differences] == [("tx-3", what)]


def test_an_event_changed_in_the_log_is_found_by_the_decisions_that_saw_it(bank: Bank):
    for k in range(5):
        bank.pays(f"tx-{k}", k)
    bank.store.db.execute("update log set body=json_set(body, '$.amount', 11.0) where id='tx-2' and about is null")
    result = ml.decisions.verify(handbook.fraud, bank.store)
    assert {d.event for d in result.differences} == {"tx-2", "tx-3", "tx-4"}
    assert {d.what for d in result.differences} >= {"amount", "customer_avg_amount_7d"}


def test_a_replay_needs_a_folder_without_a_store_and_a_live_model(stocked: Project, cli: Command):
    span = ("--from", "2018-05-27", "--to", "2018-05-28")
    cli("replay", "fraud", *span, "--into", stocked.state).said_one_line("a store in", "name a folder")
    cli("replay", "early", *span, "--into", "again").said_one_line(
        "no model is active for 'early'", "mlpkg train early"
    )
    assert not (stocked.folder / "again").exists()


def test_a_replay_leaves_the_store_that_it_reads_as_it_was(stocked: Project, cli: Command):
    with closing(ml.open_store(stocked.settings)) as store:
        before = store.last_position()
    assert cli("replay", "fraud", "--from", "2018-05-27", "--to", "2018-05-28", "--into", "again").status == 0
    with closing(ml.open_store(stocked.settings)) as store:
        assert store.last_position() == before


def test_decisions_in_another_process_are_the_same(stocked: Project):
    """`mlpkg decide` reads the same store, and is told what was decided here."""
    payment = '{"id": "new-1", "time": "2018-06-09T12:00:00Z", "customer_id": 5, "terminal_id": 3, "amount": 57.16}'
    other = stocked.run("decide", "fraud", "-", "--arrived", "2018-06-09T12:00:00Z", "--json", stdin=payment)
    assert other.status == 0, other.err
    with closing(ml.open_store(Settings(state=stocked.state))) as store:
        here = ml.decisions.Decider(handbook.fraud, store).decide(payment, arrived=instant("2018-06-09T12:00:00Z"))
    assert other.json["score"] == here.score and other.json["features"] == here.features


def something_to_learn() -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(1).uniform(0, 100, (300, len(FEATURES)))
    return rows, rows[:, 3] > 50


def replayed(bank: Bank, into: Path, first: float, last: float) -> Any:
    """A replay of what arrived between two days, and the store that it made."""
    done = ml.decisions.replay(bank.case, bank.store, START + int(first * DAY), START + int(last * DAY), into)
    again: Any = ml.open_store(Settings(state=into))
    with closing(again):
        assert ml.decisions.verify(bank.case, again).mismatches == 0
        records = [e.id for e in again.read(streams=["decisions.fraud"])]
    return done, records


def test_a_replay_goes_by_arrival_and_finds_what_was_decided(bank: Bank, tmp_path: Path):
    """An event that was loaded later and arrived earlier is history: decisions that saw it see it again, and it is not decided."""
    bank.pays("before", 4)
    for k in range(4):
        bank.pays(f"tx-{k}", 10 + k)
    bank.store.accept(handbook.transactions, bank.payment("old", 5), arrived=START + 5 * DAY)
    bank.hears("old", True, 6)
    for k in range(4, 10):
        assert bank.pays(f"tx-{k}", 10 + k).features["customer_n_tx_30d"] == k + 3
    bank.store.accept(handbook.transactions, bank.payment("older", 3), arrived=START + 3 * DAY)
    bank.pays("after", 30)
    bank.hears("tx-9", True, 31)
    done, records = replayed(bank, tmp_path / "again", 10, 20)
    assert (done.equal, done.decided, done.decisions, done.events) == (10, 10, 10, 10)
    assert records == [f"tx-{k}" for k in range(10)] and (done.refused, done.later) == (0, 1)
    assert done.warmed == 3, "what stands behind the last that is replayed is not seen"


def test_a_replay_says_what_came_out_differently(bank: Bank, tmp_path: Path, cli: Command):
    for k in range(10):
        bank.pays(f"tx-{k}", 10 + k)
    change_a_record(bank.store.settings.store_path, "tx-3", "customer_avg_amount_7d", 11.0)
    span = ("--from", "2018-04-11", "--to", "2018-04-21")
    answer = cli("replay", "fraud", *span, "--into", tmp_path / "again", state=bank.store.settings.state)
    assert answer.status == 0 and "9 of 10 equal to what was decided" in answer.out, answer.err


def test_each_decision_is_replayed_by_the_model_that_made_it(bank: Bank, tmp_path: Path, cli: Command):
    """Models take turns, a payment is not decided, and one record was changed."""
    first, second = (
        bank.version,
        put_live(handbook.fraud, bank.store, booster(handbook.features, *something_to_learn())),
    )
    for k in range(12):
        version = (first, second)[k // 3 % 2]
        promote(bank.store, find(bank.store.settings.state, "fraud", version), by="a test", why="a turn")
        assert bank.pays(f"tx-{k}", 10 + k).model["version"] == version
    bank.store.accept(handbook.transactions, bank.payment("undecided", 21.5), arrived=START + 22 * DAY)
    bank.pays("last", 22)
    span, state = ("--from", "2018-04-10", "--to", "2018-05-01", "--model", "recorded"), bank.store.settings.state
    done = cli("replay", "fraud", *span, "--into", tmp_path / "again", "--json", state=state)
    assert done.status == 0, done.err
    assert (done.json["equal"], done.json["decided"], done.json["decisions"], done.json["events"]) == (13, 13, 13, 14)
    fine = cli("verify", "fraud", "--json", state=tmp_path / "again").json
    assert fine["mismatches"] == 0 and fine["models"] == {first: 6, second: 7}
    change_a_record(bank.store.settings.store_path, "tx-3", "customer_avg_amount_7d", 11.0)
    caught = cli("replay", "fraud", *span, "--into", tmp_path / "other", state=state)
    assert caught.status == 1 and "12 of 13 equal" in caught.out
    assert "tx-3: customer_avg_amount_7d is recorded as 11.0, recomputed as 10.0" in caught.out


def test_an_event_that_was_decided_later_is_replayed_like_that(bank: Bank, tmp_path: Path):
    body = bank.payment("it", 10)
    bank.store.accept(handbook.transactions, body, arrived=START + 10 * DAY)
    bank.pays("other", 9.5)
    first = bank.decider.decide(body, arrived=START + 11 * DAY)
    assert first.features["customer_n_tx_30d"] == 2
    done, records = replayed(bank, tmp_path / "again", 9, 12)
    assert (done.equal, done.decided, done.decisions, records) == (2, 2, 2, ["other", "it"])


@pytest.mark.parametrize("backwards", [True, False])
def test_history_in_any_order_is_replayed_as_a_training_set_has_it(bank: Bank, tmp_path: Path, backwards: bool):
    """Newest first, or all reports before their events."""
    sent: list[Any] = []
    for k in range(60):
        moment = START + k * DAY // 4
        payment = bank.payment(f"p{k}", 0, time=iso(moment), customer_id=k % 3, terminal_id=k % 4)
        sent.append((moment, handbook.transactions, payment))
        if k % 5 == 0:
            sent.append((moment + DAY, handbook.frauds, {"id": f"p{k}", "fraud": True}))
    sent.sort(key=lambda s: (s[1] is handbook.transactions, s[0]))
    for moment, stream, body in sent[::-1] if backwards else sent:
        (bank.store.report if stream is handbook.frauds else bank.store.accept)(stream, body, arrived=moment)
    done, records = replayed(bank, tmp_path / "again", 8, 20)
    rows = lab.training_set(handbook.features, "2018-04-09", "2018-04-21", store=bank.store)
    assert records == rows["id"].tolist() and len(rows) == 28 and done.decided == 0
    with closing(ml.open_store(Settings(state=tmp_path / "again"))) as again:
        served = lab.training_set(handbook.features, "2018-04-09", "2018-04-21", store=again)
    assert (bits(served) == bits(rows)).all() and max(rows["terminal_risk_7d"].tolist()) > 0
