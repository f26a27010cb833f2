"""What the tests do in another process; it imports little, so that the process starts soon."""

from cards import ids, pay

from mlpkg.store import Store


def all_ids(store: Store) -> list[str]:
    return ids(store)


def pay_and_list_waiting(store: Store, id: str, day: float) -> list[str]:
    pay(store, id, day)
    return [entry.id for entry in store.waiting()]
