"""Files as other systems write them, each with what a person answers about it, and what its rows mean."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 360


@dataclass
class MessyFile:
    """A file, the arguments of `propose` that a person would give, and the truth about its rows.

    `good` has the values of each good row by its `key`, `bad` a word of the reason by the number of the row, and `repeated` how many rows
    are the same event as another row.
    """

    path: Path
    outcome: str
    answers: dict[str, str] = field(default_factory=dict)
    key: str = "id"
    good: dict[Any, dict[str, Any]] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    repeated: int = 0
    notes: tuple[str, ...] = ()


def _random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _utc(local: datetime, zone: str) -> datetime:
    """The first instant of a local time."""
    return local.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def _lines(rows: list[list[str]], delimiter: str, end: str = "\n") -> str:
    """The text of a file with a header."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(rows)
    return text.getvalue()


def _german(number: float) -> str:
    """A number as in 1.234,50."""
    return f"{number:,.2f}".replace(",", "_").replace(".", ",").replace("_", ".")


def german_spreadsheet(folder: Path) -> MessyFile:
    """Semicolons, cp1252, decimal commas, local times over both changes of the clock, ids that lack or repeat, a row of totals."""
    rng, zone = _random(1), "Europe/Berlin"
    file = MessyFile(folder / "bestellungen.csv", "retoure", {"tz": zone})
    rows = [["Bestell-Nr", " Datum ", "Kunde", "Größe (m²)", "Betrag", "Retoure"]]
    for n in range(ROWS):
        local = (
            datetime(2025, 3, 28) + timedelta(minutes=15 * n)
            if n < 200
            else datetime(2025, 10, 25) + timedelta(minutes=15 * n)
        )
        amount, size = round(float(rng.gamma(2, 700)), 2), round(float(rng.uniform(1, 99)), 1)
        back, id = bool(rng.random() < 0.2), f"B{n}"
        cells = [
            id,
            f"{local:%d.%m.%Y %H:%M}",
            str(n % 40),
            _german(size)[:-1],
            f"{_german(amount)} €",
            "ja" if back else "nein",
        ]
        time = _utc(local, zone)
        if n in (7, 8):
            cells[0], file.bad[n] = "", "id"
        elif n == 30:
            cells[4], file.bad[n] = "auf Anfrage", "not a number"
        elif n == 50:
            cells[1], file.bad[n] = "12.13.2025 10:00", "not a time"
        elif n == 60:
            rows.append(list(rows[-1]))  # the same row twice
            file.repeated = 1
            continue
        elif n == 70:
            cells[0], cells[4], file.bad[n] = "B69", "1,00 €", "B69"
        elif time.astimezone(ZoneInfo(zone)).replace(tzinfo=None) != local:
            file.bad[n] = "not a time"
        if n not in file.bad:
            file.good[id] = {"time": time, "kunde": n % 40, "groesse_m2": size, "betrag": amount, "retoure": back}
        rows.append(cells)
    file.bad[ROWS] = "time"
    rows.append(["Summe", "", "", "", _german(sum(row["betrag"] for row in file.good.values())), ""])
    file.path.write_bytes(_lines(rows, ";", "\r\n").encode("cp1252"))
    file.notes = ("2 rows have none", "hour that the zone skips", "'auf Anfrage'")
    return file


def american_export(folder: Path) -> MessyFile:
    """A byte order mark, $1,234.50, month-first times with AM and PM, percentages, brackets, and line breaks in cells."""
    rng, zone = _random(2), "America/New_York"
    file = MessyFile(folder / "orders.csv", "returned", {"tz": zone})
    rows = [["Order ID", "Order Date", "Customer", "Amount", "Balance", "Discount", "Comment", "Returned"]]
    for n in range(ROWS):
        local = datetime(2024, 3, 1, 0, 5) + timedelta(hours=7 * n)
        amount, balance, off = (
            round(float(rng.gamma(2, 900)), 2),
            round(float(rng.normal(0, 2000)), 2),
            int(rng.integers(0, 30)),
        )
        back = bool(rng.random() < 0.3)
        signed = f"(${-balance:,.2f})" if balance < 0 else f"${balance:,.2f}"
        comment = 'He said:\n"no, thanks", and left' if n % 3 else ""
        cells = [
            str(10_000 + n),
            f"{local:%m/%d/%Y %I:%M %p}",
            f"C-{n % 25:03}",
            f"${amount:,.2f}",
            signed,
            f"{off}%",
            comment,
        ]
        rows.append([*cells, "TRUE" if back else "FALSE"])
        values = {"customer": f"C-{n % 25:03}", "amount": amount, "balance": balance, "discount": off, "returned": back}
        file.good[str(10_000 + n)] = values | {"time": _utc(local, zone)}
    rows[100] = rows[100][:5]  # cut off
    file.bad[99] = "has 5 cells, the header has 8"
    del file.good["10099"]
    file.path.write_bytes(_lines(rows, ",").encode("utf-8-sig"))
    return file


def british_tabs(folder: Path) -> MessyFile:
    """Tabs, days first that could all be months, pounds, unordered rows, an outcome of Y and N."""
    rng = _random(3)
    file = MessyFile(folder / "claims.tsv", "paid", {"tz": "Europe/London", "format": "%d/%m/%Y"})
    rows = [["claim no", "date", "account no", "claimed", "in", "paid"]]
    for n in range(ROWS):
        local = datetime(2025, 1 + n * 5 % 12, 1 + n * 7 % 12)
        claimed, paid = round(float(rng.gamma(2, 300)), 2), bool(rng.random() < 0.6)
        zone = ["north", "south"][n % 2]
        rows.append([f"K/{n}", f"{local:%d/%m/%Y}", f"{n % 30:05}", f"£{claimed}", zone, "Y" if paid else "N"])
        values = {"account_no": f"{n % 30:05}", "claimed": claimed, "in_": zone, "paid": paid}
        file.good[f"K/{n}"] = values | {"time": _utc(local, "Europe/London")}
    file.path.write_text(_lines(rows, "\t"), "utf-8")
    return file


def unicode_text(folder: Path) -> MessyFile:
    """UTF-16 as a spreadsheet saves it, apostrophes between thousands, names that come twice or are Python's, empty columns."""
    rng, zone = _random(4), "Europe/Zurich"
    file = MessyFile(folder / "dossiers.txt", "converted", {"tz": zone, "outcome": "Converted?"})
    rows = [["Dossier-ID", "Date", "class", "import", "Montant", "Montant", "", "Converted?"]]
    for n in range(ROWS):
        local = datetime(2025, 5, 1, 8) + timedelta(hours=3 * n)
        first, second = round(float(rng.gamma(2, 1500)), 2), int(rng.integers(0, 9_000_000))
        won, group = bool(rng.random() < 0.4), "ABC"[n % 3]
        cells = [f"d{n}", f"{local:%d.%m.%Y %H:%M:%S}", group, str(n % 7), f"CHF {first:,.2f}", f"{second:,}"]
        rows.append([cell.replace(",", "’") for cell in cells] + ["", "oui" if won else "non"])
        values = {"class_": group, "import_": n % 7, "montant": first, "montant_2": second, "converted": won}
        file.good[f"d{n}"] = values | {"time": _utc(local, zone)}
    file.path.write_bytes(_lines(rows, "\t", "\r\n").encode("utf-16"))
    file.notes = ("Left out, as they are empty: 'column 7'",)
    return file


def titled_report(folder: Path) -> MessyFile:
    """A title above the header, 1.234 that is a thousand, words for nothing, and totals as wide as a row."""
    rng, zone = _random(5), "Europe/Vienna"
    file = MessyFile(folder / "report.csv", "storniert", {"tz": zone})
    rows = [["Bericht vom 03.03.2025", "", "", "", "", ""], []]
    rows.append(["Beleg", "Zeitpunkt", "Artikel", "Menge", "Preis", "storniert"])
    for n in range(ROWS):
        local = datetime(2025, 11, 3, 6) + timedelta(minutes=40 * n)
        amount, price = int(rng.integers(1_000, 999_000)), round(float(rng.gamma(2, 20)), 2)
        gone, missing = bool(rng.random() < 0.1), n % 20 == 3
        shown = "n/a" if missing else f"{amount:,}".replace(",", ".")
        rows.append(
            [f"R{n}", f"{local:%d.%m.%Y, %H:%M:%S}", f"0{n % 12:02}", shown, _german(price), "1" if gone else "0"]
        )
        values = {"artikel": f"0{n % 12:02}", "menge": None if missing else amount, "preis": price, "storniert": gone}
        file.good[f"R{n}"] = values | {"time": _utc(local, zone)}
    rows.append(["Summe", "", "", "9.999.999", "1.000,00", "36"])
    file.bad[ROWS] = "time"
    file.path.write_text(_lines(rows, ";"), "utf-8")
    file.notes = ("'n/a' counts as empty",)
    return file


def log_of_milliseconds(folder: Path) -> MessyFile:
    """No id, milliseconds since 1970, rows that repeat, and a column of numbers and words."""
    rng = _random(6)
    file = MessyFile(folder / "events.csv", "fraud", key="note")
    rows = [["timestamp", "card", "amount", "score", "note", "fraud"]]
    for n in range(ROWS):
        time = datetime(2025, 2, 1, tzinfo=UTC) + timedelta(minutes=17 * n, milliseconds=n)
        amount, fraud = round(float(rng.gamma(2, 30)), 2), bool(rng.random() < 0.1)
        score = ["low", "high"][n % 2] if n % 5 == 0 else str(n % 50)
        millis = int(time.timestamp() * 1000 + 0.5)
        rows.append(
            [str(millis), f"{4_000_000_000_000_000 + n % 20}", str(amount), score, f"n-{n % 180}-{n % 2}", "01"[fraud]]
        )
        file.good[millis] = {
            "time": time,
            "card": f"{4_000_000_000_000_000 + n % 20}",
            "amount": amount,
            "score": score,
            "fraud": fraud,
        }
    rows[200:200] = [list(rows[199]), list(rows[100])]
    file.repeated, file.key = 2, "time"
    file.path.write_text(_lines(rows, ","), "utf-8")
    file.notes = ("2 rows repeat another row", "'score' has mixed types", "read as milliseconds in UTC")
    return file


def spreadsheet_days(folder: Path) -> MessyFile:
    """Days as a spreadsheet counts them, an outcome in many languages, columns that are nearly always empty, bars between cells."""
    rng, zone = _random(7), "Europe/Paris"
    file = MessyFile(folder / "visites.csv", "clicked", {"tz": zone, "format": "excel"})
    rows = [["visit id", "date", "user", "pages", "coupon", "clicked"]]
    words = {True: ["yes", "ja", "oui", "1", "TRUE"], False: ["no", "nein", "0"]}
    for n in range(ROWS):
        local = datetime(2025, 6, 1) + timedelta(minutes=23 * n)
        days = (local - datetime(1899, 12, 30)) / timedelta(days=1)
        clicked = bool(rng.random() < 0.3)
        coupon = "SUMMER" if n % 90 == 5 else ""
        word = words[clicked][n % len(words[clicked])]
        rows.append([f"v{n}", f"{days:.8f}", f"u{n % 33}", str(n % 9), coupon, "perhaps" if n == 40 else word])
        file.good[f"v{n}"] = {
            "time": _utc(local, zone),
            "user": f"u{n % 33}",
            "pages": n % 9,
            "coupon": coupon or None,
            "clicked": clicked,
        }
    del file.good["v40"]["clicked"]  # the event is good, its outcome is none
    file.bad[40] = "perhaps"
    file.path.write_text(_lines(rows, "|"), "utf-8")
    return file


def french_nanoseconds(folder: Path) -> MessyFile:
    """A packed file with nanoseconds, spaces that do not break between thousands, and an outcome that is x or empty."""
    rng = _random(8)
    file = MessyFile(folder / "ventes.csv.gz", "retour")
    rows = [["no", "ts", "client", "montant", "retour"]]
    for n in range(ROWS):
        time = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(hours=n, microseconds=n)
        amount, back = round(float(rng.gamma(2, 1000)), 2), bool(rng.random() < 0.2)
        shown = f"{amount:,.2f}".replace(",", "\u202f").replace(".", ",") + "\u00a0€"
        nanos = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
        rows.append([f"f-{n}", str(nanos), f"é{n % 15}", shown, "x" if back else ""])
        file.good[f"f-{n}"] = {"time": time, "client": f"é{n % 15}", "montant": amount, "retour": back}
    file.path.write_bytes(gzip.compress(_lines(rows, ";").encode()))
    return file


def json_lines(folder: Path) -> MessyFile:
    """NDJSON with fields that lack, objects inside, numbers as texts, mixed types, and lines that are no objects."""
    rng = _random(9)
    file = MessyFile(folder / "sessions.ndjson", "converted")
    lines = []
    for n in range(ROWS):
        time = datetime(2025, 4, 1, tzinfo=UTC) + timedelta(minutes=31 * n)
        price, won = round(float(rng.gamma(2, 40)), 2), bool(rng.random() < 0.25)
        row: dict[str, Any] = {
            "id": n,
            "created": time.astimezone(ZoneInfo("Asia/Kolkata")).isoformat(),
            "converted": won,
        }
        row["user"] = {"id": f"u{n % 28}", "geo": {"country": "DE" if n % 3 else "AT"}}
        row |= {"price": str(price).replace(".", ","), "tags": ["a", "b"], "ref": n % 30 if n % 2 else f"x{n % 6}"}
        if n % 4:
            row["age"] = 20 + n % 50
        values = {
            "user_id": f"u{n % 28}",
            "user_geo_country": "DE" if n % 3 else "AT",
            "price": price,
            "converted": won,
        }
        more = {"age": row.get("age"), "ref": str(row["ref"]), "time": time}
        file.good[str(n)] = values | more
        lines.append(json.dumps(row))
    lines[119], file.bad[119] = lines[119].replace('"id": "u7"', r'"id": "u\ud83d"'), "escaped utf-16 surrogate pair"
    lines[120], file.bad[120] = "[1, 2]", "is not a JSON object"
    lines[121], file.bad[121] = lines[121][:40], "is not a JSON object"
    for n in (119, 120, 121):
        del file.good[str(n)]
    file.path.write_text("\n".join(lines), "utf-8")
    file.notes = ("Left out, as they are neither texts nor numbers nor times: 'tags'",)
    return file


def parquet_of_types(folder: Path) -> MessyFile:
    """Categories, decimals, lists, structs, days, whole numbers with nulls, and timestamps without a zone."""
    rng, zone = _random(10), "Australia/Sydney"
    file = MessyFile(folder / "loans.parquet", "default", {"tz": zone, "outcome": "default"})
    columns: dict[str, list[Any]] = {
        name: [] for name in ("key", "at", "grade", "sum", "parts", "home", "due", "terms", "default")
    }
    for n in range(ROWS):
        local = datetime(2025, 1, 1) + timedelta(hours=9 * n)
        total, bad = Decimal(int(rng.integers(100, 9_000_000))) / 100, int(rng.random() < 0.2) + 1
        due = date(2026, 1, 1) + timedelta(days=n)
        row = [
            f"k{n}",
            local,
            "ABCD"[n % 4],
            total,
            [n],
            {"city": f"c{n % 9}"},
            due,
            None if n % 6 == 0 else n % 60,
            bad,
        ]
        for name, value in zip(columns, row, strict=True):
            columns[name].append(value)
        midnight = _utc(datetime(due.year, due.month, due.day), zone)
        values = {
            "grade": "ABCD"[n % 4],
            "sum": float(total),
            "home_city": f"c{n % 9}",
            "terms": row[7],
            "default": bad == 2,
        }
        file.good[f"k{n}"] = values | {"time": _utc(local, zone), "due": int(midnight.timestamp())}
    arrays = {name: pa.array(values) for name, values in columns.items()}
    arrays |= {"grade": arrays["grade"].dictionary_encode(), "at": pa.array(columns["at"], pa.timestamp("us"))}
    pq.write_table(pa.table(arrays), file.path)
    return file


def parquet_with_zone(folder: Path) -> MessyFile:
    """Timestamps with a zone, numbers that are texts, large floats, and texts with nulls."""
    rng = _random(11)
    file = MessyFile(folder / "trips.pq", "late")
    start = pd.Timestamp("2025-01-01", tz="Asia/Tokyo")
    frame = pd.DataFrame({"trip_id": [f"t{n}" for n in range(ROWS)]})
    frame["time"] = start + pd.to_timedelta(np.arange(ROWS) * 47, unit="min")
    frame["driver"] = np.arange(ROWS) % 14
    frame["fare"] = [f"{value:.3f}" for value in rng.gamma(2, 9, ROWS)]
    frame["distance"] = rng.gamma(2, 4000, ROWS).round(4)
    frame["note"] = [None if n % 3 else f"type {n % 5}" for n in range(ROWS)]
    frame["late"] = np.where(rng.random(ROWS) < 0.3, "late", "on time").astype(object)
    frame.to_parquet(file.path)
    for row in frame.to_dict("records"):
        values = {
            "driver": row["driver"],
            "fare": float(row["fare"]),
            "distance": row["distance"],
            "note": row["note"] if isinstance(row["note"], str) else None,
        }
        file.good[row["trip_id"]] = values | {"time": row["time"].to_pydatetime(), "late": row["late"] == "late"}
    return file


def rows_without_times(folder: Path) -> MessyFile:
    """Neither an id nor a time: rows at an interval."""
    rng = _random(12)
    file = MessyFile(folder / "applicants.csv", "risk", {"every": "2h", "start": "2024-05-01"}, key="time")
    rows = [["amount", "age", "job", "risk"]]
    for n in range(ROWS):
        amount, age, bad = int(rng.integers(5, 20)) * 100, int(rng.integers(20, 23)), bool(rng.random() < 0.3)
        rows.append([str(amount), str(age), "x", "bad" if bad else "good"])
        time = datetime(2024, 5, 1, tzinfo=UTC) + timedelta(hours=2 * n)
        file.good[int(time.timestamp() * 1000)] = {"amount": amount, "age": age, "risk": bad, "time": time}
    file.path.write_text(_lines(rows, ","), "utf-8")
    file.notes = ("No column is a time", "the same in all rows: 'job'")
    return file


HOSTILE = [
    *("copy", "json", "schema", "model_x", "model_config", "name", "on", "self", "label", "score", "format", "list"),
    *(
        "it's",
        '"""',
        "{{ x }}",
        "{% raw %}",
        "\N{PILE OF POO} \N{MATHEMATICAL BOLD SMALL A}",
        "\\",
        "# %% cell",
        "customer_id",
    ),
]


def hostile_names(folder: Path) -> MessyFile:
    """Names and texts that mean something to Python, pydantic, jinja, notebooks or shells; a name of the file that is no identifier."""
    rng = _random(13)
    file = MessyFile(folder / 'fields\' "2025" $(x).csv', "events")
    texts = ["it's", '"""', "two\nlines", "{{ 7 * 7 }}", "\\", "\N{PILE OF POO}", "# %% cell", "{% raw %}"]
    rows = [["id", "time", *HOSTILE, "events"]]
    for n in range(ROWS):
        time = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=53 * n)
        word = texts[int(rng.integers(len(texts)))]
        cells = [texts[(n * place + place) % len(texts)] for place in range(1, len(HOSTILE))]
        rows.append([f"h'{n}", time.isoformat(), *cells, str(n * 7 % 90), word])
        file.good[f"h'{n}"] = {"time": time, "copy_": cells[0], "name_": cells[5], "on_": cells[6], "it_s": cells[12]}
        file.good[f"h'{n}"] |= {"customer_id": n * 7 % 90, "events": word}
    file.path.write_text(_lines(rows, ","), "utf-8")
    file.notes = ("The outcome 'events' has 8 different values",)
    file.answers = {"outcome": "events"}
    return file


QUESTION = (
    "How content are you with the advice that you were given in our branch, all in all, from 1 (not) to 10 (very)?"
)


def survey_of_answers(folder: Path) -> MessyFile:
    """Questions as names of columns, an outcome that is often pending, and half of a surrogate pair in a cell of UTF-8."""
    rng = _random(14)
    file = MessyFile(folder / "survey.csv", "risk")
    rows = [["id", "time", QUESTION, f'{QUESTION} And why, in "one" word?', "Größe", "risk"]]
    for n in range(ROWS):
        time = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=53 * n)
        answer, bad, is_pending = int(rng.integers(1, 11)), bool(rng.random() < 0.3), n % 10 == 3
        why, size = ["advice", "price", 'the "rest"'][n % 3], ["groß", "klein"][n % 2]
        outcome = "pending" if is_pending else "bad" if bad else "good"
        rows.append([f"s{n}", time.isoformat(), str(answer), why, f"{size}\ud83d" if n == 30 else size, outcome])
        values = {"how_content_are_you_with_the": answer, "how_content_are_you_with_the_2": why, "groesse": size}
        file.good[f"s{n}"] = values | {"time": time, "risk": None if is_pending else bad}
    file.bad[30] = "has bytes that are no UTF-8"
    del file.good["s30"]
    file.path.write_bytes(_lines(rows, ",").encode("utf-8", "surrogatepass"))
    file.notes = ("is empty in 36 of 359 rows", "'pending' counts as empty", "row 30 has bytes that are no UTF-8")
    return file


MAKERS: tuple[Callable[[Path], MessyFile], ...] = (
    *(german_spreadsheet, american_export, british_tabs, unicode_text, titled_report, log_of_milliseconds),
    *(spreadsheet_days, french_nanoseconds, json_lines, parquet_of_types, parquet_with_zone, rows_without_times),
    *(hostile_names, survey_of_answers),
)
