"""Which model is active, who may come in, who looked at what, and how far each consumer of the log has come."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from cards import at, features, ids, pay, payment, payments
from elsewhere import active_version, all_token_ids, derive, promote
from stores import StoreUnderTest

from mlpkg.errors import MlpkgError, StoreError
from mlpkg.store import ModelChange, RecordedChange, Store, Token, promotions_of
from mlpkg.times import now

# -- models --------------------------------------------------------------------------------------------------------


def test_no_model_is_active_at_first(store: Store):
    assert store.active_version("cards") is None and list(store.promotions("cards")) == []


def test_the_last_change_says_which_model_is_active(tested: StoreUnderTest):
    store, other = tested.open(), tested.open()
    before = now()
    for number, version in enumerate(("v1", "v2", "v1")):
        promote(store, version, why=f"the {number}.")
        assert store.active_version("cards") == other.active_version("cards") == version
        assert tested.elsewhere(active_version).result() == version
    changes = other.promotions("cards")
    assert [change["version"] for change in changes] == ["v1", "v2", "v1"]
    assert [(c["change"], c["active"], c["by"], c["why"]) for c in changes[:1]] == [("promote", "v1", "ada", "the 0.")]
    assert all(before <= change["at"] <= now() for change in changes)
    assert all(a["position"] < b["position"] for a, b in pairwise(changes))
    assert tested.reopen().active_version("cards") == "v1"


def test_a_change_of_a_model_is_an_entry_of_the_log(store: Store):
    store.register("cards", features)
    pay(store, "a", 0)
    promote(store, "v1")
    pay(store, "b", 1)
    entries = list(store.read())
    assert [entry.source for entry in entries] == ["payments", promotions_of("cards"), "payments"]
    (change,) = store.promotions("cards")
    assert (entries[1].position, entries[1].time) == (change["position"], change["at"])
    assert json.loads(entries[1].body)["version"] == "v1"


def test_use_cases_have_models_of_their_own(store: Store):
    promote(store, "v1")
    promote(store, "w1", use_case="other")
    assert [store.active_version(name) for name in ("cards", "other", "third")] == ["v1", "w1", None]
    assert [len(store.promotions(name)) for name in ("cards", "other", "third")] == [1, 1, 0]


def test_a_change_gets_all_changes_so_far_and_may_refuse(tested: StoreUnderTest):
    store = tested.open()
    promote(store, "v1")
    last, seen = store.last_position(), []

    def refuse(changes: Sequence[RecordedChange]) -> ModelChange:
        seen.append([*changes])
        raise MlpkgError("not now", "ask later")

    with pytest.raises(MlpkgError, match="not now"):
        store.change_model("cards", refuse)
    assert seen == [[*store.promotions("cards")]] and len(seen[0]) == 1
    assert (store.last_position(), store.active_version("cards")) == (last, "v1")
    promote(store, "v2")
    assert tested.elsewhere(active_version).result() == "v2"


def test_a_shadow_does_not_change_which_model_is_active(store: Store):
    for active in (None, "v1"):
        if active:
            promote(store, active)
        change: Any = {"change": "shadow", "version": "v9", "active": active, "by": "ada", "why": ""}
        store.change_model("cards", lambda before, change=change: change)
        assert store.active_version("cards") == active
    assert [change["change"] for change in store.promotions("cards")] == ["shadow", "promote", "shadow"]


def test_a_change_may_say_what_else_decides(tested: StoreUnderTest):
    """Each part holds until a change brings another; other processes see it, and so does a decision."""
    store, other = tested.open(), tested.open()
    store.register("cards", features)
    assert store.setup("cards") is None

    def change(active: str | None, **setup: Any) -> None:
        made: Any = {"change": "any", "version": "x", "active": active, "by": "ada", "why": "costs", **setup}
        store.change_model("cards", lambda before: made)

    for active, setup, expected in (
        (None, "one", (None, "one")),
        ("v1", None, ("v1", "one")),
        (None, "two", ("v1", "two")),
        ("v2", "three", ("v2", "three")),
    ):
        change(active, **({} if setup is None else {"setup": setup}))
        for opened in (store, other):
            assert (opened.active_version("cards"), opened.setup("cards")) == expected
    row = payments.parse(payment("a", 0))
    with store.decision("cards", payments, row, at(0)) as decision:
        assert (decision.active_version(), decision.setup()) == ("v2", "three")
    assert other.setup("others") is None
    assert tested.reopen().setup("cards") == "three"


def test_a_version_of_a_policy_is_kept_once(tested: StoreUnderTest):
    store = tested.open()
    for version, body in (("p2", "review at 4"), ("p1", "review at 5"), ("p2", "another text")):
        store.keep_policy("cards", version, body)
    store.keep_policy("others", "p1", "ship")
    expected = {"p2": "review at 4", "p1": "review at 5"}
    for opened in (store, tested.open()):
        assert opened.policies("cards") == expected and list(opened.policies("cards")) == ["p2", "p1"]
    assert store.policies("third") == {} and tested.reopen().policies("cards") == expected


def test_changes_at_once_come_one_after_the_other(tested: StoreUnderTest):
    """Each sees all those before it, whichever process they come from."""
    stores = [tested.open() for _ in range(2)]
    results = [tested.elsewhere(promote, f"p{k}") for k in range(6)]
    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(lambda k: promote(stores[k % 2], f"t{k}"), range(6)))
    seen += [result.result() for result in results]
    assert sorted(seen) == list(range(12)), "how many were there before each"
    changes = stores[0].promotions("cards")
    assert len(changes) == 12 and stores[1].active_version("cards") == changes[-1]["version"]
    assert len(ids(stores[0], promotions_of("cards"))) == len({*ids(stores[0], promotions_of("cards"))}) == 12


# -- tokens and accesses -------------------------------------------------------------------------------------------


def soon(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether a condition holds within some seconds; a store promises one."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def test_a_token_takes_the_place_of_one_with_the_same_id(tested: StoreUnderTest):
    store, other = tested.open(), tested.open()
    assert not store.tokens()
    first = Token("t1", hash="9f", role="caller", name="checkout", by="ada", created=5, expires=9)
    second = Token("t2", hash="a0", role="auditor", name="audit", by="ada", created=6)
    for token in (first, second):
        store.put_token(token)
    assert dict(store.tokens()) == {"t1": first, "t2": second}
    assert soon(lambda: dict(other.tokens()) == {"t1": first, "t2": second})
    revoked = Token("t1", hash="9f", role="caller", name="checkout", by="ada", created=5, expires=9, revoked=7)
    other.put_token(revoked)
    assert soon(lambda: store.tokens()["t1"] == revoked) and len(store.tokens()) == 2
    assert tested.elsewhere(all_token_ids).result() == ["t1", "t2"]
    assert dict(tested.reopen().tokens()) == {"t1": revoked, "t2": second}
    assert tested.open().last_position() == 0, "tokens are not in the log"


def test_accesses_have_numbers_of_their_own(tested: StoreUnderTest):
    store, other = tested.open(), tested.open()
    before = now()
    assert store.accesses() == []
    for k in range(9):
        (store if k % 2 else other).add_access(f'{{"number":{k}}}')
    accesses = other.accesses()
    assert [json.loads(access.body)["number"] for access in accesses] == list(range(9))[::-1]
    assert all(a.number > b.number for a, b in pairwise(accesses))
    assert all(before <= access.at <= now() for access in accesses)
    assert store.accesses(most=3) == accesses[:3] and store.accesses(before=accesses[3].number) == accesses[4:]
    assert store.accesses(accesses[3].number, 2) == accesses[4:6]
    assert store.accesses(before=accesses[-1].number) == []
    assert tested.reopen().accesses() == accesses and tested.open().last_position() == 0


# -- consumers -----------------------------------------------------------------------------------------------------


def test_a_consumer_begins_at_nothing(store: Store):
    pay(store, "a", 0)
    assert store.consumer_offset("shadow") == 0


def test_what_is_derived_goes_into_the_log_with_the_offset(tested: StoreUnderTest):
    store, other = tested.open(), tested.open()
    event = pay(store, "a", 0)
    before = tested.settings.now()
    derive(store, "s1", event.position, about=event.position)
    (entry,) = other.read(streams=["scores.cards"])
    assert (entry.id, entry.time, entry.about, entry.body) == ("s1", at(0), event.position, '{"score":0.5}')
    assert before <= entry.arrived <= tested.settings.now() and entry.position > event.position
    for opening in (tested.open, tested.reopen):
        opened = opening()
        assert [opened.consumer_offset(name) for name in ("shadow", "other")] == [event.position, 0]
    assert entry == tested.open().entry("scores.cards", "s1")


def test_an_entry_that_was_derived_before_stays_as_it_is(tested: StoreUnderTest):
    """A consumer that was killed begins again before its last entries."""
    store = tested.open()
    positions = [pay(store, f"p{k}", k).position for k in range(3)]
    derive(store, "s1", positions[0])
    before = list(store.read())
    entries = [(id, at(0), positions[0], '{"score":0.9}') for id in ("s1", "s2", "s2")]
    store.append_derived("scores.cards", entries, reader="shadow", until=positions[1])
    log = list(store.read())
    assert log[: len(before)] == before and [(e.id, e.body) for e in log[len(before) :]] == [("s2", '{"score":0.9}')]
    assert store.consumer_offset("shadow") == positions[1]
    tested.elsewhere(derive, "s2", positions[2]).result()
    assert list(store.read()) == log and store.consumer_offset("shadow") == positions[2]
    derive(store, "s1", positions[0], reader="another", stream="scores.other")
    assert [store.consumer_offset(name) for name in ("shadow", "another")] == [positions[2], positions[0]]
    assert len(ids(store)) == len(log) + 1, "an id is unique in its stream only"


def test_a_consumer_without_results_moves_its_offset(store: Store):
    position = pay(store, "a", 0).position
    store.append_derived("scores.cards", [], reader="shadow", until=position)
    assert store.consumer_offset("shadow") == position and ids(store) == ["a"]


def test_entries_and_offset_are_stored_together_or_not_at_all(store: Store):
    position = pay(store, "a", 0).position

    def broken() -> Any:
        yield "s1", at(0), position, "{}"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.append_derived("scores.cards", broken(), reader="shadow", until=position)
    assert store.consumer_offset("shadow") == 0 and ids(store) == ["a"]
    derive(store, "s1", position)
    assert store.consumer_offset("shadow") == position and ids(store) == ["a", "s1"]


# -- maintenance ---------------------------------------------------------------------------------------------------


def test_a_log_has_an_identity(tested: StoreUnderTest):
    store = tested.open()
    identity = store.identity()
    pay(store, "a", 0)
    assert identity and identity == tested.open().identity() == tested.reopen().identity()
    assert tested.fresh().open().identity() != identity


def test_a_store_that_can_be_written_passes_its_checks(tested: StoreUnderTest):
    store = tested.open()
    pay(store, "a", 0)
    log = list(store.read())
    store.check()
    store.check_not_moved()
    checker = store.checker()
    with ThreadPoolExecutor(1) as pool:
        for thorough in (True, False):
            pool.submit(checker.check, thorough).result()
        pool.submit(checker.close).result()
    assert list(store.read()) == log and store.settings == tested.settings
    pay(store, "b", 1)


def test_a_checker_works_while_others_write(store: Store):
    checker = store.checker()
    with ThreadPoolExecutor(2) as pool:
        writes = pool.submit(lambda: [pay(store, f"p{k}", k / 24) for k in range(60)])
        checks = 0
        while not writes.done():
            pool.submit(checker.check, checks % 2 == 0).result()
            checks += 1
        assert all(receipt.new for receipt in writes.result())
    checker.close()
    assert ids(store) == [f"p{k}" for k in range(60)]


def test_the_wait_for_another_process_can_be_set(store: Store):
    assert store.lock_timeout > 0
    store.lock_timeout = 0.5
    assert store.lock_timeout == 0.5
    pay(store, "a", 0)


def test_a_group_of_writes_may_take_the_advisory_lock(tested: StoreUnderTest):
    """Whoever does not take it is not kept out for long."""
    store, other = tested.open(), tested.open()
    with store.write_lock():
        pay(store, "a", 0)
        pay(other, "b", 1)
    with other.write_lock():
        pay(other, "c", 2)
    assert ids(store) == ["a", "b", "c"]


def test_checkpoints_in_a_thread_change_nothing(tested: StoreUnderTest):
    store = tested.open()
    for _ in range(2):
        store.start_checkpointer()
    pay(store, "a", 0)
    assert ids(tested.open()) == ["a"] == ids(tested.reopen())


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_a_write_is_acknowledged_after_the_deferred_wait(tested: StoreUnderTest, durability: str):
    """From `defer_fsync` on, several writes may share one wait. None means that there is nothing to wait for."""
    store = tested.open(durability=durability)
    store.register("cards", features)
    wait: Callable[[], None] = store.defer_fsync() or (lambda: None)
    for k in range(3):
        for n in range(4):
            pay(store, f"p{k}-{n}", k)
        promote(store, f"v{k}")
        wait()
        wait()
        assert len(ids(tested.open(), "payments")) == 4 * (k + 1)
        assert tested.elsewhere(active_version).result() == f"v{k}"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: (pay(store, f"q{n}", 9), wait()), range(20)))
    log = list(store.read())
    assert len(log) == 35 and list(tested.reopen().read()) == log


def test_a_store_that_was_closed_says_so(tested: StoreUnderTest):
    store = tested.open()
    store.register("cards", features)
    pay(store, "a", 0)
    store.close()
    store.close()
    for call in (
        lambda: pay(store, "b", 1),
        store.last_position,
        lambda: list(store.read()),
        lambda: store.timeline("payments", "card", 1),
        lambda: store.put_token(Token("t1", hash="", role="caller", name="x", by="ada", created=0)),
        store.check,
    ):
        with pytest.raises(StoreError):
            call()
    assert ids(tested.open()) == ["a"]
