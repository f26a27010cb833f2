"""The place of a store says what is there, without opening it, and makes backups of it while it is in use."""

from pathlib import Path

import handbook
import pytest
from bank import Bank
from cards import decide, features, hear, pay
from stores import StoreUnderTest

from mlpkg.decisions import verify
from mlpkg.errors import MlpkgError
from mlpkg.store import Token, open_store
from mlpkg.store.opening import counts, store_place


def test_nothing_is_made_by_looking(tested: StoreUnderTest):
    place = store_place(tested.settings)
    assert not place.exists() and place.inspect(["cards"]) is None
    with pytest.raises(MlpkgError) as error:
        open_store(tested.settings, create=False)
    assert error.value.hint and not place.exists()
    tested.open()
    assert place.exists() and store_place(tested.settings).location == place.location
    assert store_place(tested.fresh().settings).location != place.location


def test_a_store_that_is_there_is_opened(tested: StoreUnderTest):
    pay(tested.open(), "a", 0)
    opened = open_store(tested.settings, create=False)
    assert opened.last_position() > 0
    opened.close()


def test_the_numbers_of_a_store_are_read_from_outside(tested: StoreUnderTest):
    store = tested.open()
    store.register("cards", features)
    names = ("log_position", "dead_letters", "dead_letters_retried", "outcomes_waiting", "timelines_building")
    expected = dict.fromkeys(names, 0)
    assert counts(tested.settings) == expected
    decide(store, "a", 1)
    hear(store, "b", True, 1)
    with pytest.raises(ValueError):
        pay(store, "a", 1, amount=3.0)
    expected |= {"log_position": store.last_position(), "dead_letters": 1, "outcomes_waiting": 1}
    assert counts(tested.settings) == expected


def test_a_summary_says_what_a_store_holds(tested: StoreUnderTest):
    store = tested.open()
    store.register("cards", features)
    for k in range(3):
        decide(store, f"p{k}", k)
    hear(store, "later", True, 1)
    token = Token("t1", hash="9f", role="caller", name="checkout", by="ada", created=5)
    store.put_token(token)
    summary = store_place(tested.settings).inspect(["cards", "other"])
    assert summary and summary.position == store.last_position()
    entries = {"payments": 3, "decisions.cards": 3, "payments.fraud": 1}
    assert summary.entries is None or {name: n for name, n in summary.entries.items() if n} == entries
    assert (summary.waiting, summary.dead_letters, summary.builds) == (1, 0, 0)
    assert dict(summary.tokens) == {"t1": token} and {*summary.contracts} >= {"payments", "visits"}
    assert dict(summary.active) == {} and summary.changes == {"cards": [], "other": []}
    assert summary.missing(features) == [] and summary.missing(handbook.features) != []


def test_a_backup_is_the_store_as_of_one_moment(tested: StoreUnderTest, bank: Bank, tmp_path: Path):
    if not tested.kind.has_backup:
        pytest.skip("this kind of store is backed up by its servers")
    for k in range(20):
        bank.pays(f"tx-{k}", k)
        bank.hears(f"tx-{k}", k % 4 == 0, k)
    log, place = list(bank.store.read()), store_place(tested.settings)
    made = place.backup(tmp_path / "copy")
    bank.pays("tx-after", 30)
    assert made.position == log[-1].position and place.backup_size(tmp_path / "copy") > 0
    other = tested.fresh()
    store_place(other.settings).restore(tmp_path / "copy")
    restored = Bank(handbook.fraud, other.settings)
    assert list(restored.store.read()) == log and restored.store.identity() == bank.store.identity()
    assert verify(handbook.fraud, restored.store).mismatches == 0
    assert restored.pays("tx-20", 20).features["customer_n_tx_30d"] == 21, "it goes on from there"
    restored.store.close()
