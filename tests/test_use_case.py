"""The page `docs/use-case.md`: what it lists is written and run, in an empty folder, and does what it says."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "use-case.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


RUN = """
import os, runpy, shlex, sys
from mlpkg.cli import main

for line in sys.stdin:
    print(f"$ {line}", end="", flush=True)
    if "VERSION" in line:
        line = line.replace("VERSION", os.listdir("state/models/shop")[0])  # the only one there is
    command, *arguments = shlex.split(line)
    sys.argv = [command, *arguments] if command == "mlpkg" else arguments
    try:
        main() if command == "mlpkg" else runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the commands of the page print, in its order, each after `$` and itself; one process runs them all, to save the imports."""
    folder = tmp_path_factory.mktemp("shop")
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLPKG_")} | {
        "BENTOML_HOME": str(folder / "bentoml")
    }
    commands = []
    for kind, text in BLOCKS:
        if kind != "sh":
            (folder / text.partition("\n")[0].removeprefix("# ")).write_text(text, "utf-8")
            continue
        for line in text.splitlines():
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").partition("=")
                env[name] = os.pathsep.join(filter(None, [value, env.get(name)]))
            else:
                commands.append(line)
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=folder,
        env=env,
        input="\n".join(commands),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def after(said: str, command: str) -> str:
    """What the first command that begins so printed."""
    return said.partition(f"$ {command}")[2].partition("\n")[2].partition("\n$ ")[0]


def test_every_file_of_the_page_is_loaded_without_a_refusal(said: str):
    assert after(said, "mlpkg ingest shop profiles.csv") == "300 profiles"
    orders, reports = after(said, "mlpkg ingest shop orders").split(", ")
    assert orders == "4000 orders" and 400 < int(reports.removesuffix(" orders.returned")) < 2000


def test_the_page_looks_at_features_before_there_is_a_model(said: str):
    shown = after(said, "python look.py")
    assert "customer_mean_amount_30d" in shown and "profile_segment" in shown
    assert "loyal" in shown or "new" in shown


def test_a_model_that_was_saved_by_a_script_is_listed_and_goes_live(said: str):
    version = after(said, "python train.py").splitlines()[-1]
    assert version in after(said, "mlpkg models shop")
    assert after(said, "mlpkg promote shop") == f"{version} is live"


def test_the_dear_clothes_are_asked_about_and_the_book_is_shipped(said: str):
    assert after(said, """mlpkg decide shop '{"id": "n1\"""").startswith("n1: ask first")
    assert after(said, """mlpkg decide shop '{"id": "n2\"""").startswith("n2: ship")
    assert after(said, "mlpkg outcome shop n1") == "n1: noted"
    assert len(after(said, "mlpkg decisions shop").splitlines()) == 2
    assert "2 decisions" in after(said, "mlpkg report shop")
    assert after(said, "mlpkg verify shop").startswith("2 decisions by 1 models, 0 mismatches")


def test_the_script_becomes_a_notebook_that_papermill_runs(said: str):
    assert re.match(r"model \S+: auc 0\.[6-9]", after(said, "mlpkg train shop"))
    assert len(said.rpartition("$ mlpkg models shop")[2].strip().splitlines()) == 2
