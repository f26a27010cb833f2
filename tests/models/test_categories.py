"""Texts from the log to the score: a model is trained on categories, put live, and decides by the table that was frozen with it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import lightgbm as lgb
import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from paths import SUPPORT
from project import Project
from shopping import features, purchases, returned, shopping

import mlpkg as ml
from mlpkg import lab, models
from mlpkg.decisions import Decider, verify
from mlpkg.engine.columns import NULL, text_code
from mlpkg.lab.ingest import ingest
from mlpkg.models import Categories, promote
from mlpkg.settings import Settings
from mlpkg.times import instant

KINDS = ["book", "food", "shirt", "shoes", "Straße 東京", ""]
RETURNED = {"shirt", "shoes"}
DAYS = ("2024-03-01", "2024-03-15")

TRAIN = """import lightgbm as lgb
from shopping import features, shopping
from mlpkg import lab

rows = lab.training_set(features, *days)
categories = lab.categories_of(rows, features, most)
matrix = lab.matrix(rows[features.names], categories)
names = {"feature_name": features.names, "categorical_feature": features.categories}
choices = {"objective": "binary", "verbose": -1, "num_threads": 1, "num_leaves": 15, "min_data_per_group": 5}
model = lgb.train(choices, lgb.Dataset(matrix, rows["label"].astype(int), **names), 20)"""

HAND_OVER = """auc = lab.auc(rows["label"], model.predict(matrix))
lab.save_model(shopping, model, rows, metrics={"auc": auc}, categories=categories)"""


def purchase(id: str, time: str, **fields: Any) -> dict[str, Any]:
    return {"id": id, "time": time, "buyer": 1, "kind": "book", "price": 9.5} | fields


def notebook(path: Path, *cells: str) -> Path:
    parameters = f"days = {list(DAYS)}\nmost = 254"
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[tagged, *map(new_code_cell, cells)]), path)
    return path


def run_cells(*cells: str, most: int = 254) -> None:
    """Run cells as a script on the store of the settings: in this process, which has loaded what a kernel would load."""
    names: dict[str, Any] = {"days": DAYS, "most": most}
    for cell in cells:
        exec(cell, names)


@pytest.fixture(scope="module")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two weeks of purchases and a model of them that is active."""
    project = Project(tmp_path_factory.mktemp("shopping"))
    rng = np.random.default_rng(4)
    n = 1_200
    time = pd.Timestamp(DAYS[0], tz="UTC") + pd.to_timedelta(np.sort(rng.integers(0, 14 * 24 * 3600, n)), unit="s")
    kind = rng.choice(np.array([*KINDS, None], object), n, p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05])
    rows = pd.DataFrame({"source": "purchases", "row": range(n), "id": [f"p{i}" for i in range(n)], "time": time})
    rows = rows.assign(arrived=time, buyer=rng.integers(0, 40, n), kind=kind, price=np.round(rng.gamma(2, 20, n), 2))
    with closing(ml.open_store(project.settings)) as store:
        ingest(shopping, [rows], store)
        for id, what, moment in zip(rows["id"], kind, time, strict=True):
            if what in RETURNED and rng.random() < 0.9:
                reported_at = moment + pd.Timedelta(hours=5)
                store.report(returned, {"id": id, "returned": True}, arrived=reported_at.value // 1_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        patch.setenv("PYTHONPATH", f"{SUPPORT}:{Path(ml.__file__).parent.parent}")
        patch.setenv("BENTOML_HOME", str(project.folder / "bentoml"))
        with closing(ml.open_store(project.settings)) as store:
            lab.run_training(shopping, store, notebook=notebook(project.folder / "train.ipynb", TRAIN, HAND_OVER))
    return project.state


@pytest.fixture
def shop(_trained: Path, tmp_path: Path) -> Iterator[Any]:
    shutil.copytree(_trained, tmp_path / "state")
    with closing(ml.open_store(Settings(state=tmp_path / "state"))) as store:
        yield store


def live(store: Any) -> models.Model:
    return models.find(store.settings.state, "shopping", store.active_version("shopping"))


def decided(store: Any, *purchases: dict[str, Any]) -> list[Any]:
    decider = Decider(shopping, store)
    return [decider.decide(body, arrived=instant(body["time"])) for body in purchases]


def test_a_model_learns_from_texts_through_the_lab(shop: Any):
    model = live(shop)
    assert model.read("metrics")["auc"] > 0.9, "the label hangs on the text"
    kinds = model.categories.tables["kind"]
    assert set(kinds) == {text_code(kind) for kind in KINDS} and kinds[0] == text_code("book")
    assert (model.folder / "categories.json").read_bytes().count(b"book") == 0, "texts stand in the log alone"


def test_a_decision_has_the_bits_of_the_booster_on_the_encoded_training_row(shop: Any):
    """A decision has the features of the training row, and the score of `Booster.predict` on the encoded row."""
    hours = [f"2024-03-16T{hour:02}:00:00Z" for hour in range(24)]
    strange = [*KINDS, None, "never seen", "x" * 200]
    bodies = [purchase(f"n{i}", t, buyer=i % 5, kind=strange[i % len(strange)]) for i, t in enumerate(hours)]
    decisions = decided(shop, *bodies)
    model = live(shop)
    rows: Any = lab.training_set(features, "2024-03-16", "2024-03-17", store=shop)
    matrix = lab.matrix(rows[features.names], model.categories)
    booster: Any = lgb.Booster(model_file=str(model.folder / "model.txt"))
    assert [d.score for d in decisions] == booster.predict(matrix, num_threads=1).tolist()
    for name in features.names:
        column = [None if value is pd.NA else value for value in rows[name].tolist()]
        assert [d.features[name] for d in decisions] == column
    assert len({d.score for d in decisions}) > 2
    result = verify(shopping, shop)
    assert (result.decisions, result.mismatches) == (len(bodies), 0)


def test_verify_compares_categories_to_the_bit(shop: Any, monkeypatch: pytest.MonkeyPatch):
    """A code that is off by less than a float could tell is another category."""
    from mlpkg.decisions import request as path

    def off_by_one(*args: Any) -> list[Any]:
        values = evaluate(*args)
        return [values[0] + 1, *values[1:]]

    evaluate = path.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(path, "evaluate", off_by_one)
        (made,) = decided(shop, purchase("n1", "2024-03-16T12:00:00Z", kind="shirt"))
    assert float(made.features["kind"]) == float(text_code("shirt")) and made.features["kind"] != text_code("shirt")
    result = verify(shopping, shop)
    assert result.mismatches == 1 and {d.what for d in result.differences} >= {"kind"}


def test_an_unseen_text_is_the_unknown_category_and_null_is_missing(shop: Any):
    model = live(shop)
    count = len(model.categories.tables["kind"])
    assert model.categories.number("kind", text_code("never seen")) == count
    assert np.isnan(model.categories.number("kind", NULL))
    first, second, none = decided(
        shop,
        purchase("n1", "2024-03-16T12:00:00Z", buyer=101, kind="never seen"),
        purchase("n2", "2024-03-16T12:00:00Z", buyer=102, kind="nor this one"),
        purchase("n3", "2024-03-16T12:00:00Z", buyer=103, kind=None),
    )
    assert first.score == second.score and first.features["kind"] == text_code("never seen")
    assert none.features["kind"] is None and none.features["buyer_usual_7d"] is None
    booster: Any = lgb.Booster(model_file=str(model.folder / "model.txt"))
    row = [[float(count), float(len(model.categories.tables["buyer_usual_7d"])), 1.0, 9.5], [np.nan, np.nan, 1.0, 9.5]]
    assert [first.score, none.score] == booster.predict(np.array(row), num_threads=1).tolist()


def test_a_row_and_many_rows_are_encoded_alike():
    rng = np.random.default_rng(0)
    codes = rng.integers(-(2**63), 2**63, 300, dtype=np.int64)
    seen = np.concatenate([rng.choice(codes, 5_000), [NULL] * 9])
    frozen = Categories.of({"a": seen})
    every_code = np.concatenate([seen, rng.integers(-(2**63), 2**63, 300, dtype=np.int64), codes + 1])
    many = frozen.matrix({"a": every_code})[:, 0]
    assert many.tobytes() == np.array([frozen.number("a", code) for code in every_code.tolist()]).tobytes()
    assert len(frozen.tables["a"]) == 254 and many[~np.isnan(many)].max() == 254
    assert Categories(json.loads(json.dumps(frozen.tables))).tables == frozen.tables


def test_an_edited_table_of_categories_is_refused(shop: Any):
    path = live(shop).folder / "categories.json"
    tables = json.loads(path.read_text())
    tables["kind"].reverse()
    path.write_text(json.dumps(tables, indent=1))
    with pytest.raises(ml.MlpkgError, match=r"categories\.json is not the file that was saved"):
        live(shop)
    with pytest.raises(ml.MlpkgError, match=r"categories\.json is not the file that was saved"):
        decided(shop, purchase("n1", "2024-03-16T12:00:00Z"))


def test_a_model_without_its_table_is_refused(shop: Any):
    """Its manifest says nothing of a table, so that the hashes alone do not miss it."""
    path = live(shop).folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"]["categories.json"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ml.MlpkgError, match="no table of the categories of 'kind'"):
        decided(shop, purchase("n1", "2024-03-16T12:00:00Z"))


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("lab.save_model(shopping, model, rows, metrics={})", "hand them over with the model"),
        ("lab.matrix(rows[features.names])", "'kind' is a category"),
        (
            "matrix[:, 0] = rows['kind'].to_numpy(float, na_value=float('nan'))\n"
            "model = lgb.train(choices, lgb.Dataset(matrix, rows['label'].astype(int), feature_name=features.names), 5)\n"
            "lab.save_model(shopping, model, rows, metrics={}, categories=categories)",
            "was not trained on the categories of 'kind'",
        ),
        (
            "fewer = lab.categories_of(rows, features, 2)\n"
            "lab.save_model(shopping, model, rows, metrics={}, categories=fewer)",
            "was not trained on the categories of 'kind'",
        ),
    ],
)
def test_what_was_trained_otherwise_than_it_would_be_served_is_no_model(
    shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: str, words: str
):
    monkeypatch.chdir(tmp_path)
    before = models.versions(shop.settings.state, "shopping")
    with pytest.raises(ml.MlpkgError, match=words):
        run_cells(TRAIN, cell)
    assert models.versions(shop.settings.state, "shopping") == before


def test_a_rare_text_can_be_left_to_the_unknown(shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    run_cells(TRAIN, HAND_OVER, most=3)
    model = models.find(shop.settings.state, "shopping", models.versions(shop.settings.state, "shopping")[-1])
    assert set(model.categories.tables["kind"]) == {text_code(kind) for kind in ("book", "food", "shirt")}
    promote(shop, model, by="a test", why="to decide")
    rare, unseen = decided(
        shop,
        purchase("n1", "2024-03-16T12:00:00Z", buyer=101, kind="shoes"),
        purchase("n2", "2024-03-16T12:00:00Z", buyer=102, kind="never seen"),
    )
    assert rare.score == unseen.score and verify(shopping, shop).mismatches == 0


def test_training_sets_have_nullable_codes_and_people_read_texts(shop: Any, tmp_path: Path):
    decided(
        shop,
        purchase("n1", "2024-03-16T12:00:00Z", kind="never seen"),
        purchase("n2", "2024-03-16T13:00:00Z", kind=None),
    )
    rows: Any = lab.training_set(features, *DAYS, store=shop)
    assert str(rows["kind"].dtype) == str(rows["buyer_usual_7d"].dtype) == "Int64" and rows["kind"].isna().any()
    streamed = lab.stream_training_set(features, *DAYS, into=tmp_path / "rows", source="log", buckets=3, store=shop)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "rows"), rows, check_exact=True)
    assert streamed.count_rows() == len(rows)

    events: Any = lab.events(purchases, *DAYS, store=shop)
    kinds = events["kind"].fillna("?").tolist()
    assert lab.readable(rows, features, store=shop)["kind"].fillna("?").tolist() == kinds
    shown = lab.preview(features, events.drop(columns="kind"), store=shop)
    assert shown["kind"].fillna("?").tolist() == kinds and set(shown["buyer_usual_7d"].dropna()) <= set(KINDS)
    assert lab.decisions(use_case=shopping, store=shop)["kind"].fillna("?").tolist() == ["never seen", "?"]
    assert lab.explain(features, "kind", "n1", store=shop).value == "never seen"
    lab.plot_timeline(features, "buyer_usual_7d", buyer=1, store=shop)
    usual = lab.explain(features, "buyer_usual_7d", "n1", store=shop)
    assert usual.value in KINDS and repr(usual.value) in usual.words
