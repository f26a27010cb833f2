"""A project without a service of its own: `mlpkg serve` builds what it serves, and says what a new bento would bring."""

import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from project import Project
from serving import SCRIPTS, Client, environment, free_port

import mlpkg as ml
from mlpkg import lab
from mlpkg.decisions import use_case
from mlpkg.lab.ingest import ingest
from mlpkg.models import find, promote
from mlpkg.serve.bento.package import find_bento, news
from mlpkg.times import iso, now

pytestmark = pytest.mark.e2e

MODULE = """import mlpkg as ml
from parcel_rules import limit


class Order(ml.Event):
    customer: int
    amount: ml.Money


orders = ml.Source("orders", Order, subject="customer")
returned = orders.outcome("returned", bool, default=False, matures_after="2d")
features = ml.FeatureSet("a-b", on=orders, n=orders.by("customer").agg(n=ml.count(over="30d")), amount=ml.field("amount"))
case = ml.UseCase("a-b", features, policy=lambda score, event: "ask" if score > limit() else "ship")
"""


@pytest.fixture
def parcels(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A use case in two files, beside files named like modules of Python and of packages, with an active model."""
    folder = project.folder
    (folder / "settings.ini").write_text(
        "[DEFAULT]\nstate = state\ntrust_loopback = true\nuse_cases =\n    a-b = parcel_case:case\n"
    )
    (folder / "parcel_case.py").write_text(MODULE)
    (folder / "parcel_rules.py").write_text("def limit():\n    return 0.5\n")
    for name in ("types", "random", "bentoml", "lightgbm"):
        (folder / f"{name}.py").write_text("raise ImportError('the module of the folder')")
    monkeypatch.chdir(folder)
    rng, n = np.random.default_rng(0), 800
    times = pd.Timestamp("2025-01-01", tz="UTC") + pd.to_timedelta(np.arange(n), unit="h")
    orders = pd.DataFrame({"id": [f"o{k}" for k in range(n)], "time": times, "customer": np.arange(n) % 40})
    orders["amount"] = rng.gamma(2, 50, n).round(2)
    orders["returned"] = rng.random(n) < 0.1 + 0.7 * (orders["amount"] > 100)
    case = use_case("a-b", project.settings)
    with closing(ml.open_store(project.settings)) as store:
        ingest(case, orders, store)
        rows = lab.training_set(case.features, "2025-01-01", "2025-02-03", use_case=case, store=store)
        version = lab.train(case, rows, store=store, patience=None, rounds=20).save().name
        promote(store, find(project.state, "a-b", version), by="a test", why="the first")
    return project


def test_the_first_serve_needs_no_service_and_no_package(parcels: Project, tmp_path: Path):
    """The bento has both files of the use case; after an edit, a line says that a new bento would bring it."""
    port, log = free_port(), tmp_path / "log"
    with log.open("wb") as out:
        command = [str(SCRIPTS / "mlpkg"), "serve", "a-b", "--port", str(port)]
        server = subprocess.Popen(command, cwd=parcels.folder, env=environment(parcels.state), stdout=out, stderr=out)
    try:
        until = time.monotonic() + 240
        while "is served on" not in log.read_text():
            assert server.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        assert "there was no bento of a-b: built a-b:" in log.read_text()
        with closing(Client(port)) as client:
            order = {"id": "n1", "time": iso(now()), "customer": 1, "amount": 300.0}
            assert client.ask("POST", "/v1/decide", order).json["action"] == "ask"
    finally:
        family = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.send_signal(signal.SIGINT)
        server.wait(30)
        for process in psutil.wait_procs(family, timeout=5)[1]:
            process.kill()
    bento = find_bento("a-b", parcels.settings)
    modules = {path.name for path in (bento.folder / "src").glob("*.py")}
    assert modules == {"service.py", "parcel_case.py", "parcel_rules.py"}
    assert news("a-b", parcels.settings, bento) is None
    (parcels.folder / "parcel_rules.py").write_text("def limit():\n    return 0.9\n")
    assert news("a-b", parcels.settings, bento) == "parcel_rules.py changed"
