"""What the tests do in another process; it imports little, so that the process starts soon."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from cards import Seen, at, decide, decided, hear, ids, load, paid, pay, payment, payments

from mlpkg.errors import StoreError
from mlpkg.store import ModelChange, RecordedChange, Store

WAIT = 30.0  # seconds; a transaction of a process that died may be in the way for a while


def insist(call: Callable[[], Any]) -> Any:
    """Repeat a write that the store could not make, as a caller may."""
    give_up = time.monotonic() + WAIT
    while True:
        try:
            return call()
        except StoreError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def all_ids(store: Store) -> list[str]:
    return ids(store)


def pay_and_list_waiting(store: Store, id: str, day: float) -> list[str]:
    pay(store, id, day)
    return [entry.id for entry in store.waiting()]


def decide_one(store: Store, id: str, day: float) -> Seen:
    return decide(store, id, day)


def decide_many(store: Store, name: str, count: int, once: bool = False) -> dict[str, str]:
    """Decide payments of one card; the records by event, as the log has them."""
    for k in range(count):
        if once:
            decide(store, f"{name}{k}", k / 24)
        else:
            insist(lambda k=k: decide(store, f"{name}{k}", k / 24))
    entries = [store.entry(decided.stream, f"{name}{k}") for k in range(count)]
    return {entry.id: entry.body for entry in entries if entry}


def pay_many(store: Store, name: str, count: int, load_them: bool = False, report: bool = False) -> int:
    """Accept payments of one card, load them as batches of ten, or report them; how many of these were new."""
    new = 0
    for k in range(0, count, 10):
        group = [(f"{name}{n}", n / 24) for n in range(k, min(k + 10, count))]
        if load_them:
            loaded = insist(lambda group=group: load(store, *(paid(id, day) for id, day in group)))
            new += loaded.new.get("payments", 0)
            continue
        for id, day in group:
            receipt = insist(lambda id=id, day=day: hear(store, id, True, day) if report else pay(store, id, day))
            new += receipt.new
    return new


def die_in_a_decision(store: Store) -> None:
    with store.decision("cards", payments, payments.parse(payment("x3", 3 / 24)), at(3 / 24)) as decision:
        decision.record('{"score":0.5,"action":"go"}')
        os._exit(9)


def promote(store: Store, version: str, why: str = "", use_case: str = "cards") -> int:
    """Make a version active; how many changes there were before."""
    seen: list[int] = []

    def change(before: Sequence[RecordedChange]) -> ModelChange:
        seen.append(len(before))
        return {"change": "promote", "version": version, "active": version, "by": "ada", "why": why}

    insist(lambda: store.change_model(use_case, change))
    return seen[-1]


def active_version(store: Store) -> str | None:
    return store.active_version("cards")


def all_token_ids(store: Store) -> list[str]:
    return sorted(store.tokens())


def derive(
    store: Store, id: str, until: int, about: int | None = None, reader: str = "shadow", stream: str = "scores.cards"
) -> None:
    """Append one score, as a consumer does that has read the log up to `until`."""
    store.append_derived(
        stream, [(id, at(0), until if about is None else about, '{"score":0.5}')], reader=reader, until=until
    )


def retry_all(store: Store, name: str) -> int:
    """Retry the dead letters of payments under ids of this process; how many of them it was first to send."""
    new = 0
    for letter in store.dead_letters("payments"):
        body = payment(f"{letter.event}{name}", 1)
        number = letter.number
        new += insist(lambda n=number, b=body: store.retry_dead_letter(n, payments, b, arrived=at(1))).new
    return new
