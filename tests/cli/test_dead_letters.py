"""`mlpkg dead-letters`: what was refused is listed, mended and sent again, on the command line."""

import json
from contextlib import closing
from typing import Any

import handbook
import pytest
from command import Command
from project import Project

import mlpkg as ml
from mlpkg.schema import Rejected
from mlpkg.store import Store
from mlpkg.times import HOUR, iso, now

fraud = handbook.transactions.outcomes["fraud"]


def event(id: str, **changes: Any) -> dict[str, Any]:
    return {"id": id, "time": iso(now() - HOUR), "customer_id": 1, "terminal_id": 2, "amount": 1.0} | changes


def refuse(store: Store, *events: dict[str, Any]) -> None:
    for body in events:
        with pytest.raises(Rejected):
            store.accept(handbook.transactions, body)


@pytest.fixture
def letters(project: Project) -> Project:
    """A project whose store has three dead letters of events, and one of a report."""
    with closing(ml.open_store(project.settings)) as store:
        store.register("fraud", handbook.features)
        store.accept(handbook.transactions, event("known"))
        refuse(store, event("a", amount=-1.0, candidates=[1]), event("b", amount="x"), event("c", amout=1.0))
        with pytest.raises(Rejected):
            store.report(fraud, {"id": "known", "fraud": "yes"})
    return project


def log_of(project: Project) -> list[str]:
    with closing(ml.open_store(project.settings)) as store:
        return [f"{entry.source} {entry.id}" for entry in store.read()]


def test_letters_are_listed_by_source_and_bounded(letters: Project, cli: Command):
    lines = cli("dead-letters", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4"] and "amount: x is a text" in lines[1]
    assert cli("dead-letters", "list", "transactions.fraud").out.splitlines() == lines[3:]
    latest = cli("dead-letters", "list", "-n", "1", "--json")
    assert [letter["number"] for letter in latest.json_lines] == [4] and "3 older ones" in latest.err
    assert latest.json_lines[0]["body"] == {"id": "known", "fraud": "yes"}
    nothing = cli("dead-letters", "list", "transaction")
    assert nothing.out == "no dead letters of transaction; transactions has 3, transactions.fraud has 1\n"


def test_letters_are_set_edited_and_retried_once(letters: Project, cli: Command):
    foreseen = cli("dead-letters", "retry", "1", "2", "--set", "amount=12.50", "--dry-run")
    assert foreseen.status == 0 and foreseen.out.count("would be accepted") == 3 and len(log_of(letters)) == 1
    done = cli("dead-letters", "retry", "1", "2", "--set", "amount=12.50")
    assert done.status == 0 and done.out.endswith("2 accepted\n"), done

    lines = cli("dead-letters", "list", "--json", "-n", "0").json_lines
    lines[0]["body"] |= {"amount": lines[0]["body"].pop("amout")}
    lines[1]["body"]["fraud"] = True
    (letters.folder / "edited.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = cli("dead-letters", "retry", "--edit", "edited.jsonl", "--json")
    assert [(r["number"], r["became"]) for r in done.json_lines] == [(3, "accepted"), (4, "accepted")], done
    again = cli("dead-letters", "retry", "--edit", "edited.jsonl")
    assert again.status == 0 and again.out.endswith("2 retried before\n")

    assert log_of(letters) == [*(f"transactions {id}" for id in ("known", "a", "b", "c")), "transactions.fraud known"]
    assert cli("dead-letters", "list").out == "no dead letters\n"
    retried = cli("dead-letters", "list", "--retried").out.splitlines()
    assert len(retried) == 4 and retried[0].endswith("position 2") and "amount: x is a text" in retried[1]


def test_letters_that_are_refused_again_stay(letters: Project, cli: Command):
    done = cli("dead-letters", "retry", "--all", "--set", "amount=2", "--set", "id=known")
    assert done.status == 1 and "4 refused again" in done.out and "used before for other content" in done.out
    assert len(cli("dead-letters", "list").out.splitlines()) == 4 and log_of(letters) == ["transactions known"]
    foreseen = cli("dead-letters", "retry", "1", "--set", "amount=2", "--set", "id=known", "--dry-run")
    assert foreseen.status == 1 and "used before for other content" in foreseen.out


def test_a_contract_that_was_mended_takes_the_letters(letters: Project, cli: Command):
    (letters.folder / "tolerant.py").write_text(
        "import handbook, mlpkg as ml\n"
        "class Transaction(handbook.Transaction):\n    amout: float | None = None\n"
        "transactions = ml.Source('transactions', Transaction, subject='customer_id', allowed_lateness='3d')\n"
        "features = ml.FeatureSet('fraud', on=transactions, customer=transactions.by('customer_id').agg(n=ml.count(over='1d')))\n"
        "case = ml.UseCase('fraud', features, policy=lambda score, event: 'accept')\n"
    )
    (letters.folder / "settings.ini").write_text("[DEFAULT]\nstate = state\nuse_cases = fraud = tolerant:case\n")
    done = cli("dead-letters", "retry", "transactions")
    assert done.out.splitlines()[-1] == "2 refused again, 1 accepted", done


def test_mistakes_are_one_line_with_a_hint(letters: Project, cli: Command):
    cli("dead-letters", "retry", "9").said_one_line("no dead letter 9", "mlpkg dead-letters list")
    cli("dead-letters", "retry", "transaction").said_one_line("did you mean 'transactions'?")
    for wrong in ((), ("1", "--all"), ("1", "transactions"), ("1", "--set", "amount")):
        assert cli("dead-letters", "retry", *wrong).status == 2
    (letters.folder / "edited.jsonl").write_text('{"number": 1}\n')
    cli("dead-letters", "retry", "--edit", "edited.jsonl").said_one_line("line 1", "body", "counts once")


def test_a_letter_that_was_cut_needs_a_body(letters: Project, cli: Command):
    with closing(ml.open_store(letters.settings)) as store:
        refuse(store, event("long", note="x" * 30_000))
    assert "is not what was sent" in cli("dead-letters", "retry", "5").out
    line = cli("dead-letters", "list", "--json", "-n", "1").json_lines[0]
    assert not line["is_whole"] and line["body"].startswith('{"id":"long"')
    (letters.folder / "edited.jsonl").write_text(json.dumps({"number": 5, "body": event("long")}))
    assert cli("dead-letters", "retry", "--edit", "edited.jsonl").status == 0


def test_very_many_letters_are_retried_page_by_page(letters: Project, cli: Command):
    with closing(ml.open_store(letters.settings)) as store:
        why = Rejected("Transaction.amount", -1, "is below 0")
        refusals = [(handbook.transactions.name, event(f"m{k}", amount=-1.0), why) for k in range(1_000)]
        store.add_dead_letters(ml.store.Refusal(*refusal) for refusal in refusals)
    done = cli("dead-letters", "retry", "--all", "--set", "amount=5", "--json")
    became = [result["became"] for result in done.json_lines]
    assert became.count("accepted") == 1_002 and len(became) == 1_004 and done.status == 1
    assert len(log_of(letters)) == 1_003
