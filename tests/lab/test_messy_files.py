"""A file of any notation becomes a project whose log has every good row with its right values, and says of every other row why."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from command import Answer
from messy_files import (
    MAKERS,
    MessyFile,
    british_tabs,
    hostile_names,
    parquet_of_types,
    rows_without_times,
    survey_of_answers,
)

import mlpkg as ml
from mlpkg import cli as command_line
from mlpkg import lab
from mlpkg.lab.project import new_project
from mlpkg.settings import Settings

LONG = bool(os.environ.get("MLPKG_LONG"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The folder of a project that is made."""
    return tmp_path / "project"


@pytest.fixture
def command(project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """The command `mlpkg` in this process, in the folder of a project."""

    def call(*arguments: object) -> Answer:
        monkeypatch.chdir(project)
        monkeypatch.syspath_prepend(str(project))
        monkeypatch.setattr(sys, "argv", ["mlpkg", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            sys.exit(command_line.main())
        captured = capfd.readouterr()
        return Answer(int(end.value.code or 0), str(captured.out), str(captured.err))

    return call


def logged(module: Any, folder: Path, file: MessyFile) -> dict[Any, dict[str, Any]]:
    """The events in the log with their outcomes, by the key of the file."""
    source = module.use_case.on
    with closing(ml.open_store(Settings.load(folder))) as store:
        store.register(module.use_case.name, module.features)
        frame = lab.events(source, store=store)
    (outcome,) = source.outcomes.values()
    frame[outcome.name] = frame[outcome.name].astype(object).where(frame[outcome.name].notna(), outcome.default)
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    if file.key == "time":
        return {int(row["time"].timestamp() * 1000 + 0.5): row for row in rows}
    return {row[file.key]: row for row in rows}


def same(value: Any, truth: Any) -> bool:
    """Whether a stored value is the true one, to the last step of its resolution."""
    if isinstance(truth, float):
        return value is not None and abs(value - truth) <= 1e-9 * max(abs(truth), 1)
    return pd.Timestamp(value) == pd.Timestamp(truth) if hasattr(truth, "tzinfo") else value == truth


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_good_rows_are_logged_and_others_named(
    make: Callable[[Path], MessyFile], tmp_path: Path, project: Path, command: Callable[..., Answer]
):
    file, name = make(tmp_path), make.__name__
    proposal = lab.propose(file.path, **file.answers)
    for note in file.notes:
        assert any(note in line for line in proposal.notes), proposal.notes
    new_project(name, proposal, into=project, bare=True)

    done = command("ingest", name, file.path, "--json")
    assert done.status == 0, done.err
    refused = dict(done.json["refused"])
    assert set(refused) == set(file.bad), {row: refused[row] for row in set(refused) - set(file.bad)}
    for row, word in file.bad.items():
        assert word in refused[row], refused[row]

    rows = logged(import_module(name), project, file)
    assert set(rows) == set(file.good)
    wrong = [
        (key, n, rows[key].get(n), v)
        for key, values in file.good.items()
        for n, v in values.items()
        if not same(rows[key].get(n), v)
    ]
    assert not wrong, (len(wrong), wrong[:5], proposal.fields)
    assert done.json["known"] == file.repeated


WHOLE = [
    (hostile_names, "a text"),
    (survey_of_answers, "that is often not known"),
    (parquet_of_types, "sum"),
    (rows_without_times, "of a file without keys"),
]


@pytest.mark.parametrize(("make", "outcome"), WHOLE if LONG else WHOLE[:2])
def test_a_whole_project_is_tidy_and_learns_from_what_it_makes_up(
    make: Callable[[Path], MessyFile], outcome: str, tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
):
    file, name = make(tmp_path), f"whole_{make.__name__}"
    answers = file.answers | ({"outcome": outcome} if " " not in outcome else {})
    new_project(name, lab.propose(file.path, **answers), into=project)
    for check in (("format", "--check"), ("check", "--extend-select", "E501")):  # by the settings of the project
        done = subprocess.run([sys.executable, "-m", "ruff", *check, "."], cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    monkeypatch.setenv("PYTHONPATH", str(project), prepend=os.pathsep)
    policy, simulator, _, _ = (
        import_module(f"{name}.{module}") for module in ("policy", "simulator", "features", "model")
    )

    events = simulator.simulate(400, seed=1)
    with closing(ml.open_store(Settings.load(), create=True)) as store:
        done = lab.ingest(policy.use_case, events, store)
        assert (done.refused, done.new[policy.use_case.on.name]) == ([], 400)
        span = {"start": str(events["time"].min()), "end": str(events["time"].max()), "rounds": 5}
        model = lab.run_training(policy.use_case, store, span)
        assert store.active_version(name) == model.version
        assert any(means.nunique() > 1 for means in means_by_field(project, monkeypatch)), "no group differs"


def means_by_field(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[pd.Series]:
    """The mean outcome by each field, as the notebook `explore` of a project shows it."""
    shown: list[pd.DataFrame] = []
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    notebook = nbformat.read(project / "nbs" / "explore.ipynb", as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    exec("\n".join(code), {"display": shown.append})
    return [pd.Series(frame["mean"]) for frame in shown]


def test_a_field_of_few_words_refuses_others(tmp_path: Path, project: Path, command: Callable[..., Answer]):
    """A person may narrow a proposed `str` to the words that were seen."""
    file = british_tabs(tmp_path)
    new_project("few_words", lab.propose(file.path, **file.answers), into=project, bare=True)
    module, file_text = (project / "few_words.py").read_text(), file.path.read_text()
    narrowed = module.replace("in_: str ", 'in_: Literal["north", "south"] ').replace(
        "import", "from typing import Literal\n\nimport", 1
    )
    assert narrowed.count("Literal") == 2
    (project / "few_words.py").write_text(narrowed)
    file.path.write_text(file_text.replace("\tnorth\t", "\twest\t", 1))

    done = command("ingest", "few_words", file.path, "--json")
    ((row, why),) = done.json["refused"]
    assert row == 0 and "west is not 'north' or 'south'" in why
    assert done.json["new"]["claims"] == len(file.good) - 1


ROWS = [f"2025-03-{n % 28 + 1:02} 10:00,{n % 9},{n % 2}" for n in range(300)]


@pytest.mark.parametrize(
    ("lines", "answers", "problem", "options"),
    [
        (ROWS, {}, "have no zone", "--tz UTC or --tz Europe/Berlin"),
        (ROWS, {"tz": "IST"}, "an abbreviation that several places share", None),
        (ROWS, {"time": "whn", "tz": "UTC"}, "there is no column 'whn'; did you mean 'when'", None),
        (ROWS[:10], {"tz": "UTC"}, "has 10 rows that can be read; a proposal needs at least 20", None),
        (
            [f"{row[:-1]}{'' if n % 30 else n % 2}" for n, row in enumerate(ROWS)],
            {},
            "missing in 290 of 300 rows",
            None,
        ),
        ([f"{row[:-1]}1" for row in ROWS], {"tz": "UTC"}, "the outcome 'late' is '1' in all rows", None),
        (
            [row[:16] + row[18:] for row in ROWS],
            {"tz": "UTC"},
            "nothing to make features of beside the time 'size'",
            None,
        ),
        ([row[17:] for row in ROWS], {}, "no column is a time", "--time COLUMN or --every 1h --start 2024-01-01"),
        (
            [row.replace(row[:16], str(45_000 + n)) for n, row in enumerate(ROWS)],
            {},
            "as a spreadsheet",
            "--format excel",
        ),
    ],
)
def test_what_a_file_does_not_tell_is_one_line(
    tmp_path: Path, lines: list[str], answers: dict[str, str], problem: str, options: str | None
):
    header = "when,size,late" if lines[0].count(",") == 2 else "size,late"
    (tmp_path / "file.csv").write_text("\n".join([header, *lines]))
    with pytest.raises(ml.MlpkgError) as caught:
        lab.propose(tmp_path / "file.csv", **({"tz": "UTC"} if "missing" in problem else answers))
    assert problem in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, lab.Question) == (options is not None)
    if isinstance(caught.value, lab.Question):
        assert options and options in str(caught.value.as_options())
