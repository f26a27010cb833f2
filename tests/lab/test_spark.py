"""A training set made on Spark equals the one of this machine, bit for bit."""

import random
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import handbook
import pandas as pd
import pytest
from bank import START, Bank
from command import Command
from project import Project

import mlpkg as ml
from mlpkg import lab
from mlpkg.lab.spark import spark_training_set
from mlpkg.lab.spark_session import check_java, spark_session
from mlpkg.lab.training import fingerprint
from mlpkg.settings import Settings
from mlpkg.store import open_archive
from mlpkg.times import DAY, HOUR, iso

SPAN = ("2018-04-01", "2018-07-01")


@pytest.fixture(scope="session")
def spark(java: Path) -> Iterator[Any]:
    """One Spark for all tests, as its start takes seconds."""
    quick = {"spark.driver.memory": "1g", "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
    with spark_session("local[2]", quick) as session:
        yield session


@pytest.fixture
def archived(bank: Bank, tmp_path: Path) -> Bank:
    """A bank whose settings name an archive."""
    bank.store.settings = bank.store.settings.model_copy(update={"archive": str(tmp_path / "delta")})
    return bank


def same_on_spark(features: ml.FeatureSet, into: Path, store: Any, *span: Any, **options: Any) -> pd.DataFrame:
    """The training set, which is the same from the archive, straight from the log, and from Spark."""
    options = {"store": store, "as_of": "2018-05-03"} | options
    whole = lab.training_set(features, *(span or SPAN), **options)
    with_archive = store.settings
    store.settings = with_archive.model_copy(update={"archive": ""})
    assert fingerprint(lab.training_set(features, *(span or SPAN), **options)) == fingerprint(whole)
    store.settings = with_archive
    made = spark_training_set(features, *(span or SPAN), into=into, buckets=3, **options)
    assert fingerprint(made) == fingerprint(whole)
    written = pd.read_parquet(into)
    assert written.attrs == whole.attrs
    pd.testing.assert_frame_equal(written, whole, check_exact=True)
    return whole


def fill(bank: Bank, rng: random.Random, first: int, count: int) -> None:
    """Payments of a coarse grid of times, some late, some decided, with reports that come late, first, twice or as corrections."""
    for k in range(first, first + count):
        time, late = START + rng.randrange(240) * 3 * HOUR, rng.choice([0, 0, 3, 24, 72]) * HOUR
        fields = {"customer_id": rng.randrange(5), "terminal_id": rng.randrange(3), "amount": rng.randrange(9999) / 100}
        body = {"id": f"e{k}", "time": iso(time)} | fields
        is_first = rng.random() < 0.1
        if is_first:
            bank.store.report(handbook.frauds, {"id": f"e{k}", "fraud": True}, arrived=time + HOUR)
        if rng.random() < 0.2:
            bank.decider.decide(body, arrived=time + late)
        else:
            bank.store.accept(handbook.transactions, body, arrived=time + late)
        for days in (12,) if is_first else rng.choice([(), (), (3,), (9, 12)]):
            report = {"id": f"e{k}", "fraud": rng.random() < 0.6} | ({"corrects": True} if days == 12 else {})
            bank.store.report(handbook.frauds, report, arrived=time + days * DAY)


def test_late_reports_and_corrections_give_the_same_rows_on_spark(spark: Any, archived: Bank, tmp_path: Path):
    rng = random.Random(5)
    fill(archived, rng, 0, 150)
    open_archive(archived.store.settings.archive).write(archived.store)
    fill(archived, rng, 150, 60)  # which the archive does not have
    rows = same_on_spark(handbook.features, tmp_path / "rows", archived.store)
    assert len(rows) == 210 and set(rows["label"].isna()) == {True, False} and any(rows["terminal_risk_30d"] > 0)
    logged = same_on_spark(handbook.features, tmp_path / "logged", archived.store, history="as_logged")
    assert not logged[handbook.features.names].equals(rows[handbook.features.names])
    same_on_spark(handbook.early_features, tmp_path / "early", archived.store, "2018-04-09", "2018-04-20")


def test_the_log_of_a_store_on_servers_gives_the_same_rows_on_spark(
    spark: Any, on_servers: Settings, bank: Bank, tmp_path: Path
):
    """And the same as the embedded store that was sent the same."""
    cluster = Bank(handbook.fraud, on_servers.model_copy(update={"archive": str(tmp_path / "delta")}))
    with closing(cluster.store) as store:
        for made in (cluster, bank):
            fill(made, random.Random(5), 0, 90)
        open_archive(store.settings.archive).write(store)
        for made in (cluster, bank):
            fill(made, random.Random(6), 90, 30)
        rows = same_on_spark(handbook.features, tmp_path / "rows", store)
    assert len(rows) == 120 and set(rows["label"].isna()) == {True, False}
    embedded = lab.training_set(handbook.features, *SPAN, store=bank.store, as_of="2018-05-03")
    assert fingerprint(embedded) == fingerprint(rows)


class Visit(ml.Event):
    customer: str | None
    page: str | None = None
    seconds: float | None = None


class Order(ml.Event):
    customer: str | None
    channel: str
    gift: bool | None = None


visits = ml.Source("visits", Visit, retention="30d")
orders = ml.Source("orders", Order, retention="30d")
state = orders.outcome("state", str)
by_text = ml.FeatureSet(
    "shop",
    on=orders,
    visits=visits.by("customer").agg(n=ml.count(over="7d", where="page == 'help'"), last=ml.last("page", over="7d")),
    channel=orders.by("channel").agg(n=ml.count(over="7d")),
    states=state.by("customer").agg(kinds=ml.nunique("state", over="30d")),
    now=ml.field("channel"),
    gift=ml.field("gift"),
)


def test_texts_and_rows_without_an_entity_are_the_same_on_spark(spark: Any, archived: Bank, tmp_path: Path):
    store, rng = archived.store, random.Random(1)
    store.register("shop", by_text)
    for k in range(80):
        fields = {"id": f"r{k}", "time": iso(START + k * 2 * HOUR), "customer": rng.choice(["ann", "bob", None])}
        store.accept(visits, fields | {"page": rng.choice(["help", "home", None])}, arrived=START + k * 2 * HOUR)
        order = fields | {"channel": rng.choice(["app", "web"]), "gift": rng.choice([True, False, None])}
        store.accept(orders, order, arrived=START + k * 2 * HOUR + rng.randrange(3) * DAY)
        if k % 3:
            store.report(state, {"id": f"r{k}", "state": rng.choice(["kept", "sent"])}, arrived=START + (k + 9) * HOUR)
    open_archive(store.settings.archive).write(store, buckets=4)
    rows = same_on_spark(by_text, tmp_path / "rows", store)
    assert set(rows["label"].dropna()) == {"kept", "sent"} and bool(rows["visits_last_7d"].nunique() == 2)


def test_an_empty_archive_leaves_everything_to_the_log(spark: Any, archived: Bank, tmp_path: Path):
    with pytest.raises(ml.MlpkgError, match="nothing of 'transactions'"):
        spark_training_set(handbook.features, *SPAN, into=tmp_path / "none", store=archived.store)
    fill(archived, random.Random(2), 0, 30)
    plain = ml.FeatureSet("fraud", on=handbook.transactions, amount=ml.field("amount"))
    assert len(same_on_spark(plain, tmp_path / "rows", archived.store)) == 30


def test_a_feature_that_cannot_be_sent_is_named(spark: Any, archived: Bank, tmp_path: Path):
    lock = threading.Lock()

    def guarded(amount):
        with lock:
            return amount * 2

    features = ml.FeatureSet("fraud", on=handbook.transactions, doubled=ml.on_demand(guarded))
    with pytest.raises(ml.MlpkgError, match="the feature 'doubled' cannot be sent to Spark's executors"):
        spark_training_set(features, *SPAN, into=tmp_path / "rows", store=archived.store)
    assert not list(tmp_path.glob("rows*"))


def test_a_machine_without_java_says_how_to_get_it(bank: Bank, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(ml.MlpkgError, match="Spark needs Java 17") as error:
        check_java()
    assert "apt-get install" in str(error.value)


def test_spark_without_an_archive_is_one_line(stocked: Project, cli: Command):
    span = ("--from", "2018-05-20", "--to", "2018-05-22", "--engine", "spark")
    cli("training-set", "fraud", *span, "--into", "rows").said_one_line(
        "the settings name none", "mlpkg export --delta"
    )
    assert cli("training-set", "fraud", *span, "--source", "archive", "--into", "rows").status == 2
