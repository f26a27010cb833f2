"""A file of any notation becomes a project whose log has every good row with its right values, and says of every other row why."""

import sys
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command import Answer
from messy_files import MAKERS, MessyFile

import mlpkg as ml
from mlpkg import cli as command_line
from mlpkg import lab
from mlpkg.settings import Settings


def code_of(proposal: lab.Proposal, name: str) -> str:
    """The module of a use case, as a person would write it from a proposal."""
    fields = "\n".join(f"    {f.name}: {f.annotation}  # {f.seen}" for f in proposal.fields)
    own = "".join(f"    {f}=ml.field({f!r}),\n" for f in proposal.features)
    sums = "".join(f", {f}=ml.mean({f!r}, over={proposal.windows[-1]!r})" for f in proposal.numbers)
    count = f"n=ml.count(over={list(proposal.windows)!r})"
    groups = "".join(f"    by_{key}=events.by({key!r}).agg({count}{sums}),\n" for key in proposal.keys)
    assigned = "".join(f"            {f.name}={f.code},\n" for f in (*proposal.fields, proposal.outcome))
    kind = proposal.outcome.annotation.partition(" |")[0]
    return f"""from typing import Annotated

from pydantic import Field

import mlpkg as ml


class Row(ml.Event):
{fields}


events = ml.Source("events", Row, retention={proposal.retention!r}, allowed_lateness={proposal.retention!r})
label = events.outcome(
    {proposal.outcome.name!r}, {kind}, default={proposal.outcome_default}, matures_after={proposal.matures_after!r}
)
features = ml.FeatureSet(
    {name!r},
    on=events,
{own}{groups})
use_case = ml.UseCase({name!r}, features, policy=lambda score, event: "go", fallback="go")


def read(path):
    from mlpkg import lab

    for rows in lab.read_rows(path):
        yield rows.as_events(
            id={proposal.id_code},
            time={proposal.time_code},
{assigned}        )
"""


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """The command `mlpkg` in this process, in a folder with a use case."""

    def call(*arguments: object) -> Answer:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(sys, "argv", ["mlpkg", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            sys.exit(command_line.main())
        captured = capfd.readouterr()
        return Answer(int(end.value.code or 0), str(captured.out), str(captured.err))

    return call


def logged(module: Any, folder: Path, file: MessyFile) -> dict[Any, dict[str, Any]]:
    """The events in the log with their outcomes, by the key of the file."""
    with closing(ml.open_store(Settings.load(folder))) as store:
        store.register(module.use_case.name, module.features)
        frame = lab.events(module.events, store=store)
    outcome = module.label
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
    make: Callable[[Path], MessyFile], tmp_path: Path, command: Callable[..., Answer]
):
    file, name = make(tmp_path), make.__name__
    proposal = lab.propose(file.path, **file.answers)
    for note in file.notes:
        assert any(note in line for line in proposal.notes), proposal.notes
    (tmp_path / f"{name}.py").write_text(code_of(proposal, name), "utf-8")
    use_cases = f"[DEFAULT]\nstate = state\nuse_cases =\n    {name} = {name}:use_case\n"
    (tmp_path / "settings.ini").write_text(use_cases, "utf-8")

    done = command("ingest", name, file.path, "--json")
    assert done.status == 0, done.err
    refused = dict(done.json["refused"])
    assert set(refused) == set(file.bad), {row: refused[row] for row in set(refused) - set(file.bad)}
    for row, word in file.bad.items():
        assert word in refused[row], refused[row]

    rows = logged(import_module(name), tmp_path, file)
    assert set(rows) == set(file.good)
    wrong = [
        (key, n, rows[key].get(n), v)
        for key, values in file.good.items()
        for n, v in values.items()
        if not same(rows[key].get(n), v)
    ]
    assert not wrong, (len(wrong), wrong[:5], proposal.fields)
    assert done.json["known"] == file.repeated


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
        assert options in str(caught.value.as_options())
