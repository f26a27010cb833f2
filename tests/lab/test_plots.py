"""What the pictures show, and that pyplot knows of them."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import parcels
import pytest
from bank import put_live
from pydantic import Field

import mlpkg as ml
from mlpkg import lab
from mlpkg.settings import Settings
from mlpkg.times import iso, now


class Visit(ml.Event):
    customer: int
    product_id: int
    category: str
    stars: Annotated[int, Field(ge=0, le=5)] | None = None


visits = ml.Source("visits", Visit, subject="customer", allowed_lateness="9000d")
bought = visits.outcome("bought", bool)
why = visits.outcome("why", str)
of = {
    "n": ml.count(over="7d"), "products": ml.nunique("product_id", over="7d"), "usual": ml.mode("category", over="7d"),
    "stars": ml.mean("stars", over="7d"), "last": ml.last("product_id", over="7d"),
    "dear": ml.ratio(ml.count("stars"), ml.count(), over="7d"),
}  # fmt: skip
features = ml.FeatureSet("visits", on=visits, customer=visits.by("customer").agg(**of), product=ml.field("category"))


class Scan(ml.Event):
    """There is nothing in it that could be measured."""

    customer: int
    product_id: int


scans = ml.Source("scans", Scan)
counted = ml.FeatureSet(
    "scans", on=scans, customer=scans.by("customer").agg(n=ml.count(over="7d"), last=ml.max("product_id", over="7d"))
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    start = now() - 20 * 86_400_000_000
    with closing(ml.open_store(Settings(state=tmp_path_factory.mktemp("visits")))) as made:
        for k in range(12):
            time = start + k * 40_000_000_000
            body = {"id": f"v{k}", "time": iso(time), "customer": 1, "product_id": 90_000 + 37 * k}
            made.accept(scans, body, arrived=time)
            made.accept(visits, body | {"category": "ab"[k % 2], "stars": k % 6}, arrived=time)
            if k % 3:
                made.report(bought, {"id": f"v{k}", "bought": k % 3 == 1}, arrived=time)
                made.report(why, {"id": f"v{k}", "why": ("gift", "need", "gift")[k % 3]}, arrived=time)
        yield made


def drawn_at(axes: Any) -> list[float]:
    """The heights at which events are drawn."""
    return [float(y) for points in axes.collections for y in np.asarray(points.get_offsets())[:, 1]]


@pytest.mark.parametrize(
    "feature", ["customer_n_7d", "customer_products_7d", "customer_usual_7d", "customer_stars_7d", "customer_dear_7d"]
)
def test_events_are_drawn_at_what_was_measured_and_at_no_id(store: Any, feature: str):
    axes = lab.plot_timeline(features, feature, customer=1, store=store)
    assert axes.get_ylabel() == "stars" and max(drawn_at(axes)) <= 5
    assert plt.gca() in axes.figure.axes


@pytest.mark.parametrize("feature", ["customer_n_7d"])
def test_events_without_a_measure_are_ticks_on_the_axis_of_time(store: Any, feature: str, tmp_path: Path):
    axes = lab.plot_timeline(counted, feature, customer=1, store=store)
    assert axes.get_ylabel() == feature and drawn_at(axes) == []
    assert axes.get_ylim()[1] < 20, "the axis is that of the feature"
    axes.figure.savefig(tmp_path / "ticks.png")


def test_a_number_that_is_asked_for_is_drawn_whatever_it_is(store: Any):
    axes = lab.plot_timeline(features, "customer_n_7d", column="product_id", customer=1, store=store)
    assert axes.get_ylabel() == "product_id" and min(drawn_at(axes)) >= 90_000
    axes = lab.plot_timeline(counted, "customer_last_7d", customer=1, store=store)
    assert axes.get_ylabel() == "product_id", "whose greatest value is the feature"


def test_each_text_of_an_outcome_has_a_colour(store: Any):
    axes = lab.plot_timeline(features, "customer_n_7d", outcome="why", customer=1, store=store)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names[:3] == ["event", "gift", "need"] or names[:3] == ["event", "need", "gift"]
    plain = lab.plot_timeline(features, "customer_n_7d", customer=1, store=store)
    assert [text.get_text() for text in plain.get_legend().get_texts()][:2] == ["event", "bought"]


def test_a_timeline_is_drawn_on_the_axes_that_are_given(store: Any):
    figure, (left, right) = plt.subplots(1, 2)
    assert lab.plot_timeline(features, "customer_stars_7d", customer=1, store=store, ax=right) is right
    assert not left.has_data() and right.has_data() and figure is plt.gcf()


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with closing(ml.open_store(Settings(state=tmp_path_factory.mktemp("compared")))) as store:
        first, second = (put_live(parcels.case, store, auc=k) for k in (0.1, 0.2))
        rng = np.random.default_rng(0)
        start = now() - 60 * 86_400_000_000
        for k in range(300):
            time = start + k * 10_000_000_000
            body = {"id": f"p{k}", "time": iso(time), "customer": k % 40, "weight": float(rng.integers(1, 90))}
            store.accept(parcels.parcels, body, arrived=time)  # type: ignore[arg-type]
            store.report(parcels.state, {"id": f"p{k}", "state": str(rng.choice(["fine", "dented"]))}, arrived=time + 1)  # type: ignore[arg-type]
        yield lab.compare(
            first, second, iso(start), iso(now()), use_case=parcels.case, outcome="state", positive="dented", by="weight",
            store=store,
        )  # fmt: skip


def test_a_comparison_is_the_current_figure_of_pyplot(compared: Any, tmp_path: Path):
    plt.close("all")
    figure = compared.plot()
    assert plt.gcf() is figure and plt.get_fignums() == [figure.number]
    plt.savefig(tmp_path / "seen.png")
    figure.savefig(tmp_path / "itself.png")
    assert (tmp_path / "seen.png").read_bytes() == (tmp_path / "itself.png").read_bytes()
    assert (tmp_path / "seen.png").stat().st_size > 10_000


def test_a_notebook_shows_a_comparison_once(compared: Any):
    """IPython shows a returned figure itself, so the figure is closed: it would be shown twice."""
    figure = compared.plot()
    figure._ipython_display_()
    assert figure.number not in plt.get_fignums()


def test_a_comparison_is_drawn_on_the_axes_that_are_given(compared: Any):
    figure, axes = plt.subplots(2, 2)
    assert compared.plot(["log_loss", "auc"], axes=axes[0]) is figure is plt.gcf()
    assert all(ax.has_data() for ax in axes[0]) and not any(ax.has_data() for ax in axes[1])
    compared.plot("brier", axes=axes[1][0])
    assert axes[1][0].has_data() and len(plt.get_fignums()) > 0
    with pytest.raises(ml.MlpkgError, match="1 axes for 2 measures"):
        compared.plot(["log_loss", "auc"], axes=axes[0][0])


def test_functions_of_rows_take_the_rows_first(store: Any):
    rows: Any = lab.training_set(features, "2020-01-01", iso(now()), outcome="bought", store=store)
    shown = lab.readable(rows, features, store=store)
    assert set(shown["customer_usual_7d"].dropna()) == {"a", "b"}
    assert {*lab.categories_of(rows, features).tables} == {"customer_usual_7d", "product"}
