"""Explanations are events of either store: each once, the same for whoever asks, and with the parameters that decided."""

from collections import Counter

import msgspec
import reasoned_bank
from bank import Bank

from mlpkg.decisions import verify
from mlpkg.decisions.setups import set_parameters
from mlpkg.reasons import ReasonsReader, explain_decision, explanations, record_explanation
from mlpkg.store import decisions_of, reasons_of


def pay(bank: Bank, first: int, count: int) -> None:
    for k in range(first, first + count):
        bank.pays(f"tx-{k}", k / 4, customer_id=k % 3, amount=25.0 * (k % 12))


def test_each_decision_is_explained_once_by_whoever_comes_first(bank: Bank):
    pay(bank, 0, 20)
    asked = {id: explain_decision(reasoned_bank.fraud, id, bank.store) for id in ("tx-3", "tx-17")}
    reader = ReasonsReader(reasoned_bank.fraud, bank.store)
    while reader.step():
        pass
    pay(bank, 20, 5)
    assert ReasonsReader(reasoned_bank.fraud, bank.store).step() == 5, "another reader goes on where the first one was"
    recorded = {e.event: (entry, e) for entry, e in explanations("fraud", bank.store)}
    decided = {e.position: e.id for e in bank.store.read(streams=[decisions_of("fraud")])}
    assert Counter(e.id for e in bank.store.read(streams=[reasons_of("fraud")])) == Counter(decided.values())
    for id, (entry, explanation) in recorded.items():
        assert decided[entry.about] == id == entry.id
        assert explain_decision(reasoned_bank.fraud, id, bank.store) == explanation
    assert {id: recorded[id][1] for id in asked} == asked
    assert verify(bank.case, bank.store).mismatches == 0


def test_what_is_in_the_log_is_never_replaced(bank: Bank):
    pay(bank, 0, 1)
    first = explain_decision(reasoned_bank.fraud, "tx-0", bank.store)
    decision = bank.store.entry(decisions_of("fraud"), "tx-0")
    other = msgspec.structs.replace(first, text=["something else"])
    assert record_explanation("fraud", decision, other, bank.store) == first


def test_it_tells_the_parameters_that_decided_and_asks_with_them(bank: Bank):
    pay(bank, 0, 12)
    set_parameters(bank.store, bank.case, {"decline": 0.0}, by="a test", why="to decline everything")
    pay(bank, 12, 12)
    before, after = (explain_decision(reasoned_bank.fraud, id, bank.store) for id in ("tx-5", "tx-17"))
    assert (before.policy.parameters["decline"], after.policy.parameters["decline"]) == (0.5, 0.0)
    assert before.policy.version != after.policy.version and "decline = 0.0" in " ".join(after.text)
    assert after.action == "decline" and after.counterfactual
    assert not after.counterfactual.changes and "would have led to another decision" in after.counterfactual.note
