"""`mlpkg check` in real folders: each broken state once, and nothing is changed by looking."""

import json
import os
import time
from pathlib import Path

import pytest
from command import Command
from project import Project

CASE = """import mlpkg as ml


class Order(ml.Event):
    customer: str
    amount: float


orders = ml.Source("orders", Order, subject="customer")
returned = orders.outcome("returned", bool, default=False, matures_after="14d")
features = ml.FeatureSet("shop", on=orders, customer=orders.by("customer").agg(n=ml.count(over="7d")))
shop = ml.UseCase("shop", features, policy=lambda score, order: "accept")
"""


@pytest.fixture
def shop(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with one module, which no other test imports, on a port where nobody answers."""
    module = f"shop_{project.folder.parent.name.replace('-', '_')}"
    place = f"{module}:shop"
    text = f"[DEFAULT]\nstate = state\nport = 1\ntrust_loopback = true\nuse_cases =\n    shop = {place}\n"
    (project.folder / "settings.ini").write_text(text)
    (project.folder / f"{module}.py").write_text(CASE)
    return project


def module_of(shop: Project) -> Path:
    return next(shop.folder.glob("shop_*.py"))


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if "__pycache__" not in str(p)}


def finding(answer: object, part: str) -> dict[str, str]:
    return next(f for f in answer.json["findings"] if f["part"] == part)  # type: ignore[attr-defined]


def test_an_empty_folder_is_told_to_make_a_project(project: Project, cli: Command):
    (project.folder / "settings.ini").unlink()
    answer = cli("check")
    assert answer.out == (
        f"✗ settings: there is no settings.ini in {project.folder} or above\n  → mlpkg new NAME\n\n1 missing; begin with the first\n"
    )
    assert (answer.status, answer.err, os.listdir(project.folder)) == (1, "", [])


def test_a_folder_of_projects_leads_to_them(project: Project, cli: Command):
    (project.folder / "settings.ini").unlink()
    for name, words, command in (
        ("my clicks", "the folder my clicks is a project", "cd 'my clicks'"),
        ("shop", "the folders my clicks, shop are projects", "cd PROJECT"),
    ):
        (project.folder / name).mkdir()
        (project.folder / name / "settings.ini").touch()
        settings = finding(cli("check", "--json"), "settings")
        assert settings["detail"].endswith(f"or above; {words}") and settings["command"] == command


def test_settings_without_a_use_case_say_so(project: Project, cli: Command):
    (project.folder / "settings.ini").write_text("[DEFAULT]\nstate = state\nuse_cases =\n")
    answer = cli("check")
    assert answer.status == 1
    assert "no use case is named: add a line NAME = MODULE:OBJECT under use_cases" in answer.out


def test_settings_that_cannot_be_read_are_one_line(project: Project, cli: Command):
    (project.folder / "settings.ini").write_text("state = state\n")
    answer = cli("check")
    assert answer.status == 1 and "Traceback" not in answer.out + answer.err
    assert answer.out.startswith(f"✗ settings: {project.folder}/settings.ini cannot be read")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CASE + "\nundefined\n", ".py:14: NameError: name 'undefined' is not defined"),
        (CASE + "\ndef broken(:\n", "line 14"),
        ("shop = 1\n", "is a int, not a UseCase"),
        ("other = 1\n", "has no 'shop'; define it there, as in ml.UseCase(...)"),
        ("raise SystemExit(3)\n", "ends Python when it is imported (3)"),
    ],
)
def test_a_definition_that_fails_says_where(shop: Project, cli: Command, text: str, words: str):
    module_of(shop).write_text(text)
    answer = cli("check", "shop", "--json")
    checked = finding(answer, "use case")
    assert answer.status == 1 and not answer.json["ready"] and "Traceback" not in answer.err
    assert checked["status"] == "missing" and words in checked["detail"], checked


def test_a_module_that_prints_does_not_spoil_the_json(shop: Project, cli: Command):
    module_of(shop).write_text("print('hello')\n" + CASE)
    assert finding(cli("check", "--json"), "use case")["status"] == "ok"


def test_an_unknown_use_case_lists_the_known_ones(shop: Project, cli: Command):
    answer = cli("check", "shpo")
    assert answer.status == 1 and "there is no use case 'shpo' (known: shop)" in answer.out


def test_a_project_without_a_state_is_led_to_the_first_command_and_stays_as_it_is(shop: Project, cli: Command):
    answer = cli("check", "shop", "--json")
    commands = {f["part"]: f["command"] for f in answer.json["findings"] if f["status"] == "missing"}
    assert commands == {
        "store": "mlpkg ingest shop FILE",
        "model": "mlpkg train shop",
    }
    assert finding(answer, "use case")["detail"] == "decides on orders (2 fields), learns returned, 1 features"
    assert not shop.state.exists()


def test_looking_at_a_store_changes_nothing(shop: Project, cli: Command):
    rows = "a,2025-01-01T00:00:00.5Z,c,1,False\nb,nonsense,c,2,False\n"
    (shop.folder / "orders.csv").write_text(f"id,time,customer,amount,returned\n{rows}")
    ingested = cli("ingest", "shop", "orders.csv")
    assert ingested.out == "1 orders\n"
    assert "the default of orders.returned is not stored: 1 rows have it\n" in ingested.err
    time.sleep(0.01)
    before = contents(shop.folder)
    answer = cli("check", "shop")
    assert contents(shop.folder) == before
    assert "✓ store: 1 orders, 0 orders.returned, 0 decisions; from 2025-01-01 to 2025-01-01\n" in answer.out
    assert "· refused: 1 dead letters\n  → mlpkg dead-letters list\n" in answer.out
    assert "✓ timelines: 1 of 1 are there\n" in answer.out
    age = finding(cli("check", "shop", "--json"), "age")
    assert age["detail"].startswith("the log ends at 2025-01-01T00:00:00.500000Z, when an event of orders arrived")
    assert age["command"] == "mlpkg serve shop --as-of 2025-01-01T00:00:01Z", "the first full second after it"


def test_a_changed_definition_says_what_will_be_built(shop: Project, cli: Command):
    (shop.folder / "orders.csv").write_text("id,time,customer,amount\na,2025-01-01T00:00:00Z,c,1\n")
    shop.run("ingest", "shop", "orders.csv")
    module_of(shop).write_text(CASE.replace('n=ml.count(over="7d")', 'm=ml.mean("amount", over="7d")'))
    checked = finding(cli("check", "shop", "--json"), "timelines")
    assert checked["status"] == "note"
    assert checked["detail"].startswith("orders by customer will be built by the next ingest")
    module_of(shop).write_text(CASE.replace("amount: float", "amount: int"))
    checked = finding(shop.run("check", "shop", "--json"), "contract")
    assert checked["status"] == "missing" and "amount" in checked["detail"]


def test_a_store_of_another_version_or_a_damaged_one_is_one_line(shop: Project, cli: Command):
    shop.state.mkdir()
    (shop.state / "mlpkg.db").touch()
    assert "is just being made; try again in a moment" in cli("check").out
    (shop.state / "mlpkg.db").write_bytes(b"no database" * 500)
    answer = cli("check")
    assert answer.status == 1 and "✗ store: " in answer.out and "Traceback" not in answer.err


def test_a_machine_that_is_not_trusted_needs_a_token(shop: Project, cli: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLPKG_TRUST_LOOPBACK", "false")
    checked = finding(cli("check", "--json"), "callers")
    assert checked["command"] == "mlpkg token create --role application"
    cli("token", "create", "--role", "application")
    assert finding(cli("check", "--json"), "callers")["status"] == "ok"


def test_a_notebook_that_was_not_exported_is_named(shop: Project, cli: Command):
    (shop.folder / "pyproject.toml").write_text(
        '[tool.nbdev]\nlib_name = "shop"\nlib_path = "shop"\nnbs_path = "nbs"\n'
    )
    (shop.folder / "nbs").mkdir()
    cells = [
        {"cell_type": "code", "source": f"#| {text}", "metadata": {}}
        for text in ("default_exp policy", "export\nLIMIT = 1")
    ]
    (shop.folder / "nbs" / "policy.ipynb").write_text(json.dumps({"cells": cells}))
    checked = finding(cli("check", "--json"), "notebooks")
    assert (
        checked["detail"] == "the package is not what these export: policy.ipynb"
        and checked["command"] == "nbdev-export"
    )
