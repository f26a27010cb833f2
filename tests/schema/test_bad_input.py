"""What is wrong is refused with field, value and reason; everything else goes on as if it had not come."""

import json
from contextlib import closing
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID

import handbook
import numpy as np
import pandas as pd
import pytest
from bad_events import BAD, GONE, GOOD, NO_JSON
from bank import START, Bank
from command import Command
from project import SETTINGS, Project

import mlpkg as ml
from mlpkg import lab
from mlpkg.decisions import Decider
from mlpkg.errors import MlpkgError
from mlpkg.examples.fraud.simulator import simulate
from mlpkg.times import DAY, HOUR, MINUTE, iso, now

ARRIVED = START + DAY + 10 * HOUR


@pytest.mark.parametrize(("change", "field", "value", "reason"), BAD, ids=lambda v: None if isinstance(v, dict) else v)
def test_a_broken_event_is_refused_and_kept_as_a_dead_letter(
    bank: Bank, change: dict[str, Any], field: str, value: str, reason: str
):
    body = {k: v for k, v in (GOOD | change).items() if v is not GONE}
    position, dead, _ = bank.size
    for refuse in (
        lambda: bank.decider.decide(body, arrived=ARRIVED),
        lambda: bank.store.accept(handbook.transactions, body, arrived=ARRIVED),
        lambda: bank.decider.decide(json.dumps(body).encode(), arrived=ARRIVED),
    ):
        with pytest.raises(ml.Rejected) as refused:
            refuse()
        why = refused.value
        assert (why.field, why.source, why.status) == (f"Transaction.{field}", "transactions", 422)
        assert str(why.value).startswith(value) and reason in why.reason
        assert str(why).startswith(f"Transaction.{field}: ") and "dead letters" in str(why)
        dead += 1
        assert bank.size == (position, dead, 0)
    letter = bank.store.dead_letters()[-1]
    assert (letter.source, letter.field, letter.reason) == ("transactions", why.field, why.reason)
    bank.decider.decide(GOOD, arrived=ARRIVED)  # and it goes on


@pytest.mark.parametrize(
    "time",
    [
        "2018-04-02T10:00:00+00",
        "2018-04-02 10:00:00 UTC",
        "2018-04-02 10:00:00 +0000",
        "2018-04-02T12:00+0200",
        "2018-04-02t10:00:00.123456789z",
    ],
)
def test_a_time_as_databases_write_it_is_understood(time: str):
    row = handbook.transactions.parse(GOOD | {"time": time})
    assert row.time == START + DAY + 10 * HOUR + (123_456 if "." in time else 0)


CONVERTED = [
    {"customer_id": np.int64(596), "terminal_id": np.uint16(3156), "amount": np.float64(57.16)},
    {"customer_id": Decimal("596.0"), "amount": Decimal("57.160")},
    {"id": np.str_("tx-1"), "customer_id": IntEnum("Customer", {"ONE": 596}).ONE},
    {"time": datetime(2018, 4, 2, 12, tzinfo=timezone(timedelta(hours=2)))},
    {"time": pd.Timestamp("2018-04-02 10:00", tz="UTC").as_unit("ns")},
    {"id": StrEnum("Payment", {"ONE": "tx-1"}).ONE, "amount": pd.Series([57.16])[0]},
]


@pytest.mark.parametrize("change", CONVERTED, ids=lambda change: " ".join(change))
def test_values_of_numpy_pandas_and_decimal_are_converted(bank: Bank, change: dict[str, Any]):
    first = bank.decider.decide(GOOD, arrived=ARRIVED)
    assert bank.decider.decide(GOOD | change, arrived=ARRIVED) == first
    bank.store.accept(handbook.transactions, GOOD | change, arrived=ARRIVED)
    assert handbook.transactions.parse(GOOD | change) == handbook.transactions.parse(GOOD)


def test_a_uuid_is_an_id_and_a_missing_value_is_null():
    id = UUID(int=7)
    assert handbook.transactions.parse(GOOD | {"id": id}).id == str(id)
    for gone in (None, pd.NA, pd.NaT, np.datetime64("NaT")):
        with pytest.raises(ml.Rejected, match=r"Transaction.amount: is null, but required"):
            handbook.transactions.parse(GOOD | {"amount": gone})


UNCONVERTED = [
    ({"amount": timedelta(days=1)}, "amount", "is of type timedelta, for which JSON has no value"),
    ({"amount": np.timedelta64(1, "D")}, "amount", "is of type timedelta64"),
    ({"amount": Fraction(1, 3)}, "amount", "is of type Fraction"),
    ({"amount": 1j}, "amount", "is of type complex"),
    ({"amount": {1.5}}, "amount", "is of type set"),
    ({"customer_id": object()}, "customer_id", "is of type object"),
    ({"id": b"\xff"}, "id", "bytes that are no UTF-8 text"),
    ({"id": "a\ud800"}, "id", "no Unicode"),
    ({"time": datetime(2018, 4, 2, 10)}, "time", "no time zone"),
    ({"time": np.datetime64("2018-04-02T10:00", "ns")}, "time", "no time zone"),
    ({"time": date(2018, 4, 2)}, "time", "is a day without a time"),
    ({"amount": np.float64("nan")}, "amount", "is not a finite number"),
    ({"amount": Decimal("NaN")}, "amount", "is not a finite number"),
    ({"customer_id": Decimal("596.5")}, "customer_id", "is not a whole number"),
    ({7: 7}, "7", "is no text"),
]


@pytest.mark.parametrize(("change", "field", "reason"), UNCONVERTED)
def test_a_value_that_json_has_not_is_refused(bank: Bank, change: dict[Any, Any], field: str, reason: str):
    size = bank.size
    for refuse in (
        lambda: bank.decider.decide(GOOD | change, arrived=ARRIVED),
        lambda: bank.store.accept(handbook.transactions, GOOD | change, arrived=ARRIVED),
    ):
        with pytest.raises(ml.Rejected) as refused:
            refuse()
        assert refused.value.field == f"Transaction.{field}" and reason in refused.value.reason
        assert str(refused.value).encode()
    assert bank.size == (size[0], size[1] + 2, 0)


@pytest.mark.parametrize("body", [5, None, [GOOD], pd.Series(GOOD), memoryview(b"{}")], ids=lambda b: type(b).__name__)
def test_what_is_neither_a_dict_nor_json_is_refused(bank: Bank, body: Any):
    with pytest.raises(ml.Rejected, match=r"is of type .*, not an event; give a dict, or JSON"):
        bank.decider.decide(body, arrived=ARRIVED)


@pytest.mark.parametrize("body", NO_JSON, ids=lambda b: repr(b[:12]))
def test_what_is_no_json_is_refused_and_was_no_event(bank: Bank, body: bytes):
    size = bank.size
    with pytest.raises(ml.Rejected) as refused:
        bank.decider.decide(body, arrived=ARRIVED)
    assert refused.value.status == 400 and "is not JSON" in str(refused.value)
    assert len(str(refused.value)) < 500, "a refusal does not repeat a megabyte"
    assert bank.size == size


@pytest.mark.parametrize("body", [b"null", b"[1]", b'"text"', b"NaN", b"1"])
def test_json_that_is_no_object_is_refused(bank: Bank, body: bytes):
    position = bank.size[0]
    with pytest.raises(ml.Rejected) as refused:
        bank.decider.decide(body, arrived=ARRIVED)
    assert refused.value.status in (400, 422) and refused.value.field == "Transaction"
    assert bank.size[0] == position


def test_a_nest_of_lists_inside_an_event_is_refused(bank: Bank):
    body = json.dumps(GOOD).replace("57.16", "[" * 100 + "]" * 100).encode()
    with pytest.raises(ml.Rejected) as refused:
        bank.decider.decide(body, arrived=ARRIVED)
    assert refused.value.field == "Transaction.amount" and len(str(refused.value)) < 500


def test_a_refusal_does_not_repeat_a_long_value(bank: Bank):
    with pytest.raises(ml.Rejected) as refused:
        bank.decider.decide(GOOD | {"id": "x" * 100_000}, arrived=ARRIVED)
    assert len(str(refused.value)) < 500
    assert len(bank.store.dead_letters()[-1].body) <= 20_000


def test_an_event_ahead_of_the_clock_is_refused(bank: Bank):
    soon, later = now() + 4 * MINUTE, now() + 6 * MINUTE
    bank.decider.decide(GOOD | {"id": "soon", "time": iso(soon)})
    with pytest.raises(ml.Rejected, match="more than 5m ahead of the clock"):
        bank.decider.decide(GOOD | {"id": "later", "time": iso(later)})
    bank.decider.decide(GOOD | {"id": "later", "time": iso(later)}, clock=now() + 2 * MINUTE)


def test_an_event_that_comes_too_late_is_refused(bank: Bank):
    bank.decider.decide(GOOD | {"id": "in time"}, arrived=ARRIVED + 3 * DAY)
    with pytest.raises(ml.Rejected, match="more than 3d before the event arrived"):
        bank.decider.decide(GOOD | {"id": "late"}, arrived=ARRIVED + 3 * DAY + 1)


@pytest.mark.parametrize("change", [{"amount": 57.17}, {"time": "2018-04-02T10:00:01Z"}, {"customer_id": 597}])
def test_an_id_reused_for_other_content_is_a_conflict(bank: Bank, change: dict[str, Any]):
    first = bank.decider.decide(GOOD, arrived=ARRIVED)
    position = bank.size[0]
    for refuse in (bank.decider.decide, lambda body, **kw: bank.store.accept(handbook.transactions, body, **kw)):
        with pytest.raises(ml.Rejected) as refused:
            refuse(GOOD | change, arrived=ARRIVED)
        assert (refused.value.status, refused.value.event) == (409, "tx-1")
    assert bank.size[0] == position
    assert bank.decider.decide(GOOD, arrived=ARRIVED).as_of == first.as_of


@pytest.mark.parametrize(
    "change", [{"amount": 57.1600001}, {"time": "2018-04-02T12:00:00+02:00"}, {"time": "2018-04-02T10:00:00.000Z"}]
)
def test_the_same_content_in_other_words_is_the_same_event(bank: Bank, change: dict[str, Any]):
    first = bank.decider.decide(GOOD, arrived=ARRIVED)
    position = bank.size[0]
    assert bank.decider.decide(GOOD | change, arrived=ARRIVED).as_of == first.as_of
    assert bank.size[0] == position


def test_a_policy_that_fails_leaves_nothing_behind(bank: Bank):
    """Neither the event nor a row of a timeline: the decision can be asked for again."""

    def broken(score: float, event: Any) -> str:
        raise ZeroDivisionError

    decider = Decider(ml.UseCase("fraud", handbook.features, policy=broken), bank.store)
    size = bank.size
    with pytest.raises(ZeroDivisionError):
        decider.decide(GOOD, arrived=ARRIVED)
    assert bank.size == size
    assert bank.decider.decide(GOOD, arrived=ARRIVED).features["customer_n_tx_1d"] == 1


def test_the_command_line_says_in_one_line_what_is_wrong(stocked: Project, cli: Command):
    body = json.dumps(GOOD | {"amount": -3.2})
    cli("decide", "fraud", body).said_one_line("Transaction.amount: -3.2 is below 0", "event tx-1", "dead letters")
    cli("decide", "fraud", "{").said_one_line("is not JSON")
    cli("decide", "frued", "{}").said_one_line("no use case 'frued'", "fraud", "settings.ini")
    letters = cli("dead-letters", "list", "--json").json_lines
    assert [(d["event"], d["field"], d["value"]) for d in letters] == [("tx-1", "Transaction.amount", "-3.2")]
    cli("decisions", "fraud", "nobody").said_one_line("no decision on the event 'nobody'")
    assert cli("training-set", "fraud", "--from", "yesterday", "--to", "2018-05-01", "-o", "x.csv").status == 2
    for wrong in (
        cli("training-set", "fraud", "--from", "20180501", "--to", "2018-05-02", "-o", "x.csv"),
        cli("timeline", "fraud", "customer_id=596", "time=20180501"),
        cli("timeline", "fraud", "customer_id=596", "time=45292.5"),
    ):
        assert wrong.status == 2 and "is a number, not a time" in wrong.err and "Traceback" not in wrong.err
    wrong = cli("training-set", "fraud", "--from", "2018-05-01", "--to", "2018-05-01", "-o", "x.csv")
    wrong.said_one_line("nothing from", "the end must lie after the start")
    wrong = cli("training-set", "fraud", "--from", "2018-05-01", "--to", "2018-05-02", "-o", "x.xlsx")
    wrong.said_one_line("x.xlsx", ".parquet", ".csv")
    cli("ingest", "fraud", "nowhere.csv").said_one_line("nowhere.csv")
    cli("ingest", "early", "nowhere.csv").said_one_line("nowhere.csv is not a file")
    cli("ingest", "early", "nowhere.csv", "--source", "payments").said_one_line(
        "no source or outcome 'payments'", "fraud"
    )
    (stocked.folder / "settings.ini").write_text(SETTINGS + "    shop = shopping:shopping\n")
    cli("simulate", "shop", "-o", "shop.csv").said_one_line("'shop' has no simulator")


# A file of three thousand rows, ten of them bad, in each of the three formats

N = 3_000
WHERE = [0, 7, 311, 312, 900, 1500, 1501, 2222, 2998, 2999]
Tiles = dict[str, Any]


def frame_of_payments() -> pd.DataFrame:
    frame = simulate(60, 40, 40, seed=11).head(N)
    assert len(frame) == N
    return frame.drop(columns="scenario").assign(fraud=False)


def lines_of(frame: pd.DataFrame) -> list[Tiles]:
    rows = frame.assign(time=frame["time"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")).to_dict("records")
    return [{k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()} for row in rows]


def parquet_with_ten_bad_rows(path: Path) -> list[tuple[int, str]]:
    frame = frame_of_payments()
    frame["time"] = frame["time"].astype("datetime64[us, UTC]")
    frame = frame.astype({"customer_id": "Int64"})
    places = iter(WHERE)
    expected = []
    for column, value, field in [
        ("amount", np.nan, "amount"),
        ("amount", np.inf, "amount"),
        ("amount", -3.2, "amount"),
        ("amount", 1e15, "amount"),
        ("customer_id", pd.NA, "customer_id"),
        ("customer_id", 2**60, "customer_id"),
        ("time", pd.Timestamp("1969-12-31", tz="UTC"), "time"),
        ("time", pd.NaT, "time"),
        ("id", "", "id"),
        ("id", "x" * 201, "id"),
    ]:
        row = next(places)
        frame.loc[frame.index[row], column] = value
        expected.append((row, f"Transaction.{field}"))
    frame.to_parquet(path, index=False)
    return expected


def csv_with_ten_bad_rows(path: Path) -> list[tuple[int, str]]:
    rows = lines_of(frame_of_payments())
    names = list(rows[0])
    lines = [",".join(str(row[n]) for n in names) for row in rows]

    def changed(row: int, **cells: str) -> str:
        return ",".join(str((rows[row] | cells)[n]) for n in names)

    a, b, c, d, e, f, g, h, i, j = WHERE
    lines[a] = changed(a, amount="nan")
    lines[b] = changed(b, amount="12;50")
    lines[c] = changed(c, amount="-1")
    lines[d] = changed(d, customer_id="12.5")
    lines[e] = changed(e, customer_id="")
    lines[f] = changed(f, time="2018-04-20T10:00:00")
    lines[g] = changed(g, time="2018-04-31T10:00:00Z")
    lines[h] = changed(h, id="")
    lines[i] = changed(i, id="5", amount="1.23")  # the id of the sixth row, for other content
    lines[j] = lines[j].rsplit(",", 2)[0]  # the file ends in the middle of a line
    path.write_text("\n".join([",".join(names), *lines]))
    fields = ["amount", "amount", "amount", "customer_id", "customer_id", "time", "time", "id"]
    return [*zip(WHERE, [f"Transaction.{n}" for n in fields], strict=False), (i, "id"), (j, "Transaction")]


def ndjson_with_ten_bad_rows(path: Path) -> list[tuple[int, str]]:
    rows = lines_of(frame_of_payments())
    a, b, c, d, e, f, g, h, i, j = WHERE
    lines = [json.dumps(row) for row in rows]

    def changed(row: int, **cells: Any) -> str:
        return json.dumps({k: v for k, v in (rows[row] | cells).items() if v is not GONE})

    lines[a] = changed(a, amount=float("nan"))
    lines[b] = changed(b, amount="12.50")
    lines[c] = changed(c, amount=[1, [2]])
    lines[d] = changed(d, customer_id="1")
    lines[e] = changed(e, customer_id=GONE)
    lines[f] = changed(f, time="2018-04-20T10:00:00")
    lines[g] = changed(g, time=1524218400)
    lines[h] = changed(h, id="\x00")
    lines[i] = "[" * 10_000
    lines[j] = lines[j][:-20]
    path.write_text("\n".join(lines) + "\n")
    fields = [".amount", ".amount", ".amount", ".customer_id", ".customer_id", ".time", ".time", ".id", "", ""]
    return [(row, f"Transaction{field}") for row, field in zip(WHERE, fields, strict=True)]


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (parquet_with_ten_bad_rows, "payments.parquet"),
        (csv_with_ten_bad_rows, "payments.csv"),
        (ndjson_with_ten_bad_rows, "payments.ndjson"),
    ],
    ids=["parquet", "csv", "ndjson"],
)
def test_ten_bad_rows_of_a_file_are_listed_and_the_others_go_in(write, name: str, project: Project, cli: Command):
    """ValidatedEvent 0 is the first row; each bad row is named once, with field, value and reason, and is in the dead letters."""
    expected = write(project.folder / name)
    assert len(expected) == 10
    done = cli("ingest", "fraud", name, "--json")
    assert done.status == 0, done.err
    assert done.json["new"]["transactions"] == N - 10
    assert [row for row, _ in done.json["refused"]] == WHERE
    assert [words.partition(":")[0] for _, words in done.json["refused"]] == [field for _, field in expected]
    letters = cli("dead-letters", "list", "--json").json_lines
    assert [(d["row"], d["field"]) for d in letters] == expected
    assert all(d["reason"] and d["body"] and d["source"] == "transactions" for d in letters)

    with closing(ml.open_store(project.settings)) as store:
        stored = lab.events(handbook.transactions, store=store)
    good = frame_of_payments().drop(index=WHERE)
    assert stored["id"].tolist() == good["id"].tolist()
    assert stored["amount"].tolist() == good["amount"].tolist()

    again = cli("ingest", "fraud", name)
    assert f"{N - 10} known already" in again.out
    assert [line.partition(":")[0] for line in again.err.splitlines()[:10]] == [f"row {row}" for row in WHERE]


def test_a_file_of_the_wrong_shape_is_refused_before_anything_goes_in(project: Project, cli: Command):
    frame = frame_of_payments()
    frame.drop(columns="amount").to_parquet(project.folder / "short.parquet")
    cli("ingest", "fraud", "short.parquet").said_one_line("short.parquet has no column amount", "it has:")
    (project.folder / "text.parquet").write_text("id,time")
    cli("ingest", "fraud", "text.parquet").said_one_line("text.parquet is not a Parquet file")
    (project.folder / "payments.xlsx").write_text("id,time")
    cli("ingest", "fraud", "payments.xlsx").said_one_line("unknown kind", ".parquet", ".csv", ".ndjson")
    (project.folder / "empty.csv").write_text("")
    cli("ingest", "fraud", "empty.csv").said_one_line("empty.csv has no column")
    assert cli("ingest", "fraud", project.folder).status == 2
    with closing(ml.open_store(project.settings)) as store:
        assert store.last_position() == 0


def test_a_damaged_parquet_file_keeps_what_was_read_and_says_where_it_ends(project: Project, cli: Command):
    path = project.folder / "payments.parquet"
    frame_of_payments().to_parquet(path, row_group_size=500, index=False)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3_000] = b"\xff" * 3_000
    path.write_bytes(data)
    cli("ingest", "fraud", "payments.parquet").said_one_line("payments.parquet is damaged", "write it again")


def test_rows_of_an_unknown_source_are_refused(bank: Bank):
    frame = pd.DataFrame(
        {"source": ["clicks"], "row": [0], "id": ["a"], "arrived": [pd.Timestamp("2018-04-01", tz="UTC")]}
    )
    size = bank.size
    with pytest.raises(MlpkgError, match="takes no events of 'clicks'"):
        lab.ingest(handbook.fraud, [frame], bank.store)
    assert bank.size == size
