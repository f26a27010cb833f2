"""A week of card payments through Kafka: features as in the training set, decisions that verify, and the same bits as embedded.

The short form plays two days, the long form (MLPKG_LONG) the whole week.
"""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import handbook
import pandas as pd
import pytest
from bank import booster, put_live

import mlpkg as ml
from mlpkg import lab
from mlpkg.decisions import AS_RECORDED, Decider, HistoryLoader, replay, replay_steps, streams_of, verify
from mlpkg.decisions.record import decode_decision
from mlpkg.lab.ingest import ingest_file
from mlpkg.lab.training import fingerprint
from mlpkg.settings import Settings
from mlpkg.store import Store, decisions_of, open_archive, open_store
from mlpkg.times import DAY, instant

if TYPE_CHECKING:
    from local_servers.s3_server import S3

FEATURES = handbook.features.names
START = instant("2018-05-27")
END = START + (7 if os.environ.get("MLPKG_LONG") else 2) * DAY


@pytest.fixture
def history(simulated: Path, tmp_path: Path) -> Iterator[Store]:
    """The payments in an embedded store, none decided."""
    with closing(open_store(Settings(state=tmp_path / "history"))) as store:
        ingest_file(handbook.fraud, simulated, store)
        yield store


@pytest.fixture
def store(on_servers: Settings, s3_server: "S3", bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store on servers, with an archive on object storage."""
    for name, value in s3_server.storage_options().items():
        monkeypatch.setenv(name.upper(), value)
    with closing(open_store(on_servers.model_copy(update={"archive": f"{bucket}/archive"}))) as made:
        yield made


def play(source: Store, target: Store, start: int, end: int) -> None:
    """Send what arrived in a stretch of one log to another store, in that order, with what arrived before loaded first."""
    loader, decider = HistoryLoader(streams_of(handbook.fraud), target), Decider(handbook.fraud, target)
    for step in replay_steps(handbook.fraud, source, start, end):
        if step.kind == "load":
            loader.add(step.entry)
            continue
        loader.flush()
        if step.kind == "decide":
            decider.decide(step.body, clock=step.arrived)
        elif step.kind == "report":
            target.report(handbook.frauds, step.body, arrived=step.arrived, clock=step.arrived)


def learned(store: Store) -> Any:
    """A model of the payments before the week."""
    rows = lab.training_set(handbook.features, "2018-04-01", "2018-05-20", store=store, as_of="2018-05-27")
    rows = rows.dropna(subset=["label"])
    return booster(handbook.features, rows[FEATURES].to_numpy(float), rows["label"].to_numpy(bool))


def as_served(store: Store) -> Any:
    """The features and the score of each decision, as recorded."""
    records = [decode_decision(e.body) for e in store.read(streams=[decisions_of("fraud")])]
    rows = pd.DataFrame([{"id": r.event, **r.features, "score": r.score} for r in records])
    return rows.astype({f.name: "int64" if f.integer else "float64" for f in handbook.features.features})


def straight_from_log(store: Any, *span: int) -> Any:
    archived = store.settings
    store.settings = archived.model_copy(update={"archive": ""})
    rows = lab.training_set(handbook.features, *span, as_of=END, store=store)
    store.settings = archived
    return rows


def test_a_week_through_kafka_is_the_training_set_to_the_bit(history: Store, store: Store, tmp_path: Path):
    put_live(handbook.fraud, store, learned(history))
    play(history, store, START, END)
    served = as_served(store)
    assert len(served) > 100 * (END - START) // DAY and served["score"].nunique() > 8

    checked = verify(handbook.fraud, store)
    assert (checked.decisions, checked.mismatches, checked.fallbacks) == (len(served), 0, {})

    rows = straight_from_log(store, START, END)
    assert rows["id"].tolist() == served["id"].tolist() and rows["terminal_risk_7d"].max() > 0
    pd.testing.assert_frame_equal(rows[FEATURES], served[FEATURES], check_exact=True)
    of_history = lab.training_set(handbook.features, START, END, as_of=END, store=history)
    assert fingerprint(of_history) == fingerprint(rows)

    new = open_archive(store.settings.archive).write(store)
    assert new["decisions.fraud"] == len(served)
    assert fingerprint(lab.training_set(handbook.features, START, END, as_of=END, store=store)) == fingerprint(rows)

    done = replay(handbook.fraud, store, START, END, tmp_path / "embedded", model=AS_RECORDED)
    assert (done.equal, done.decided, done.decisions, done.refused) == (len(served), len(served), len(served), 0)
    with closing(ml.open_store(Settings(state=tmp_path / "embedded"))) as embedded:
        pd.testing.assert_frame_equal(as_served(embedded), served, check_exact=True)
        assert fingerprint(straight_from_log(embedded, START, END)) == fingerprint(rows)
