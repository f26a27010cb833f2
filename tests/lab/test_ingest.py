"""What is loaded from DataFrames and files is what the same events would be if they had been sent one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mlpkg as ml
from mlpkg import lab
from mlpkg.settings import Settings
from mlpkg.store import Batch
from mlpkg.times import iso


class Order(ml.Event):
    customer: str
    amount: ml.Money | None = None
    items: int | None = None


class Profile(ml.Event):
    customer: str
    limit: int
    segment: str | None = None


orders = ml.Source("orders", Order, retention="30d", allowed_lateness="365d")
profiles = ml.Table("profiles", Profile, key="customer", allowed_lateness="365d")
features = ml.FeatureSet(
    "orders",
    on=orders,
    customer=orders.by("customer").agg(spent=ml.sum("amount", over="7d"), n=ml.count(over="7d")),
    profile=profiles.latest("limit", "segment"),
)
case = ml.UseCase("orders", features, policy=lambda score, event: "send")


def frame() -> pd.DataFrame:
    """Orders with gaps, and a table that deletes a row; gaps are NaN, as pandas has them."""
    moments = pd.Timestamp("2020-01-01", tz="UTC") + pd.to_timedelta(np.arange(6), unit="h")
    return pd.DataFrame(
        {
            "source": ["profiles", "orders", "orders", "profiles", "orders", "orders"],
            "row": range(6),
            "id": list("abcdef"),
            "time": moments,
            "arrived": moments,
            "customer": ["an"] * 6,
            "limit": [500, np.nan, np.nan, np.nan, np.nan, np.nan],
            "segment": ["new", *[None] * 5],
            "deleted": [None, None, None, True, None, None],
            "amount": [np.nan, 1.5, np.nan, np.nan, 2.25, np.nan],
            "items": [np.nan, 2.0, np.nan, np.nan, np.nan, 7.0],
        }
    )


def entries(store: Any) -> list[tuple[Any, ...]]:
    return [(e.position, e.source, e.id, e.time, e.arrived, e.body) for e in store.read()]


def test_gaps_and_tables_are_loaded_as_they_would_have_been_sent(tmp_path: Path):
    loaded: Any = ml.open_store(Settings(state=tmp_path / "loaded"))
    done = lab.ingest(case, [frame()], loaded)
    assert done.refused == []

    sent: Any = ml.open_store(Settings(state=tmp_path / "sent"))
    sent.register(case.name, features)
    row: Any
    for _, row in frame().iterrows():
        source = case.sources[row["source"]]
        known = {
            k: v for k, v in row.items() if k in {"id", "deleted", *source.contract.model_fields} and not pd.isna(v)
        }
        whole = {k: int(v) for k, v in known.items() if k in ("limit", "items")}
        moment = row["time"].value // 1000
        sent.accept(source, known | whole | {"time": iso(moment)}, arrived=moment)
    assert entries(loaded) == entries(sent)

    rows = lab.training_set(features, "2020-01-01", "2020-01-02", store=loaded)
    np.testing.assert_array_equal(rows["profile_limit"], [500, 500, np.nan, np.nan])
    np.testing.assert_array_equal(rows["customer_spent_7d"], [1.5, 1.5, 3.75, 3.75])
    loaded.close()
    sent.close()


class Paid(ml.Event):
    customer: str
    amount: ml.Money


payments = ml.Source("payments", Paid, retention="30d", allowed_lateness="365d")
refunded = payments.outcome("refunded", bool)
of_payments = ml.FeatureSet("payments", on=payments, n=payments.by("customer").agg(n=ml.count(over="7d")))
refunds = ml.UseCase("payments", of_payments, policy=lambda score, event: "send")


def rows(*entries: tuple[str, str, float | None, bool | None, str]) -> pd.DataFrame:
    """Rows of a file: an event, and what a row says of its outcome in a row of the frame of its own."""
    made = [
        {"source": source, "row": row, "id": id, "arrived": pd.Timestamp(arrival, tz="UTC"), "customer": "an"}
        | (
            {"time": pd.Timestamp("2020-01-01", tz="UTC"), "amount": amount}
            if source == "payments"
            else {"refunded": fraud}
        )
        for row, (source, id, amount, fraud, arrival) in enumerate(entries)
    ]
    return pd.DataFrame(made)


def test_what_a_refused_row_says_of_the_outcome_is_passed_over(tmp_path: Path):
    """Whether it breaks the contract or its id was used before, and also where the report comes in a later batch."""
    events, reports = (
        rows(
            ("payments", "a", 5.0, None, "2020-01-01"),
            ("payments", "a", 7.0, None, "2020-01-02"),
            ("payments", "b", -1.0, None, "2020-01-01"),
        ),
        rows(
            ("refunded", "", None, True, "2020-01-09"),
            ("refunded", "a", None, True, "2020-01-09"),
            ("refunded", "b", None, True, "2020-01-09"),
        ),
    )
    reports = reports.iloc[1:]
    for name, batches in {"together": [pd.concat([events, reports])], "apart": [events, reports]}.items():
        store: Any = ml.open_store(Settings(state=tmp_path / name))
        done = lab.ingest(refunds, batches, store)
        assert [row for row, _ in done.refused] == [1, 2], done.refused
        assert [e.source for e in store.read()] == ["payments"] and store.waiting() == []
        assert len(store.dead_letters()) == 2
        store.close()


def test_a_file_is_read_by_the_contract_of_the_source_that_is_named(tmp_path: Path):
    """Bad rows go to the dead letters, each with its number; the others are what they would have been."""
    (tmp_path / "orders.csv").write_text(
        "id,time,customer,amount,arrived\n"
        "a,2020-01-01T10:00:00Z,an,12.50,2020-01-02T00:00:00Z\n"
        "b,2020-01-01T11:00:00,an,7.25,\n"
        "c,2020-01-01T12:00:00Z,an,,soon\n"
        "d,2020-01-01T13:00:00Z,an,,\n"
    )
    (tmp_path / "profiles.ndjson").write_text(
        '{"id": "p", "time": "2020-01-01T00:00:00Z", "customer": "an", "limit": 500}\n'
        '{"id": "q", "time": "2020-01-02T00:00:00Z", "customer": "an", "deleted": true}\n'
    )
    store = ml.open_store(Settings(state=tmp_path / "state", use_cases={}))
    assert lab.ingest_file(case, tmp_path / "profiles.ndjson", store, source="profiles").new == {"profiles": 2}
    done = lab.ingest_file(case, tmp_path / "orders.csv", store)
    assert (done.new, [row for row, _ in done.refused]) == ({"orders": 2}, [1, 2])
    assert "has no time zone" in done.refused[0][1] and "Order.arrived: soon is not a time" in done.refused[1][1]
    stored = [(e.id, iso(e.arrived), e.body) for e in store.read(streams=["orders"])]
    assert stored == [
        ("a", "2020-01-02T00:00:00Z", '{"customer":"an","amount":12.5,"items":null}'),
        ("d", "2020-01-01T13:00:00Z", '{"customer":"an","amount":null,"items":null}'),
    ]
    store.close()


def test_a_use_case_may_read_its_files_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "odd_shop.py").write_text("import test_ingest\n\n\ndef read(path):\n    yield test_ingest.frame()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    store = ml.open_store(Settings(state=tmp_path / "state", use_cases={"orders": "odd_shop:case"}))
    assert lab.ingest_file(case, "whatever", store).new == {"profiles": 2, "orders": 4}
    store.close()


@pytest.mark.parametrize("wrong", [{"ids": [b"a", "b"]}, {"bodies": ['{"customer":"an"}', None]}], ids=["id", "body"])
def test_the_store_takes_no_id_or_body_that_is_not_a_text(tmp_path: Path, wrong: dict[str, Any]):
    """It would be a BLOB in the file, and every read of the log would fail from then on."""
    store = ml.open_store(Settings(state=tmp_path / "state"))
    store.register(refunds.name, refunds.features)
    body = payments.parse({"id": "a", "time": "2020-01-01T00:00:00Z", "customer": "an", "amount": 1.0})
    zeros, codes = np.zeros(2, np.int64), {payments.stream: np.array([body.codes] * 2)}
    good: dict[str, Any] = {"ids": ["a", "b"], "bodies": [body.body] * 2}
    with pytest.raises(TypeError, match="is a text"):
        store.load(Batch([payments], zeros, time=zeros, arrived=zeros, codes=codes, rows=zeros, **(good | wrong)))
    assert store.last_position() == 0
    assert store.load(Batch([payments], zeros, time=zeros, arrived=zeros, codes=codes, rows=zeros, **good)).new
    assert len(list(store.read())) == 2
    store.close()
