"""Files of models on a real object storage: promoted on one machine, fetched and checked on others; no half version, no changed one."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import handbook
import pytest
from bank import Bank, booster, copy_of_state, put_live
from local_servers.s3_server import S3

import mlpkg as ml
from mlpkg import models
from mlpkg.decisions import UseCase, verify
from mlpkg.errors import MlpkgError
from mlpkg.models import ActiveModel, StorageAway, obtain, publish
from mlpkg.settings import Settings
from mlpkg.store import store_place

if TYPE_CHECKING:
    from local_servers.kafka_server import Kafka
    from local_servers.postgres_server import Postgres
    from local_servers.redis_server import Redis

careful = UseCase("fraud", handbook.features, policy=handbook.policy, fallback="review")
METADATA: Any = {"metrics": {}, "lineage": {}, "policy": {}}


def let_in(server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the keys and the address of a storage into the environment, as for an archive."""
    for name, value in server.storage_options().items():
        monkeypatch.setenv(name.upper(), value)


@pytest.fixture
def shared(s3_server: S3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty place on the storage."""
    let_in(s3_server, monkeypatch)
    return f"{bucket}/models"


@pytest.fixture
def objects(s3_server: S3, shared: str) -> Path:
    """The folder in which the storage keeps the objects of that place."""
    return s3_server.data / shared.removeprefix("s3://")


@pytest.fixture
def model(tmp_path: Path) -> models.Model:
    """A model on a machine of its own."""
    version = models.save(tmp_path / "one", "fraud", booster(handbook.features), handbook.features, **METADATA)
    return models.find(tmp_path / "one", "fraud", version)


Machine = Callable[[str], Settings]


@pytest.fixture
def machine(
    kafka_server: "Kafka", redis_server: "Redis", postgres_server: "Postgres", shared: str, tmp_path: Path
) -> Iterator[Machine]:
    """Settings of machines that share servers and storage, each with a state folder of its own."""
    named: dict[str, Any] = {}
    for server in (kafka_server, redis_server, postgres_server):
        named |= server.settings()
    named |= {"store": "cluster", "kafka_protocol": "SASL_PLAINTEXT", "namespace": f"t{secrets.token_hex(6)}"}
    yield lambda name: Settings(state=tmp_path / name, models=shared, **named)
    store_place(Settings(state=tmp_path / "x", **named)).remove()  # type: ignore[attr-defined]


def test_a_model_promoted_on_one_machine_decides_on_another(machine: Machine, objects: Path):
    with closing(Bank(careful, machine("one")).store) as one:
        version = one.active_version("fraud")
        names = {path.name for path in (objects / "fraud" / version).iterdir()}
        assert names == {path.name for path in models.find(machine("one").state, "fraud", version).folder.iterdir()}
        assert models.versions(machine("two").state, "fraud") == []
        other = Bank(careful, machine("two"))
        with closing(other.store):
            made = other.pays("tx-1", 0)
            assert made.model and made.model["version"] == version and made.fallback is None
            assert verify(careful, other.store).mismatches == 0
        assert models.versions(machine("two").state, "fraud") == [version]


@pytest.mark.parametrize("damage", ["changed", "missing", "changed manifest"])
def test_a_damaged_object_is_refused_and_the_former_model_decides(
    machine: Machine, objects: Path, damage: str, caplog: pytest.LogCaptureFixture
):
    one, two = Bank(careful, machine("one")), Bank(careful, machine("two"))
    with closing(one.store), closing(two.store):
        assert (two.pays("tx-1", 0).model or {})["version"] == one.version
        version = put_live(careful, one.store, auc=0.9)
        name = "manifest.json" if damage == "changed manifest" else "model.txt"
        path = objects / "fraud" / version / name
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes().replace(b"0", b"1"))

        made = two.pays("tx-2", 1)
        assert made.model and made.model["version"] == one.version and made.fallback is None
        (warning,) = {r.getMessage() for r in caplog.records if r.name == "mlpkg" and version in r.getMessage()}
        assert f"{one.version} stays active" in warning and f"fraud/{version}/{name}" in warning
        assert (
            damage == "changed manifest"
            or f"{models.obtain(machine('one'), 'fraud', version).manifest['files'][name]}" in warning
        )
        assert models.versions(machine("two").state, "fraud") == [one.version]

        three = Bank(careful, machine("three"))
        with closing(three.store):
            made = three.pays("tx-3", 1)
        assert (made.action, made.score) == ("review", None) and made.fallback and name in made.fallback["detail"]

        if damage == "changed manifest":
            path.unlink()
        publish(one.store.settings, models.find(machine("one").state, "fraud", version))
        assert models.obtain(machine("two"), "fraud", version).version == version, "it was mended"


def fetched(state: Path, shared: str, version: str) -> list[str]:
    """Obtain a model in another process; return the names of its files."""
    return sorted(p.name for p in obtain(Settings(state=state, models=shared), "fraud", version).folder.iterdir())


def test_processes_of_a_machine_fetch_at_once_and_none_sees_half(model: models.Model, shared: str, tmp_path: Path):
    publish(Settings(models=shared), model)
    names = sorted(path.name for path in model.folder.iterdir())
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        for k in range(5):
            asked = [pool.submit(fetched, tmp_path / f"two-{k}", shared, model.version) for _ in range(6)]
            assert [future.result(60) for future in asked] == [names] * 6
            assert [p.name for p in models.models_dir(tmp_path / f"two-{k}", "fraud").iterdir()] == [model.version]


UPLOAD = """
import sys
from pathlib import Path
from mlpkg import models
from mlpkg.settings import Settings
state, shared = Path(sys.argv[1]), sys.argv[2]
for version in models.versions(state, "fraud"):
    models.publish(Settings(state=state, models=shared), models.find(state, "fraud", version))
    print(version, flush=True)
"""


@pytest.mark.parametrize("kill_after", [0, 1, 2, 3])
def test_a_killed_upload_leaves_no_version(model: models.Model, shared: str, tmp_path: Path, kill_after: int):
    """Whatever the storage has of it, a version is whole or does not exist; the next upload completes it."""
    state, big = tmp_path / "one", os.urandom(16 << 20)
    for k in range(4):
        more = {f"part-{n}.bin": big[n:] for n in range(4)}
        models.save(
            state,
            "fraud",
            booster(handbook.features),
            handbook.features,
            **METADATA | {"metrics": {"k": k}},
            attachments=more,
        )
    uploading = subprocess.Popen([sys.executable, "-c", UPLOAD, state, shared], stdout=subprocess.PIPE, text=True)
    assert uploading.stdout
    published = [uploading.stdout.readline().strip() for _ in range(kill_after)]
    time.sleep(0.05)
    uploading.send_signal(signal.SIGKILL)
    published += uploading.stdout.read().split()
    uploading.wait()
    there = []
    for version in models.versions(state, "fraud"):
        try:
            there.append(obtain(Settings(state=tmp_path / "two", models=shared), "fraud", version).version)
        except MlpkgError as error:
            assert "there is no model" in error.what and version in error.what
    assert set(published) <= set(there) and len(there) <= len(published) + 1
    subprocess.run([sys.executable, "-c", UPLOAD, state, shared], check=True, capture_output=True)
    for version in models.versions(state, "fraud"):
        assert obtain(Settings(state=tmp_path / "two", models=shared), "fraud", version).version == version


def test_a_version_never_changes(model: models.Model, shared: str, objects: Path):
    publish(Settings(models=shared), model)
    place = objects / "fraud" / model.version
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    (model.folder / "model.txt").write_text("tree")
    (model.folder / "manifest.json").write_bytes((model.folder / "manifest.json").read_bytes() + b" ")
    with pytest.raises(MlpkgError, match=f"another model {model.version} lies at {shared}"):
        publish(Settings(models=shared), model)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_a_damaged_folder_is_not_published(model: models.Model, shared: str, tmp_path: Path):
    (model.folder / "model.txt").write_text("tree")
    with pytest.raises(MlpkgError, match=r"model\.txt is not the file"):
        publish(Settings(models=shared), model)
    with pytest.raises(MlpkgError, match="there is no model"):
        obtain(Settings(state=tmp_path / "two", models=shared), "fraud", model.version)


def test_a_model_is_promoted_only_if_its_files_were_published(
    tmp_path: Path, shared: str, monkeypatch: pytest.MonkeyPatch
):
    state = copy_of_state(handbook.fraud, tmp_path / "templates", tmp_path / "state")
    with closing(ml.open_store(Settings(state=state, models=shared))) as store:
        before = store.active_version("fraud")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(StorageAway, match="cannot be reached"):
            put_live(handbook.fraud, store)
        assert store.active_version("fraud") == before


def test_a_worker_goes_on_while_the_storage_is_away_and_follows_when_it_is_back(
    own_server: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server: S3 = own_server(S3)
    let_in(server, monkeypatch)
    shared = f"{server.make_bucket('models')}/models"
    state = copy_of_state(handbook.fraud, tmp_path / "templates", tmp_path / "two")
    about = METADATA | {"metrics": {"auc": 0.9}}
    version = models.save(tmp_path / "one", "fraud", booster(handbook.features), handbook.features, **about)
    publish(Settings(models=shared), models.find(tmp_path / "one", "fraud", version))
    with closing(ml.open_store(Settings(state=state, models=shared))) as store:
        first = store.active_version("fraud")
        active = ActiveModel(store, "fraud", handbook.features.on)
        assert first and active.take(first)
        server.stop()
        change: Any = {"change": "promote", "version": version, "active": version, "by": "a", "why": "b"}
        store.change_model("fraud", lambda past: change)
        kept = active.take(version)
        assert kept and kept.model.version == first and "cannot be reached" in active.missing().what
        server.start()
        until = time.monotonic() + 20  # asked again each second; half a minute would be too late
        while (taken := active.take(version)) and taken.model.version != version and time.monotonic() < until:
            time.sleep(0.1)
        assert taken and taken.model.version == version


def test_a_shared_folder_is_a_storage_too_and_other_addresses_are_not(model: models.Model, tmp_path: Path):
    publish(Settings(models=str(tmp_path / "shared")), model)
    settings = Settings(state=tmp_path / "two", models=str(tmp_path / "shared"))
    assert obtain(settings, "fraud", model.version).version == model.version
    with pytest.raises(MlpkgError, match="models = ftp://x: models cannot lie there"):
        publish(Settings(models="ftp://x"), model)


@pytest.mark.parametrize("version", ["../x", "", ".hidden", "a/b"])
def test_a_version_leads_nowhere(shared: str, tmp_path: Path, version: str):
    with pytest.raises(MlpkgError, match="cannot be the name of a file"):
        obtain(Settings(state=tmp_path, models=shared), "fraud", version)


@pytest.mark.parametrize("place", ["the storage", "the state"])
def test_staging_gets_a_model_from_the_environment_that_it_mirrors(
    place: str, model: models.Model, shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It lists what is there, and publishes in its own place; production's stays as it is."""
    state = "one" if place == "the state" else "elsewhere"
    production = f"[production]\nstate = {state}\nmodels = {shared if place == 'the storage' else ''}\n"
    staging = f"[staging]\nmirrors = production\nstate = staging\nmodels = {shared}-staging\n"
    (tmp_path / "settings.ini").write_text(production + staging)
    monkeypatch.setenv("MLPKG_ENV", "staging")
    settings = Settings.load(tmp_path)
    if place == "the storage":
        publish(settings.model_copy(update={"models": shared}), model)
    source = shared if place == "the storage" else str(tmp_path.resolve() / "one")
    assert models.elsewhere(settings, "fraud") == {model.version: source}
    obtained = obtain(settings, "fraud", model.version)
    assert obtained.content("model.txt") == model.content("model.txt") and models.elsewhere(settings, "fraud") == {}
    publish(settings, obtained)
    other = settings.model_copy(update={"state": tmp_path / "another machine", "mirrors": ""})
    assert models.elsewhere(other, "fraud") == {model.version: f"{shared}-staging"}
    with pytest.raises(MlpkgError, match="there is no model v1"):
        obtain(settings, "fraud", "v1")
