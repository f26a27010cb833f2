"""A training run is a notebook with checked parameters, and leaves a model that says where it came from."""

import json
from contextlib import closing
from pathlib import Path

import bentoml
import handbook
import nbformat
import pytest
from conftest import Command, Project, booster
from nbformat.v4 import new_code_cell, new_notebook

import mlpkg as ml
from mlpkg import lab, models

PARAMETERS = """train_from = "2018-05-01"  # the first day
train_to = "2018-05-15"
rounds = 10
rate = 0.1
quick = False"""

TRAIN = """from pathlib import Path
Path("ran").touch()
import lightgbm as lgb
from handbook import features, fraud
from mlpkg import lab

rows = lab.training_set(features, train_from, train_to)
data = lgb.Dataset(rows[features.names], rows["label"].astype(int))
choices = {"objective": "binary", "verbose": -1, "num_threads": 1, "num_leaves": 7, "learning_rate": rate}
model = lgb.train(choices, data, rounds)"""

HAND_OVER = """lab.save_model(fraud, model, rows, metrics={"auc": lab.auc(rows["label"], model.predict(rows[features.names]))})"""


@pytest.fixture
def notebook(stocked: Project) -> Path:
    """A small training notebook where `mlpkg train fraud` looks for it."""
    path = stocked.folder / "nbs" / "fraud" / "train.ipynb"
    write(path, PARAMETERS, TRAIN, HAND_OVER)
    return path


def write(path: Path, parameters: str, *cells: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[tagged, *map(new_code_cell, cells)]), path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("round", "10", ["train.ipynb has no parameter 'round'", "rounds"]),
        ("Rounds", "10", ["no parameter 'Rounds'"]),
        ("rounds", "many", ["rounds = 'many' is not of type int"]),
        ("rounds", "1.5", ["rounds = 1.5 is not of type int"]),
        ("rounds", "true", ["rounds = True is not of type int"]),
        ("rounds", "[10]", ["is not of type int"]),
        ("rate", "fast", ["rate = 'fast' is not of type float"]),
        ("rate", "null", ["is not of type float"]),
        ("quick", "1", ["quick = 1 is not of type bool"]),
        ("quick", "yes", ["is not of type bool"]),
    ],
)
def test_an_unknown_or_ill_typed_parameter_is_refused_before_anything_runs(
    stocked: Project, notebook: Path, cli: Command, name: str, value: str, words: list[str]
):
    before = set(stocked.state.rglob("*"))
    cli("train", "fraud", "-p", "rate", "0.2", "-p", name, value).said_one_line(*words)
    assert not (stocked.folder / "ran").exists()
    assert set(stocked.state.rglob("*")) - before <= {stocked.state / f"mlpkg.db-{end}" for end in ("wal", "shm")}


def test_without_a_notebook_or_its_parameters_nothing_runs(stocked: Project, cli: Command):
    cli("train", "fraud").said_one_line("there is no notebook", "train.ipynb")
    path = stocked.folder / "nbs" / "fraud" / "train.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(new_notebook(cells=[new_code_cell("rounds = 10")]), path)
    cli("train", "fraud").said_one_line("0 cells tagged 'parameters'", "tag exactly one")
    write(path, "rounds = 5 + some")
    cli("train", "fraud").said_one_line("rounds is not a plain value")


def test_training_makes_a_model_with_its_lineage(stocked: Project, notebook: Path, cli: Command):
    """The live model stays live; the new one is there to be promoted, and serves then."""
    done = cli("train", "fraud", "-p", "rounds", "12", "-p", "train_from", "2018-05-08", "--why", "to see", "--json")
    assert done.status == 0, done.err
    assert 0.5 < done.json["auc"] <= 1 and done.json["live"] is False

    model = models.find(stocked.state, "fraud", done.json["version"])
    lineage = model.read("lineage")
    assert lineage["parameters"] == {
        "train_from": "2018-05-08",
        "train_to": "2018-05-15",
        "rounds": 12,
        "rate": 0.1,
        "quick": False,
    }
    assert lineage["hyperparameters"]["learning_rate"] == 0.1 and lineage["packages"]["lightgbm"]
    assert lineage["trained_on"]["rows"] > 500 and len(lineage["trained_on"]["fingerprint"]) == 64
    assert lineage["trained_on"]["from"].startswith("2018-05-08") and lineage["decided"]["why"] == "to see"
    assert lineage["trained_on"]["subjects"] * 8 == (model.folder / "subjects.u64").stat().st_size
    executed = nbformat.read(done.json["notebook"], 4)
    assert any("rounds = 12" in cell.source for cell in executed.cells)
    assert model.read("metrics")["auc"] == done.json["auc"]
    in_bentoml = Path(bentoml.models.get(f"fraud:{model.version.lower()}").path)
    assert (in_bentoml / "manifest.json").read_bytes() == (model.folder / "manifest.json").read_bytes()

    assert cli("promote", "fraud", model.version).status == 0
    payment = {"id": "new", "time": "2018-06-09T12:00:00Z", "customer_id": 5, "terminal_id": 3, "amount": 57.16}
    decided = cli("decide", "fraud", json.dumps(payment), "--arrived", payment["time"], "--json")
    assert decided.json["model"]["version"] == model.version
    assert cli("verify", "fraud").status == 0


def test_a_model_saved_by_a_script_can_be_promoted(stocked: Project, cli: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(stocked.folder)
    rows = lab.training_set(handbook.features, "2018-05-08", "2018-05-15")
    made = lab.save_model(handbook.fraud, booster(handbook.features), rows, metrics={"auc": 0.5})
    with closing(ml.open(stocked.settings)) as platform:
        assert platform.live("fraud") != made.name
    assert made.name in [m["version"] for m in cli("models", "fraud", "--json").json]
    lineage = models.load(made).read("lineage")
    assert lineage["trained_on"]["rows"] == len(rows) and lineage["decided"]["why"] == "lab.save_model"
    assert cli("promote", "fraud", made.name).status == 0
    with closing(ml.open(stocked.settings)) as platform:
        assert platform.live("fraud") == made.name


def test_a_cell_that_fails_is_named_in_one_line_and_makes_no_model(stocked: Project, cli: Command):
    write(stocked.folder / "nbs" / "fraud" / "train.ipynb", PARAMETERS, "1 / 0")
    with closing(ml.open(stocked.settings)) as platform:
        before = models.versions(stocked.state, "fraud"), platform.live("fraud")
        cli("train", "fraud").said_one_line("train.ipynb failed", "ZeroDivisionError", "executed.ipynb")
        assert (models.versions(stocked.state, "fraud"), platform.live("fraud")) == before
