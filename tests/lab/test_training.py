"""A training run is a notebook with checked parameters, and leaves a model that says where it came from."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import bentoml
import handbook
import lightgbm as lgb
import nbformat
import numpy as np
import pandas as pd
import pytest
from bank import booster
from command import Command
from nbformat.v4 import new_code_cell, new_notebook
from project import Project

import mlpkg as ml
from mlpkg import lab, models
from mlpkg.lab.parameters import check_parameters
from mlpkg.models import promote

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


@pytest.mark.parametrize(
    ("declared", "typed", "value"),
    [
        ("x = None", "2018-07-25", "2018-07-25"),
        ("x = None", "some text", "some text"),
        ("x = None", "12", 12),
        ("x = None", '["a", 1]', ["a", 1]),
        ("x = None", "null", None),
        ("x = None", "None", None),
        ("x: int | None = None", "12", 12),
        ("x: 'Optional[int]' = None", "null", None),
        ("x: Optional[str] = None", "12", "12"),
        ("x: str | None = None", "true", "true"),
        ("x: typing.Union[int, str, None] = None", "12", 12),
        ("x: typing.Union[int, str, None] = None", "1.5", "1.5"),
        ("x: float | None = None", "2", 2.0),
        ("x: float = 1", "2", 2.0),
        ("x: Literal['a', 'b'] = 'a'", "7", "7"),
        ("x: list[int] | None = None", "[1, 2]", [1, 2]),
        ("x = (1, 2)", "[3, 4]", (3, 4)),
        ("x: bool | None = None", "True", True),
        ("x: datetime.date = None", "2018-07-25", "2018-07-25"),
    ],
)
def test_a_parameter_takes_what_its_declaration_allows(tmp_path: Path, declared: str, typed: str, value: object):
    write(tmp_path / "open.ipynb", declared)
    parsed = check_parameters(tmp_path / "open.ipynb", {"x": typed})["x"]
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("declared", "typed", "message"),
    [
        ("x: int | None = None", "many", "x = 'many' is not of type int | None"),
        ("x: int = None", "1.5", "x = 1.5 is not of type int | None"),
        ("x: Optional[float] = None", "fast", "is not of type float | None"),
        ("x: bool | None = None", "7", "x = 7 is not of type bool | None"),
        ("x = 5", "null", "x = None is not of type int"),
    ],
)
def test_a_parameter_that_its_annotation_forbids_is_refused(tmp_path: Path, declared: str, typed: str, message: str):
    write(tmp_path / "open.ipynb", declared)
    with pytest.raises(ml.MlpkgError) as refused:
        check_parameters(tmp_path / "open.ipynb", {"x": typed})
    assert message in str(refused.value)


def test_what_is_no_notebook_is_named_in_one_line(tmp_path: Path):
    for text in ("", "not json", "{}"):
        (tmp_path / "open.ipynb").write_text(text)
        with pytest.raises(ml.MlpkgError, match=r"open.ipynb"):
            check_parameters(tmp_path / "open.ipynb", {})
    write(tmp_path / "open.ipynb", "rounds = = 3")
    with pytest.raises(ml.MlpkgError, match=r"open.ipynb cannot be read: invalid syntax"):
        check_parameters(tmp_path / "open.ipynb", {})


def test_without_a_notebook_or_its_parameters_nothing_runs(stocked: Project, cli: Command):
    path = stocked.folder / "nbs" / "fraud" / "train.ipynb"
    cli("train", "fraud").said_one_line("no training notebook of 'fraud'", f"looked for at {path}", "--notebook FILE")
    cli("train", "fraud", "--notebook", "mine.ipynb").said_one_line("there is no notebook", "mine.ipynb")
    path.parent.mkdir(parents=True)
    nbformat.write(new_notebook(cells=[new_code_cell("rounds = 10")]), path)
    cli("train", "fraud").said_one_line("0 cells tagged 'parameters'", "tag exactly one")
    write(path, "rounds = 5 + some")
    cli("train", "fraud").said_one_line("rounds is not a plain value")


def test_training_makes_a_model_with_its_lineage(stocked: Project, notebook: Path, cli: Command):
    """The active model stays active; the new one is there to be promoted, and serves then."""
    done = cli("train", "fraud", "-p", "rounds", "12", "-p", "train_from", "2018-05-08", "--why", "to see", "--json")
    assert done.status == 0, done.err
    assert 0.5 < done.json["auc"] <= 1 and done.json["active"] is False

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
    with closing(ml.open_store(stocked.settings)) as store:
        assert store.active_version("fraud") != made.name
    assert made.name in [m["version"] for m in cli("models", "fraud", "--json").json]
    lineage = models.load(made).read("lineage")
    assert lineage["trained_on"]["rows"] == len(rows) and lineage["decided"]["why"] == "lab.save_model"
    assert cli("promote", "fraud", made.name).status == 0
    with closing(ml.open_store(stocked.settings)) as store:
        assert store.active_version("fraud") == made.name


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", ["killed by SIGKILL", "probably the memory ran out"]),
        ("os.kill(os.getpid(), signal.SIGSEGV)", ["killed by SIGSEGV"]),
        ("os._exit(3)", ["by itself, with status 3"]),
    ],
)
def test_a_kernel_that_dies_is_said_in_one_line(stocked: Project, cli: Command, end: str, words: list[str]):
    """The notebook that is named has what ran before."""
    path = stocked.folder / "dies.ipynb"
    write(path, PARAMETERS, "print('so far')", f"import os, signal\n{end}", "print('not any more')")
    answer = cli("train", "fraud", "--notebook", path)
    answer.said_one_line("dies.ipynb: its kernel ended in cell 3", *words, "executed.ipynb")
    executed = nbformat.read(answer.err.strip().rpartition("see ")[2], 4)
    assert [[o.text for o in cell.outputs] for cell in executed.cells] == [[], ["so far\n"], [], []]


def test_another_notebook_may_be_named(notebook: Path, stocked: Project, cli: Command):
    notebook.rename(stocked.folder / "other.ipynb")
    done = cli("train", "fraud", "--notebook", "other.ipynb", "--json")
    assert done.status == 0, done.err
    lineage = models.find(stocked.state, "fraud", done.json["version"]).read("lineage")
    assert lineage["notebook"]["path"] == "other.ipynb"


def test_rows_that_are_no_training_set_make_no_model(stocked: Project, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(stocked.folder)
    rows = lab.training_set(handbook.features, "2018-05-08", "2018-05-10")
    before = set(stocked.state.rglob("*"))
    for wrong, message in (
        (rows.drop(columns="time"), "have no column 'time'; give what lab.training_set gave"),
        (rows[handbook.features.names], "have no column 'time'"),
        (rows.assign(time=rows["time"].astype(str)), "'time' holds str, not times"),
        (rows.to_numpy(), "are a ndarray, not a DataFrame"),
        (None, "are a NoneType"),
    ):
        with pytest.raises(ml.MlpkgError, match=message):
            lab.save_model(handbook.fraud, booster(handbook.features), wrong, metrics={})  # type: ignore[arg-type]
    assert set(stocked.state.rglob("*")) - before <= {stocked.state / f"mlpkg.db-{end}" for end in ("wal", "shm")}


N = len(handbook.features.names)


def trained(params: dict[str, Any], *, names: list[str] | None = None, rows: Any = None, **data: Any) -> Any:
    """A booster of noise, trained with these parameters."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, len(names or handbook.features.names))) if rows is None else rows
    label = rng.integers(0, 2, 300) if "num_class" not in params else rng.integers(0, params["num_class"], 300)
    named = {"feature_name": handbook.features.names if names is None else names} if names != [] else {}
    return lgb.train({"verbose": -1, "num_threads": 1} | params, lgb.Dataset(rows, label, **named, **data), 3)


def squared(prediction: Any, data: Any) -> Any:
    """An objective of one's own."""
    return prediction - data.get_label(), np.ones_like(prediction)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: trained({"objective": "multiclass", "num_class": 3}), "gives 3 for each row (objective multiclass)"),
        (lambda: trained({"objective": "multiclass", "num_class": 2}), "gives 2 for each row"),
        (lambda: trained({"objective": "multiclassova", "num_class": 4}), "gives 4 for each row (objective multiclassova)"),
        (lambda: _several(), "gives 3 for each row"),
        (lambda: trained({"objective": "binary"}, names=["a", "b"]), f"2 columns where there are {N} features"),
        (lambda: trained({"objective": "binary"}, names=[f"f{k}" for k in range(N)]), "'f0' where 'during_weekend' is expected"),
        (lambda: trained({"objective": "binary"}, names=handbook.features.names[::-1]), "is expected"),
        (lambda: trained({"objective": "binary"}, names=[], rows=np.zeros((300, N))), "give an array feature_name=features.names"),
        (lambda: _of_pandas(), "category columns of pandas"),
        (lambda: lgb.LGBMClassifier(), "a LGBMClassifier is no lightgbm.Booster; hand over model.booster_"),
        (lambda: {"objective": "binary"}, "a dict is no lightgbm.Booster"),
    ],
)  # fmt: skip
def test_a_model_that_could_not_be_served_is_refused_when_it_is_saved(
    stocked: Project, monkeypatch: pytest.MonkeyPatch, made: Any, message: str
):
    monkeypatch.chdir(stocked.folder)
    rows = lab.training_set(handbook.features, "2018-05-08", "2018-05-10")
    before = models.versions(stocked.state, "fraud")
    with pytest.raises(ml.MlpkgError) as refused:
        lab.save_model(handbook.fraud, made(), rows, metrics={})
    assert message in str(refused.value)
    assert models.versions(stocked.state, "fraud") == before and not list((stocked.state / "runs").rglob("*"))


def _several() -> Any:
    def objective(prediction: Any, data: Any) -> Any:
        return prediction - 0.1, np.ones_like(prediction)

    return trained({"objective": objective, "num_class": 3})


def _of_pandas() -> Any:
    rows = pd.DataFrame(np.zeros((300, N)), columns=handbook.features.names)
    rows[handbook.features.names[0]] = pd.Categorical(["x", "y"] * 150)
    return trained({"objective": "binary"}, rows=rows)


@pytest.mark.parametrize(
    "params",
    [
        {"objective": "lambdarank"},
        {"objective": "quantile", "alpha": 0.9},
        {"objective": "poisson"},
        {"objective": "cross_entropy_lambda"},
        {"objective": "regression", "linear_tree": True},
        {"objective": "binary", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
        {"objective": squared},
    ],
    ids=lambda p: getattr(p["objective"], "__name__", str(p["objective"])),
)
def test_whatever_gives_one_score_can_be_saved_promoted_and_served(
    stocked: Project, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any]
):
    """A row and many rows have the same bits, and those of the booster as it was trained."""
    monkeypatch.chdir(stocked.folder)
    rows = lab.training_set(handbook.features, "2018-05-08", "2018-05-10")
    made = trained(params, group=[100, 100, 100] if params["objective"] == "lambdarank" else None)
    folder = lab.save_model(handbook.fraud, made, rows, metrics={})
    with closing(ml.open_store(stocked.settings)) as store:
        promote(store, models.load(folder), by="a test", why="it gives one score")
    predictor = models.load(folder).predictor
    matrix = rows[handbook.features.names].to_numpy(np.float64)
    many = predictor.score_many({name: matrix[:, i] for i, name in enumerate(handbook.features.names)})
    assert (
        [predictor.score(row) for row in matrix.tolist()]
        == many.tolist()
        == made.predict(matrix, num_threads=1).tolist()
    )


def test_a_cell_that_fails_is_named_in_one_line_and_makes_no_model(stocked: Project, cli: Command):
    write(stocked.folder / "nbs" / "fraud" / "train.ipynb", PARAMETERS, "1 / 0")
    with closing(ml.open_store(stocked.settings)) as store:
        before = models.versions(stocked.state, "fraud"), store.active_version("fraud")
        cli("train", "fraud").said_one_line("train.ipynb failed", "ZeroDivisionError", "executed.ipynb")
        assert (models.versions(stocked.state, "fraud"), store.active_version("fraud")) == before
