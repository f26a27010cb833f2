"""The handbook's features again, by brute force: other code, whole numbers, no function of mlpkg."""

import contextlib
import os
from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import handbook
import pandas as pd
import pyarrow.parquet as pq
import pytest

import mlpkg as ml
from mlpkg import lab
from mlpkg.examples.fraud.simulator import simulate
from mlpkg.settings import Settings

A_DAY = 86_400 * 1_000_000
ONE_OF = 100 if os.environ.get("MLPKG_LONG") else 300  # customers and terminals of the real payments
Payment = tuple[str, int, int, int, int, bool]  # id, microseconds, customer, terminal, cents, fraud


def payments(path: Path) -> list[Payment]:
    """The rows of a file in their order, which is that of arrival."""
    frame = pd.read_parquet(path)
    frame.columns = [name.lower().replace("transaction_id", "id").replace("tx_datetime", "time") for name in frame]
    frame = frame.rename(columns=lambda name: name.removeprefix("tx_"))
    if frame["time"].dt.tz is None:
        frame["time"] = frame["time"].dt.tz_localize("UTC")
    rows = []
    row: Any
    for row in frame.itertuples():
        second = row.time.to_pydatetime()
        seconds = (second - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
        assert seconds == int(seconds), "the files have whole seconds"
        amount = Decimal(float(row.amount)) * 100
        cents = amount.to_integral_value()
        assert abs(amount - cents) < Decimal("0.00001"), "the files have whole cents, but for the noise of a float"
        rows.append(
            (
                str(row.id),
                int(seconds) * 1_000_000,
                int(row.customer_id),
                int(row.terminal_id),
                int(cents),
                bool(row.fraud),
            )
        )
    assert all(a[1] <= b[1] for a, b in pairwise(rows)), "in the order of time"
    return rows


def oracle(rows: list[Payment]) -> list[dict[str, Any]]:
    """One payment after the other; of its customer and its terminal all earlier ones are looked through."""
    of_customer: dict[int, list[tuple[int, int]]] = defaultdict(list)
    at_terminal: dict[int, list[tuple[int, int]]] = defaultdict(list)
    answers = []
    for id, time, customer, terminal, cents, fraud in rows:
        amounts, frauds = of_customer[customer], at_terminal[terminal]
        amounts.append((time, cents))  # itself is seen, and so is what arrived before it in the same second
        frauds.append((time, int(fraud)))  # a fraud counts a week later, when it is known
        moment = datetime.fromtimestamp(time // 1_000_000, UTC)
        answer: dict[str, Any] = {
            "id": id,
            "during_weekend": float(moment.weekday() in (5, 6)),
            "during_night": float(moment.hour <= 6),
            "label": fraud,
        }
        for n in (1, 7, 30):
            seen = [c for when, c in amounts if time - n * A_DAY < when <= time]
            answer[f"customer_n_tx_{n}d"] = len(seen)
            answer[f"customer_avg_amount_{n}d"] = sum(seen) / (100 * len(seen))
            truths = [f for when, f in frauds if time - (7 + n) * A_DAY < when <= time - 7 * A_DAY]
            answer[f"terminal_n_tx_{n}d"] = len(truths)
            answer[f"terminal_risk_{n}d"] = sum(truths) / len(truths) if truths else 0.0
        answers.append(answer)
    return answers


FOURTEEN = ["during_weekend", "during_night"] + [
    f"{name}_{n}d"
    for name in ("customer_n_tx", "customer_avg_amount", "terminal_n_tx", "terminal_risk")
    for n in (1, 7, 30)
]


def same(value: Any, other: Any) -> bool:
    """The same type and the same bits."""
    return type(value) is type(other) and (value.hex() == other.hex() if isinstance(value, float) else value == other)


def differences(path: Path, state: Path) -> tuple[int, list[str]]:
    """How many rows the training set of a file has, and what in it is not what the oracle says."""
    expected = oracle(payments(path))
    with contextlib.closing(ml.open_store(Settings(state=state))) as store:
        lab.ingest_file(handbook.fraud, path, store)
        rows = lab.training_set(handbook.features, "2018-04-01", "2018-10-01", store=store)
    assert rows["id"].tolist() == [e["id"] for e in expected]
    for name in FOURTEEN:
        assert rows[name].dtype == ("int64" if "_n_tx_" in name else "float64"), name
    wrong = []
    for name in [*FOURTEEN, "label"]:
        for id, value, answer in zip(rows["id"], rows[name].tolist(), expected, strict=True):
            if not same(value, answer[name]):
                wrong.append(f"{id} {name}: {value!r}, the oracle says {answer[name]!r}")
    return len(rows), wrong


@pytest.mark.parametrize("tick", ["s", "min", "6h", "D"])
def test_simulated_payments_have_the_features_that_the_oracle_finds(tick: str, tmp_path: Path):
    """The coarser the clock, the more payments share a moment, and the more stand exactly on a window's edge."""
    frame = simulate(25, 12, 75, seed=5, compromised_terminals_per_day=0.2, compromised_customers_per_day=0.2)
    frame["time"] = frame["time"].dt.floor(tick)
    frame.to_parquet(tmp_path / "payments.parquet", index=False)
    rows, wrong = differences(tmp_path / "payments.parquet", tmp_path / "state")
    assert rows > 2_500
    assert wrong == []


def test_the_oracle_is_asked_where_it_is_hard(tmp_path: Path):
    """In the coarse files there are ties of one customer, and truths exactly seven days old."""
    frame = simulate(25, 12, 75, seed=5, compromised_terminals_per_day=0.2, compromised_customers_per_day=0.2)
    frame["time"] = frame["time"].dt.floor("6h")
    assert frame.duplicated(["customer_id", "time"]).sum() > 100
    week_ago = frame.assign(time=frame["time"] + pd.Timedelta(days=7))
    on_the_edge = frame.merge(week_ago[week_ago["fraud"]], on=["terminal_id", "time"])
    assert len(on_the_edge) > 20


def test_a_part_of_the_real_payments_has_the_features_that_the_oracle_finds(real: Path, tmp_path: Path):
    """All payments of some terminals and of some customers: six months, with every window full."""
    table = pq.read_table(real)
    frame = table.to_pandas()
    part = frame[(frame["TERMINAL_ID"] % ONE_OF == 7) | (frame["CUSTOMER_ID"] % ONE_OF == 7)]
    part.to_parquet(tmp_path / "part.parquet", index=False)
    rows, wrong = differences(tmp_path / "part.parquet", tmp_path / "state")
    assert rows == len(part) > 3_000_000 / ONE_OF
    assert wrong == []


def test_a_stretch_of_the_real_payments_has_the_features_that_the_oracle_finds(real: Path, tmp_path: Path):
    """Everything that happened in three days, in which many payments share a second."""
    frame = pd.read_parquet(real, filters=[("TX_DATETIME", "<", datetime(2018, 4, 4))])
    frame.to_parquet(tmp_path / "stretch.parquet", index=False)
    rows, wrong = differences(tmp_path / "stretch.parquet", tmp_path / "state")
    assert rows == len(frame) > 25_000
    assert wrong == []
