"""A streamed training set equals the one in memory, bit for bit; a backfilled history is seen as it was known then."""

import os
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import handbook
import numpy as np
import pandas as pd
import pytest
from bank import START, Bank
from command import Command
from project import Project

import mlpkg as ml
from mlpkg import lab
from mlpkg.lab import streaming
from mlpkg.lab.training import fingerprint
from mlpkg.settings import Settings
from mlpkg.times import DAY, HOUR, iso

SPAN = ("2018-04-01", "2018-07-01")
LONG = bool(os.environ.get("MLPKG_LONG"))


def same_in_both(features: ml.FeatureSet, into: Path, *span: Any, buckets: int = 7, **options: Any) -> pd.DataFrame:
    """The training set, which is the same from memory and from the stream."""
    whole = lab.training_set(features, *(span or SPAN), **options)
    written = lab.stream_training_set(
        features, *(span or SPAN), into=into, buckets=buckets, progress=False, **({"source": "log"} | options)
    )
    streamed = pd.read_parquet(into)
    assert written.count_rows() == len(whole) and fingerprint(written) == fingerprint(streamed) == fingerprint(whole)
    assert streamed.attrs == whole.attrs
    pd.testing.assert_frame_equal(streamed, whole, check_exact=True)
    for name in features.names:
        assert (streamed[name].to_numpy().view(np.int64) == whole[name].to_numpy().view(np.int64)).all()
    return whole


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages so small that a few weeks of payments have many."""
    for cls in (lab.Archive, streaming._LogPages):
        pages = cls.pages
        monkeypatch.setattr(cls, "pages", lambda *a, _pages=pages, **k: _pages(*a, **(k | {"rows": 500})))
    monkeypatch.setattr("mlpkg.lab.archive.PAGE_ROWS", 400)
    monkeypatch.setattr(streaming, "_NEAR_BITS", 7)


@pytest.mark.parametrize("history", ["as_arrived", "as_logged"])
def test_a_streamed_training_set_is_the_one_in_memory(
    stocked: Project, tmp_path: Path, small_pages: None, history: str
):
    with closing(ml.open_store(stocked.settings)) as store:
        outcomes = [handbook.frauds]
        lab.Archive(stocked.state).export(store, [handbook.transactions], outcomes, ["fraud"])
        options: dict[str, Any] = {"store": store, "history": history}
        for source in ("log", "archive"):
            rows = same_in_both(handbook.features, tmp_path / source, source=source, **options)
            assert len(rows) > 7_000 and bool(rows["label"].any()) and any(rows["terminal_risk_30d"] > 0)
        span = ("2018-05-20", "2018-05-24")
        early = same_in_both(handbook.early_features, tmp_path / "early", *span, as_of="2018-05-29", **options)
        assert set(early["label"].isna()) == {True, False}
        same_in_both(handbook.features, tmp_path / "one", *span, buckets=1, **options)
        same_in_both(handbook.features, tmp_path / "many", *span, buckets=600, **options)


@pytest.mark.parametrize("source", ["log", "archive"])
def test_recorded_moments_and_reports_that_waited_are_streamed_too(bank: Bank, tmp_path: Path, source: str):
    bank.pays("old", 0)
    bank.hears("later", True, 1)  # about an event that comes a day after
    body = bank.payment("it", 8)
    bank.store.accept(handbook.transactions, body, arrived=START + 8 * DAY)
    bank.hears("old", True, 8)
    bank.store.accept(handbook.transactions, bank.payment("later", 2), arrived=START + 3 * DAY)
    assert bank.decider.decide(body, arrived=START + 8 * DAY).features["terminal_risk_7d"] == 1.0
    bank.pays("end", 9.5)
    lab.Archive(bank.store.settings.state).export(bank.store, [handbook.transactions], [handbook.frauds], ["fraud"])
    rows = same_in_both(handbook.features, tmp_path / "rows", source=source, store=bank.store).set_index("id")
    assert rows["terminal_risk_7d"].to_dict() == {"old": 0.0, "it": 1.0, "later": 0.0, "end": 1.0}
    assert rows["label"].to_dict() == {"old": True, "it": False, "later": True, "end": False}
    same_in_both(
        handbook.features, tmp_path / "logged", source=source, store=bank.store, history="as_logged", buckets=2
    )


class Visit(ml.Event):
    customer_id: int
    page: str | None = None


def test_features_over_another_source_and_with_texts_are_streamed_too(bank: Bank, tmp_path: Path, small_pages: None):
    visits = ml.Source("visits", Visit, retention="30d")
    features = ml.FeatureSet(
        "fraud",
        on=handbook.transactions,
        visits=visits.by("customer_id").agg(
            n=ml.count(over="7d", where="page == 'help'"), gap=ml.nunique("page", over="30d")
        ),
        customer=handbook.transactions.by("customer_id").agg(n=ml.count(over="7d"), sum=ml.sum("amount", over="7d")),
        amount=ml.field("amount"),
    )
    bank.store.register("visited", features)
    draw = random.Random(1)
    for k in range(300):
        fields = {"customer_id": draw.randrange(9), "time": iso(START + k * 2 * HOUR)}
        bank.store.accept(
            visits, fields | {"id": f"v{k}", "page": draw.choice(["help", "home", None])}, arrived=START + k * 2 * HOUR
        )
        bank.store.accept(
            handbook.transactions,
            bank.payment(f"p{k}", k / 12, **fields),
            arrived=START + k * 2 * HOUR + draw.randrange(3) * DAY,
        )
    archive = lab.Archive(bank.store.settings.state)
    archive.export(bank.store, features.sources, [handbook.frauds])
    for source in ("log", "archive"):
        rows = same_in_both(features, tmp_path / source, source=source, store=bank.store)
        assert any(rows["visits_n_7d"] > 2) and any(rows["visits_gap_30d"] == 2)
    of_log = bank.store.history([visits], []).events["visits"]
    read = list(archive.batches(visits, ["page"]))
    assert np.concatenate([e.columns["page"] for e in read]).tolist() == of_log.columns["page"].tolist()
    assert [i for e in read for i in e.ids] == of_log.ids and set(read[0].columns) == {"page"}


Sent = tuple[str, dict[str, Any], int]


def say(store: Any, sent: list[Sent]) -> None:
    """Put events and reports into a log in the given order, with the arrivals that they declare."""
    for stream, body, arrived in sent:
        if stream == "fraud":
            store.report(handbook.frauds, body, arrived=arrived)
        else:
            store.accept(handbook.transactions, body, arrived=arrived)


def payments(seed: int, count: int = 250) -> list[Sent]:
    """Payments in order of their time, up to three days late, and reports of some; the grid is so coarse that times tie."""
    draw = random.Random(seed)
    sent: list[Sent] = []
    for k in range(count):
        time = START + draw.randrange(30 * 8) * 3 * HOUR
        body = {"id": f"e{k}", "time": iso(time), "customer_id": draw.randrange(4), "terminal_id": draw.randrange(3)}
        late = draw.choice([0, 0, 3, 9, 24, 72]) * HOUR
        sent.append(("payment", body | {"amount": draw.randrange(1, 9999) / 100}, time + late))
        if draw.random() < 0.3:
            sent.append(("fraud", {"id": f"e{k}", "fraud": draw.random() < 0.6}, time + draw.randrange(60) * 3 * HOUR))
    return sorted(sent, key=lambda s: (s[0] == "fraud", s[1].get("time", "")))


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Any]:
    made: list[Any] = []

    def make(sent: list[Sent]) -> Any:
        made.append(ml.open_store(Settings(state=tmp_path / f"store{len(made)}")))
        made[-1].register("fraud", handbook.features)
        say(made[-1], sent)
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.mark.parametrize("features", [handbook.features, handbook.early_features], ids=lambda f: f.name)
@pytest.mark.parametrize("seed", range(4 if LONG else 2))
def test_a_backfill_is_seen_as_if_it_had_been_sent_live(
    stores: Any, tmp_path: Path, features: ml.FeatureSet, seed: int
):
    """Sent in order of arrival, the log says what was known; loaded in order of time, only arrivals can say it."""
    sent = payments(seed)
    backfilled, live = stores(sent), stores(sorted(sent, key=lambda s: s[2]))
    options: dict[str, Any] = {"as_of": "2018-04-20"}
    as_arrived = same_in_both(features, tmp_path / "a", store=backfilled, **options)
    as_logged = lab.training_set(features, *SPAN, store=backfilled, history="as_logged", **options)
    of_live = lab.training_set(features, *SPAN, store=live, **options)
    pd.testing.assert_frame_equal(as_arrived, of_live, check_exact=True)
    assert not as_arrived[features.names].equals(as_logged[features.names])


def test_a_run_that_dies_leaves_nothing_that_looks_whole(
    stocked: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    into, half = tmp_path / "rows", tmp_path / "rows.part"
    with closing(ml.open_store(stocked.settings)) as store:
        with monkeypatch.context() as broken:
            broken.setattr(pd.DataFrame, "to_parquet", lambda *a, **k: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                same_in_both(handbook.features, into, "2018-05-20", "2018-05-22", store=store)
        assert not into.exists() and not half.exists()
        (half / "rows").mkdir(parents=True)  # of one that was killed
        (half / "rows" / "000000.parquet").write_bytes(b"PAR1")
        same_in_both(handbook.features, into, "2018-05-20", "2018-05-22", store=store)
        assert not half.exists()
        with pytest.raises(ml.MlpkgError, match="exists already"):
            lab.stream_training_set(handbook.features, *SPAN, into=into, store=store)


def test_the_command_writes_a_folder_or_a_file(stocked: Project, cli: Command):
    span = ("--from", "2018-05-20", "--to", "2018-05-22", "--history", "as_logged")
    assert cli("training-set", "fraud", *span, "-o", "rows.parquet").status == 0
    made = cli("training-set", "fraud", *span, "--into", "rows")
    assert made.status == 0 and "15 features written to rows" in made.out, made.err
    from_file, other = (pd.read_parquet(stocked.folder / name) for name in ("rows.parquet", "rows"))
    pd.testing.assert_frame_equal(from_file, other, check_exact=True)
    assert cli("training-set", "fraud", *span).status == 2
    cli("training-set", "fraud", "--from", "2001-01-01", "--to", "2001-01-02", "--into", "none").said_one_line(
        "there is nothing"
    )


def test_without_a_key_only_the_present_event_is_streamed(stocked: Project, tmp_path: Path):
    night = ml.on_demand(handbook.during_night)
    features = ml.FeatureSet("present", on=handbook.transactions, amount=ml.field("amount"), night=night)
    with closing(ml.open_store(stocked.settings)) as store:
        same_in_both(features, tmp_path / "rows", "2018-05-20", "2018-05-22", store=store)


def test_an_outcome_that_was_not_exported_is_missed(stocked: Project, tmp_path: Path):
    with closing(ml.open_store(stocked.settings)) as store:
        lab.Archive(stocked.state).export(store, [handbook.transactions], [])
        with pytest.raises(ml.MlpkgError, match=r"has no transactions\.fraud"):
            lab.stream_training_set(handbook.features, *SPAN, into=tmp_path / "rows", store=store, progress=False)
        with pytest.raises(ml.MlpkgError, match="as_it_was"):
            lab.training_set(handbook.features, *SPAN, store=store, history="as_it_was")  # type: ignore[arg-type]
    assert not list(tmp_path.glob("rows*"))


def test_a_simulated_archive_is_streamed_with_bounded_buckets(tmp_path: Path):
    def draw(rng: np.random.Generator, n: int) -> dict[str, Any]:
        ids = {"customer_id": rng.integers(0, 90, n), "terminal_id": rng.integers(0, 40, n)}
        return ids | {"amount": rng.integers(1, 9_999, n) / 100}

    archive = lab.streaming.simulate_archive(
        tmp_path, handbook.transactions, 12_000, draw, start="2018-04-01", days=60, late=0.2, page=2_500
    )
    history = archive.history([handbook.transactions], [handbook.frauds])
    events = history.events["transactions"]
    assert len(events) == 12_000 and (np.diff(events.arrived) >= 0).all() and (np.diff(events.time) < 0).any()
    written = lab.stream_training_set(
        handbook.features, *SPAN, into=tmp_path / "rows", source=archive, buckets=9, progress=False
    )
    rows = written.to_table().to_pandas()
    expected = [(t, len(i), i) for i, t in zip(events.ids, events.time.tolist(), strict=True) if t >= START]
    assert rows["id"].tolist() == [i for _, _, i in sorted(expected)]


def daily(time):
    return time // DAY % 7


def test_keys_of_several_fields_formulas_and_decisions_are_streamed_too(bank: Bank, tmp_path: Path, small_pages: None):
    paid = ml.Source("transactions", handbook.Transaction, retention="90d", allowed_lateness="3d")
    frauds, decided = paid.outcome("fraud", bool, default=False, matures_after="7d"), paid.decisions("fraud")
    features = ml.FeatureSet(
        "fraud",
        on=paid,
        pair=paid.by("customer_id", "terminal_id").agg(
            n=ml.count(over=["7d", "30d"]), mean=ml.mean("amount", over="30d")
        ),
        weekday=paid.by("customer_id", daily).agg(n=ml.count(over="30d")),
        acted=decided.by("customer_id").agg(last=ml.last("action", over="7d"), score=ml.max("score", over="7d")),
        truth=frauds.by("terminal_id", delay="1d").agg(n=ml.count(over="30d"), share=ml.mean("fraud", over="30d")),
        more=ml.feature("pair_n_7d") / ml.feature("pair_n_30d"),
        against=ml.field("amount") - ml.feature("pair_mean_30d"),
    )
    draw = random.Random(2)
    for k in range(150):
        ids = {
            "customer_id": draw.randrange(4),
            "terminal_id": draw.randrange(3),
            "amount": draw.randrange(1, 40_000) / 100,
        }
        bank.pays(f"p{k}", k / 6, **ids)
        if k % 3 == 2:
            bank.hears(
                f"p{k // 3 + draw.randrange(2) * 50}", draw.random() < 0.5, k / 6
            )  # of some before they are paid
    lab.Archive(bank.store.settings.state).export(bank.store, [paid], [frauds], ["fraud"])
    options: dict[str, Any] = {"source": "archive", "store": bank.store}
    for history in ("as_arrived", "as_logged"):
        rows = same_in_both(features, tmp_path / history, history=history, **options)
        assert len(set(rows["acted_last_7d"])) > 1 and any(rows["acted_score_7d"].notna())
        assert any(rows["pair_n_30d"] > 5) and all(rows["against"].notna()) and any(rows["more"] < 1)


@pytest.mark.parametrize("history", ["as_arrived", "as_logged"])
def test_corrections_are_streamed_too(bank: Bank, tmp_path: Path, history: str):
    """Also one of a report that came before its event."""
    bank.hears("b", True, 1)
    bank.pays("a", 0)
    bank.pays("b", 2)
    bank.hears("a", True, 8)
    bank.pays("c", 9.25)
    for id, fraud, day in (("a", False, 10), ("b", False, 10), ("b", True, 11)):
        body = {"id": id, "fraud": fraud, "corrects": True}
        bank.store.report(handbook.frauds, body, arrived=START + day * DAY)
    bank.pays("d", 13)
    archive = lab.Archive(bank.store.settings.state)
    archive.export(bank.store, [handbook.transactions], [handbook.frauds], ["fraud"])
    for source in ("log", "archive"):
        for day, labels in ((9, [True, True]), (10, [False, False]), (11, [False, True])):
            options: dict[str, Any] = {"source": source, "store": bank.store, "history": history}
            into = tmp_path / f"{source}{day}"
            rows = same_in_both(handbook.features, into, as_of=START + day * DAY, **options).set_index("id")
            assert rows["label"][["a", "b"]].tolist() == labels
            assert rows["terminal_risk_30d"].tolist() == [0.0, 0.0, 1.0, 0.5]
