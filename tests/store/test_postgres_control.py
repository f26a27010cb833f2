"""The control plane on a real PostgreSQL, shared with other processes."""

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence

import psycopg
import pytest
from sqlalchemy import text

from mlpkg.aggregates import Count
from mlpkg.errors import MlpkgError, StoreError, StoreLocked
from mlpkg.features import FeatureSet
from mlpkg.schema import Event, Source
from mlpkg.store.postgres.control_plane import ControlPlane
from mlpkg.store.postgres.database import upgrade
from mlpkg.store.postgres.grants import grants
from mlpkg.store.records import ModelChange, RecordedChange, Token

processes = multiprocessing.get_context("spawn")


@pytest.fixture
def url(postgres_url: str) -> str:
    upgrade(postgres_url)
    return postgres_url


@pytest.fixture
def opened(url: str) -> Iterator[Callable[..., ControlPlane]]:
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(contextlib.closing(ControlPlane(url, **options)))


@pytest.fixture
def control(opened: Callable[..., ControlPlane]) -> ControlPlane:
    return opened()


def promote(version: str) -> Callable[[Sequence[RecordedChange]], ModelChange]:
    return lambda before: {
        "change": "promote",
        "version": version,
        "active": version,
        "by": "ada",
        "why": str(len(before)),
    }


def token(id: str, **fields: int) -> Token:
    return Token(id, hash="9f86d0", role="caller", name="checkout", by="ada", created=0, **fields)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> float:
    """Wait until a condition holds; return how many seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds
        time.sleep(0.002)
    return time.monotonic() - began


def change_often(url: str, name: str, times: int) -> None:
    with contextlib.closing(ControlPlane(url)) as control:
        for number in range(times):
            control.change_model("fraud", promote(f"{name}{number}"))


def test_two_processes_change_models_one_after_the_other(url: str, control: ControlPlane) -> None:
    """Every change knows of all changes before it, whichever process made them."""
    workers = [processes.Process(target=change_often, args=(url, name, 25)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    changes = control.promotions("fraud")
    assert [c["why"] for c in changes] == [str(number) for number in range(50)]
    assert [c["version"] for c in changes if c["version"][0] == "a"] == [f"a{number}" for number in range(25)]
    positions = [c["position"] for c in changes]
    assert positions == sorted({*positions})
    assert control.active_version("fraud") == changes[-1]["version"]


def follow(url: str, seen: "multiprocessing.connection.Connection") -> None:  # type: ignore[name-defined]
    with contextlib.closing(ControlPlane(url)) as control:
        seen.send(control.active_version("fraud"))
        for expected in ("v1", "v2"):
            wait_until(lambda expected=expected: control.active_version("fraud") == expected)
            seen.send((expected, time.time()))
        wait_until(lambda: "t1" in control.tokens())
        seen.send(("t1", time.time()))


def test_another_process_sees_a_change_within_a_second(url: str, control: ControlPlane) -> None:
    ours, theirs = processes.Pipe()
    follower = processes.Process(target=follow, args=(url, theirs))
    follower.start()
    assert ours.recv() is None
    delays = []
    for version in ("v1", "v2"):
        control.change_model("fraud", promote(version))
        changed = time.time()
        assert control.active_version("fraud") == version  # this process sees its own change at once
        seen, moment = ours.recv()
        assert seen == version
        delays.append(moment - changed)
    control.put_token(token("t1"))
    changed = time.time()
    delays.append(ours.recv()[1] - changed)
    follower.join()
    assert follower.exitcode == 0
    assert min(delays) < 1 and max(delays) < 10, delays  # a busy machine may stop a process for a while


def test_a_lost_notification_is_made_up_for_by_asking(url: str, opened: Callable[..., ControlPlane]) -> None:
    reader = opened(poll_seconds=0.3)
    assert reader.active_version("fraud") is None
    with psycopg.connect(url) as connection:  # a change without a notification
        connection.execute("insert into mlpkg.active_model values ('fraud', 'v9')")
        connection.execute("update mlpkg.control set generation = generation + 1")
    assert wait_until(lambda: reader.active_version("fraud") == "v9") < 5


def test_a_change_that_fails_leaves_nothing(control: ControlPlane) -> None:
    control.change_model("fraud", promote("v1"))

    def refuse(before: Sequence[RecordedChange]) -> ModelChange:
        raise MlpkgError("no")

    def away() -> int:
        raise StoreError("the log is away")

    for change, issue in ((refuse, None), (promote("v2"), away), (promote("v2"), lambda: 1)):
        with pytest.raises(MlpkgError):
            control.change_model("fraud", change, issue)
    assert [c["version"] for c in control.promotions("fraud")] == ["v1"]
    assert control.active_version("fraud") == "v1" and control.unpublished() == []


def test_a_change_waits_for_the_log_until_it_is_marked(control: ControlPlane) -> None:
    control.change_model("fraud", promote("v1"), issue=lambda: 700)
    control.change_model("loans", promote("v1"), issue=lambda: 600)
    control.change_model("fraud", promote("v2"))
    waiting = control.unpublished()
    assert [(u.use_case, u.id, u.change["position"]) for u in waiting] == [
        ("loans", "0.v1", 600),
        ("fraud", "0.v1", 700),
    ]
    control.mark_published(waiting[:1])
    control.mark_published(waiting[:1])
    assert control.unpublished() == waiting[1:]


@pytest.mark.parametrize("statement", ["update {} set body = ''", "delete from {}", "truncate {} cascade"])
def test_a_stored_change_is_never_changed(url: str, control: ControlPlane, statement: str) -> None:
    control.change_model("fraud", promote("v1"))
    with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.RaiseException, match="never changed"):
        connection.execute(statement.format("mlpkg.promotion"))  # type: ignore[arg-type]
    assert len(control.promotions("fraud")) == 1


def test_a_change_waits_for_the_lock_of_its_use_case_only(control: ControlPlane) -> None:
    control.lock_timeout = 0.2

    def meanwhile(before: Sequence[RecordedChange]) -> ModelChange:
        control.change_model("loans", promote("v1"))
        with pytest.raises(StoreLocked, match="try again"):
            control.change_model("fraud", promote("v2"))
        return promote("v1")(before)

    control.change_model("fraud", meanwhile)
    assert [len(control.promotions(name)) for name in ("fraud", "loans")] == [1, 1]


def test_ten_thousand_tokens_and_accesses_are_read(control: ControlPlane) -> None:
    rows = "select {}, 'hash', 'caller', 'name', 'ada', 0 from generate_series(1, 10000) n"
    with control.database.transaction() as connection:
        connection.execute(text(f"insert into mlpkg.token {rows.format('n::text')}"))
        connection.execute(text("insert into mlpkg.access(at, body) select n, '{}' from generate_series(1, 9990) n"))
    for number in range(10):
        control.add_access(f'{{"n":{number}}}')
    control.put_token(token("7", revoked=5))
    assert len(control.tokens()) == 10_000 and control.tokens()["7"].revoked == 5
    assert [a.body for a in control.accesses(most=2)] == ['{"n":9}', '{"n":8}']
    numbers, page = [], control.accesses(most=999)
    while page:
        numbers += [access.number for access in page]
        page = control.accesses(before=page[-1].number, most=999)
    assert numbers == list(range(10_000, 0, -1))


def test_an_offset_never_goes_back(control: ControlPlane) -> None:
    assert control.consumer_offset("index") == 0
    for until in (7, 20, 12):
        control.set_offset("index", until)
    assert control.consumer_offset("index") == 20


class Payment(Event):
    customer: int
    amount: float


class Tipped(Payment):
    tip: float | None = None


class Reduced(Event):
    customer: int


def spending(contract: type[Event], *keys: str) -> FeatureSet:
    payments = Source("payments", contract, subject="customer")
    groups = {f"by_{key}": payments.by(key).agg(n=Count(over="1d")) for key in keys}
    return FeatureSet("spending", on=payments, **groups)


def test_a_use_case_is_registered_once(control: ControlPlane, opened: Callable[..., ControlPlane]) -> None:
    missing = control.register("fraud", spending(Payment, "customer"))
    assert [(m.stream.stream, m.key.name) for m in missing] == [("payments", "customer")]
    generation = control.snapshot().generation
    assert len(opened().register("fraud", spending(Payment, "customer"))) == 1
    assert control.snapshot().generation == generation  # it was there, so no process has to read it again
    control.register("fraud", spending(Tipped, "customer"))
    assert [v["version"] for v in control.contracts("payments")] == [1, 2]
    assert "tip" in control.contracts("payments")[1]["changes"][0]
    assert sorted(control.snapshot().streams) == ["decisions.fraud", "payments", "promotions.fraud"]
    with pytest.raises(MlpkgError, match="lost its field"):
        control.register("fraud", spending(Reduced, "customer"))
    assert len(control.contracts("payments")) == 2
    source = Source("payments", Tipped, subject="customer")
    assert control.same_content(source, '{"customer":1}', '{"customer":1,"tip":null}')
    assert not control.same_content(source, '{"customer":1}', '{"customer":1,"tip":2}')


def test_timelines_are_built_by_one_process(control: ControlPlane, opened: Callable[..., ControlPlane]) -> None:
    features, other = spending(Payment, "customer"), opened()
    missing = control.register("fraud", features)
    with control.build() as build:
        assert build.abandon() == []
        first = build.create(missing)
        assert [d.state for d in control.definitions()] == ["building"]
        with pytest.raises(StoreLocked, match="builds timelines"), other.build(wait=0.1):
            pass
    with other.build(wait=5) as build:  # the one before ended without a result
        assert build.abandon() == first
        second = build.create(missing)
        build.activate(second)
        build.delete(first)
    assert control.missing(features) == [] or wait_until(lambda: control.missing(features) == []) < 1
    assert [(d.number, d.state) for d in other.definitions()] == [(second[0], "live")]


def test_a_builder_without_its_lock_changes_nothing(url: str, control: ControlPlane) -> None:
    missing = control.register("fraud", spending(Payment, "customer"))
    with pytest.raises(StoreError, match="cannot be reached"), control.build() as build:
        numbers = build.create(missing)
        with psycopg.connect(url, autocommit=True) as connection:
            builder = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'"
            connection.execute(builder)
        build.activate(numbers)
    assert [d.state for d in control.definitions()] == ["building"]


def test_two_environments_share_a_database(
    url: str, control: ControlPlane, opened: Callable[..., ControlPlane]
) -> None:
    assert upgrade(url, "mlpkg_staging") == ["0001"]
    staging = opened(schema="mlpkg_staging")
    control.change_model("fraud", promote("v1"))
    assert staging.active_version("fraud") is None and staging.snapshot().generation == 0


def test_a_reader_of_the_registry_reads_nothing_else(url: str, control: ControlPlane) -> None:
    control.change_model("fraud", promote("v1"))
    control.put_token(token("t1"))
    with pytest.raises(MlpkgError, match="createuser"):
        grants(url, "no such role")
    role = f"reader_{url.rpartition('/')[2]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"create role {role} login password 'reading'")  # type: ignore[arg-type]
    try:
        grants(url, role)
        address = url.partition("@")[2]
        with contextlib.closing(ControlPlane(f"postgresql://{role}:reading@{address}", read_only=True)) as reader:
            assert reader.active_version("fraud") == "v1" and len(reader.promotions("fraud")) == 1
            assert reader.tokens() == {}
            reader.check()
            for closed in (
                reader.accesses,
                lambda: reader.consumer_offset("index"),
            ):
                with pytest.raises(StoreError, match="does not allow this"):
                    closed()
        with contextlib.closing(ControlPlane(f"postgresql://{role}:reading@{address}")) as writer:
            with pytest.raises(StoreError, match="does not allow this"):
                writer.change_model("fraud", promote("v2"))
            with pytest.raises(StoreError, match="does not allow this"):
                writer.check()
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"drop owned by {role}")  # type: ignore[arg-type]
            connection.execute(f"drop role {role}")  # type: ignore[arg-type]
    assert [c["version"] for c in control.promotions("fraud")] == ["v1"]
