"""Several threads and processes use one store: what they do at once is as if they did it one after the other.

A caller may repeat a write that raised, so these tests do.
"""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import handbook
import pytest
from bank import Bank
from cards import check_decisions, decided, features, frauds, hour_of_day, ids, payment, payments
from elsewhere import decide_many, die_in_a_decision, insist, pay_many
from logged_timelines import Wanted, asks, same_as_the_log
from paths import SUPPORT
from stores import StoreUnderTest

from mlpkg.decisions import Decider, verify
from mlpkg.errors import StoreError
from mlpkg.store import Entry, Store
from mlpkg.times import instant

PAYMENT = payment("held", 0)
WANTED: list[Wanted] = [
    (payments, ("card",), ("amount", "shop")),
    (payments, ("shop", hour_of_day), ("amount",)),
    (frauds, ("card",), ("amount", "fraud", "about")),
]
WIDER = asks(*WANTED)


@pytest.fixture
def store(tested: StoreUnderTest) -> Store:
    """A new store with the timelines of the use case."""
    made = tested.open()
    made.register("cards", features)
    return made


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Call functions in threads that begin together."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def entries_of(store: Store) -> dict[str, list[Entry]]:
    """The entries by their stream."""
    found: dict[str, list[Entry]] = {}
    for entry in store.read():
        found.setdefault(entry.source, []).append(entry)
    return found


def check_once(store: Store, expected: set[str]) -> None:
    """Each event is in the log once, and was decided once."""
    logged = entries_of(store)
    for stream in ("payments", decided.stream):
        names = [entry.id for entry in logged[stream]]
        assert len(names) == len(expected) and {*names} == expected
    assert {e.about for e in logged[decided.stream]} == {e.position for e in logged["payments"]}


@pytest.mark.parametrize("shared", [True, False])
def test_threads_that_decide_one_event_get_one_decision(tested: StoreUnderTest, store: Store, shared: bool):
    """Whether they share the object or not; each payment of the card sees those before it."""
    stores = [store, store if shared else tested.open()]
    both = at_once(*(lambda s=s: decide_many(s, "x", 25) for s in stores))
    check_once(store, {f"x{k}" for k in range(25)})
    entries = {entry.id: entry.body for entry in store.read(streams=[decided.stream])}
    assert both[0] == both[1] == entries
    assert check_decisions(store) == 25


def test_processes_that_decide_one_event_get_one_decision(tested: StoreUnderTest, store: Store):
    results = [tested.elsewhere(decide_many, "x", 40) for _ in range(2)]
    first, second = (result.result() for result in results)
    assert first == second == {entry.id: entry.body for entry in store.read(streams=[decided.stream])}
    check_once(store, {f"x{k}" for k in range(40)})
    assert check_decisions(store) == 40


def test_decisions_on_one_entity_at_once_are_in_one_order(tested: StoreUnderTest, store: Store):
    """Of two events of a card, one sees the other; nobody sees itself less, or another twice."""
    results = [tested.elsewhere(decide_many, name, 25) for name in "ab"]
    here = at_once(lambda: decide_many(store, "c", 25), lambda: decide_many(tested.open(), "d", 25))
    for result in results:
        result.result()
    assert [len(bodies) for bodies in here] == [25, 25]
    check_once(store, {f"{name}{k}" for name in "abcd" for k in range(25)})
    assert check_decisions(store) == 100
    assert same_as_the_log(store, payments, ("card",), ("amount", "shop")) == 100


def test_one_event_that_is_accepted_loaded_and_decided_at_once_counts_once(tested: StoreUnderTest, store: Store):
    results = [tested.elsewhere(pay_many, "x", 30), tested.elsewhere(pay_many, "x", 30, True)]
    decide_many(store, "x", 30)
    new = sum(result.result() for result in results)
    assert new <= 30
    check_once(store, {f"x{k}" for k in range(30)})
    assert check_decisions(store) == 30
    assert same_as_the_log(store, payments, ("card",), ("amount",)) == 30


def test_events_and_reports_at_once_find_each_other(tested: StoreUnderTest, store: Store):
    """A report waits for its event or finds it, whichever comes first."""
    results = [tested.elsewhere(pay_many, "x", 40), tested.elsewhere(pay_many, "x", 40, False, True)]
    assert [result.result() for result in results] == [40, 40]
    assert store.waiting() == []
    logged = entries_of(store)
    events = {entry.position: entry.id for entry in logged["payments"]}
    assert [events[entry.about or 0] for entry in logged[frauds.stream]] == [f"x{k}" for k in range(40)]
    assert same_as_the_log(store, frauds, ("shop",), ("fraud", "about")) == 40


def test_a_reader_that_follows_the_log_misses_nothing(tested: StoreUnderTest, store: Store):
    """A reader that has seen a position never finds a new entry at or below it; decisions and batches come as a whole."""
    results = [tested.elsewhere(decide_many, "a", 40), tested.elsewhere(pay_many, "b", 40)]
    followed: list[tuple[int, str, str]] = []
    reader, after, until = tested.open(), 0, time.monotonic() + 60
    while time.monotonic() < until:
        is_over = all(result.done() for result in results)
        last = reader.last_position()
        page = [(e.position, e.source, e.id) for e in reader.read(after, until=last)]
        assert all(after < position <= last for position, *_ in page)
        followed += page
        after = last
        decisions = [source for _, source, _ in followed].count(decided.stream)
        assert decisions == sum(id.startswith("a") and source == "payments" for _, source, id in followed)
        if is_over:
            break
        time.sleep(0.01)
    assert followed == [(e.position, e.source, e.id) for e in store.read()] and len(followed) == 120


def test_a_history_is_as_of_one_position_while_others_write(tested: StoreUnderTest, store: Store):
    """Each report in it is about an event in it, and each event has its decision."""
    pay_many(store, "b", 40)
    calls = [(decide_many, "a", 40), (pay_many, "b", 40, False, True)]
    results = [tested.elsewhere(*call) for call in calls]
    lengths: list[tuple[int, int]] = []
    while True:
        is_over = all(result.done() for result in results)
        history = store.history([payments], [frauds, decided])
        events, reports = history.events["payments"], history.reports
        positions = dict(zip(events.position.tolist(), events.ids, strict=True))
        assert {*reports[frauds.stream].about.tolist()} <= {*positions}
        by_decision = sorted(positions[about] for about in reports[decided.stream].about.tolist())
        assert by_decision == sorted(id for id in events.ids if id.startswith("a"))
        lengths.append((len(by_decision), len(reports[frauds.stream].about)))
        if is_over:
            break
        time.sleep(0.01)
    assert lengths == sorted(lengths) and lengths[-1] == (40, 40)


def test_a_timeline_is_built_while_others_write(tested: StoreUnderTest, store: Store):
    """When register returns, nothing is missing and nothing appears twice, neither then nor later."""
    pay_many(store, "old", 300, load_them=True)
    results = [tested.elsewhere(pay_many, "x", 150), tested.elsewhere(decide_many, "y", 60)]
    while store.entry("payments", "x20") is None:
        time.sleep(0.005)
    at_once(*(lambda s=s: insist(lambda: s.register("wider", WIDER)) for s in (store, tested.open())))
    logged = {entry.position for entry in store.read(streams=["payments"])}
    assert logged <= {*store.timeline("payments", "card", 1).position.tolist()}, "all that was there by now"
    for result in results:
        result.result()
    pay_many(store, "z", 20)
    pay_many(store, "z", 20, report=True)
    for stream, keys, columns in WANTED:
        assert same_as_the_log(store, stream, keys, columns) == (530 if stream is payments else 20)
    assert check_decisions(store) == 60


def test_a_process_that_dies_in_a_decision_leaves_nothing(tested: StoreUnderTest, store: Store):
    """Nobody has to help: the entity and the event can be decided again."""
    decide_many(store, "x", 3)
    log = list(store.read())
    tested.dies(die_in_a_decision)
    assert list(store.read()) == log
    decide_many(store, "x", 6)
    assert ids(store, "payments") == [f"x{k}" for k in range(6)] and check_decisions(store) == 6


def test_a_writer_waits_for_another_or_says_that_it_did_not(tested: StoreUnderTest, store: Store):
    """One transaction is held open for longer than another writer waits."""
    decide_many(store, "x", 1)
    other, entered, ends = tested.open(), threading.Event(), threading.Event()
    other.lock_timeout = 0.2

    def hold() -> None:
        with store.decision("cards", payments, payments.parse(PAYMENT | {"id": "held"}), instant(PAYMENT["time"])):
            entered.set()
            ends.wait(30)

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        assert entered.wait(30)
        try:
            outcome: Any = decide_many(other, "y", 1, once=True)
        except StoreError as error:
            outcome = error
        ends.set()
        held.result()
    assert isinstance(outcome, dict) or outcome.hint
    decide_many(other, "y", 1)
    assert ids(store, "payments").count("y0") == 1 and check_decisions(store) == 2


# -- processes that are killed -------------------------------------------------------------------------------------

ROUNDS = 2
WRITERS = ["one", "two"]


def run_and_kill(settings: str, number: int, patience: random.Random) -> list[str]:
    """Let some processes decide on one store at once and kill them; what they had acknowledged by then."""
    command = [sys.executable, SUPPORT / "decide_forever.py", settings]
    writers = [subprocess.Popen([*command, own, str(number)], stdout=subprocess.PIPE, text=True) for own in WRITERS]
    acknowledged: list[list[str]] = [[] for _ in writers]
    try:
        readers = [
            threading.Thread(target=lambda w=writer, a=lines: a.extend(w.stdout))
            for writer, lines in zip(writers, acknowledged, strict=True)
        ]
        for reader in readers:
            reader.start()
        give_up = time.monotonic() + 60
        while min(map(len, acknowledged)) < 20 and time.monotonic() < give_up:
            time.sleep(0.01)
        time.sleep(patience.uniform(0, 0.2))
        for writer in writers:
            writer.kill()
            time.sleep(patience.uniform(0, 0.02))
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    for reader in readers:
        reader.join()
    assert min(map(len, acknowledged)) >= 20
    return [line.strip() for lines in acknowledged for line in lines if line.endswith("\n")]


def test_a_killed_process_loses_nothing_that_it_acknowledged(tested: StoreUnderTest, bank: Bank):
    """Two processes decide on one store, also the same payments, and are killed without warning, again and again."""
    acknowledged: list[str] = []
    for number in range(ROUNDS):
        acknowledged += run_and_kill(tested.settings.model_dump_json(), number, random.Random(number))
    decided_ids = {line for line in acknowledged if not line.startswith("fraud ")}
    reported = {line.removeprefix("fraud ") for line in acknowledged if line.startswith("fraud ")}
    assert len(decided_ids) > 20 * ROUNDS and reported
    bank.store.start_checkpointer()  # what the killed processes had begun comes to an end, and readers get past it
    give_up = time.monotonic() + 20
    while not decided_ids <= {e.id for e in bank.store.read(streams=["transactions"])} and time.monotonic() < give_up:
        time.sleep(0.5)
    logged = entries_of(bank.store)
    names = {source: [entry.id for entry in entries] for source, entries in logged.items()}
    for source, in_stream in names.items():
        assert len(in_stream) == len({*in_stream}), f"none is in {source} twice"
    assert decided_ids <= {*names["transactions"]} and decided_ids <= {*names["decisions.fraud"]}
    assert reported <= {*names["transactions.fraud"]}
    assert {*names["transactions"]} == {*names["decisions.fraud"]}, "no event without its decision"
    assert {e.about for e in logged["decisions.fraud"]} == {e.position for e in logged["transactions"]}
    assert verify(handbook.fraud, bank.store).mismatches == 0


def test_threads_share_a_store(bank: Bank):
    """A decider belongs to a thread, the store to all of them."""

    def work(own: int) -> None:
        decider = Decider(handbook.fraud, bank.store)
        for k in range(40):
            for id in (f"{own}-{k}", f"both-{k}"):
                body = bank.payment(id, k / 24, customer_id=k % 3)
                insist(lambda body=body: decider.decide(body, arrived=instant(body["time"])))

    at_once(*(lambda own=own: work(own) for own in range(4)))
    result = verify(handbook.fraud, bank.store)
    assert (result.decisions, result.mismatches) == (5 * 40, 0)
