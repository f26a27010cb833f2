"""What others wrote is shown, and no terminal obeys it: whichever verb prints it, wherever it comes from."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from bank import Bank
from command import Command
from handbook import fraud
from project import Project

import mlpkg as ml
from mlpkg import auth
from mlpkg.settings import Settings

CONTROLS = {
    "escape": "\x1b[2J\x1b]0;owned\x07",
    "line break": "x\r\n2026-01-01T00:00:00Z  forged",
    "backspace": "good\x08\x08\x08\x08evil",
    "C1": "\x9b2J\x9d0;owned\x9c",
    "delete": "\x7f",
    "bidi override": "\u202etxt.exe\u202c",
    "bidi isolate": "\u2066a\u2069\u2067b\u2068c",
    "bidi mark": "\u200f\u200e\u061c",
    "separator": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "invisible": "a\u200bb\ufeffc\U000e0041",
}


def is_plain(text: str) -> bool:
    """Whether there is nothing in a text that a terminal obeys, but the ends of its own lines."""
    return all(c.isprintable() or c in "\n\u00a0" for c in text)


@pytest.fixture(params=CONTROLS.values(), ids=list(CONTROLS))
def evil(request: pytest.FixtureRequest) -> str:
    return request.param


def event(**changes: Any) -> dict[str, Any]:
    time = "2018-08-01T10:00:00Z"
    return {"id": "tx-1", "time": time, "customer_id": 1, "terminal_id": 2, "amount": 1.0} | changes


def test_what_was_refused_is_shown_on_one_line_each(cli: Command, stocked: Project, evil: str):
    for field in ("id", "amount", "customer_id", "time", evil):
        bad = event(id=f"tx{evil}", amount="x") | {field: evil}
        answer = cli("decide", "fraud", json.dumps(bad), "--arrived", "2018-08-01T10:00:00Z")
        assert answer.status == 1 and is_plain(answer.err + answer.out) and len(answer.err.splitlines()) == 1, answer
    answer = cli("dead-letters", "list")
    assert answer.status == 0 and is_plain(answer.out)
    known = cli("dead-letters", "list", "--json")
    assert is_plain(known.out) and len(answer.out.splitlines()) == len(known.json_lines)
    assert any(evil in (letter["value"] + (letter["event"] or "")) for letter in known.json_lines), "JSON says it all"


def test_what_somebody_looked_at_is_shown_on_one_line_each(cli: Command, stocked: Project, evil: str):
    store: Any = ml.open_store(Settings(state=stocked.state))
    with closing(store):
        for path in (
            f"/v1/decisions/{evil}",
            f"/v1/decisions?entity={evil}",
            f"/v1/events/transactions/{unquote(evil)}",
        ):
            auth.record(store, auth.Caller("f00", evil, "auditor"), "GET", path, False)
    answer, as_json = cli("access-log"), cli("access-log", "--json")
    assert is_plain(answer.out) and len(answer.out.splitlines()) == 3 == len(as_json.json) and is_plain(as_json.out)
    assert as_json.json[0]["path"] == f"/v1/decisions/{evil}"


@pytest.mark.parametrize("verb", [("access-log",), ("decisions", "fraud"), ("timeline", "fraud", "customer_id=1")])
def test_a_number_of_lines_below_zero_is_refused(cli: Command, project: Project, verb: tuple[str, ...]):
    answer = cli(*verb, "-n", "-5")
    assert answer.status == 2 and "-5 is not in the range x>=0" in answer.err


def test_a_token_that_would_outlast_all_times_is_refused_and_the_others_are_listed(cli: Command, project: Project):
    cli("token", "create", "--role", "auditor", "--expires", "99999999d").said_one_line("outlast the year 2199")
    assert cli("token", "create", "--role", "auditor", "--name", "ann", "--expires", "36500d").status == 0
    (token,) = cli("token", "list", "--json").json
    assert (token["name"], token["expires"][:3]) == ("ann", "212")


def test_rows_of_a_file_that_are_refused_are_shown_plainly(cli: Command, project: Project, tmp_path: Path, evil: str):
    lines = [event(id=f"tx{evil}", amount="x"), event(id="tx-2", **{f"note{evil}": 1}), event(amount=evil)]
    path = tmp_path / "rows.ndjson"
    path.write_text("\n".join(map(json.dumps, lines)))
    answer = cli("ingest", "fraud", path)
    assert is_plain(answer.out + answer.err), answer
    assert is_plain(cli("dead-letters", "list").out)


@pytest.mark.parametrize(
    "evil", [text for name, text in CONTROLS.items() if name.startswith(("bidi", "invisible"))], ids=ascii
)
def test_ids_of_the_log_are_shown_plainly(cli: Command, bank: Bank, evil: str):
    """Controls are refused in ids; what turns the direction of writing may belong to a name."""
    state = bank.store.settings.state
    decided = bank.pays(f"tx{evil}", 100)
    bank.store.report(fraud.outcomes["fraud"], {"id": f"late{evil}", "fraud": True})
    auth.create(bank.store, "auditor", by="me", name="me")
    for verb in (
        ("decisions", "fraud"),
        ("decisions", "fraud", decided.event),
        ("timeline", "fraud", "customer_id=1"),
        ("outcome", "fraud", "--waiting"),
        ("verify", "fraud"),
        ("report", "fraud"),
        ("models", "fraud", "--changes"),
        ("token", "list"),
    ):
        answer = cli(*verb, state=state)
        assert answer.status == 0 and is_plain(answer.out + answer.err), (verb, answer)
        assert len(answer.out) > 5


@pytest.mark.parametrize(
    "verb", [("decisions", "fraud"), ("promote", "fraud"), ("token", "revoke"), ("restore",), ("timeline", "fraud")]
)
def test_what_was_given_is_said_plainly_in_an_error(cli: Command, stocked: Project, verb: tuple[str, ...], evil: str):
    answer = cli(*verb, evil)
    assert answer.status != 0 and is_plain(answer.out + answer.err), answer
