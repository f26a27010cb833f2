"""A policy is a version: its parameters can be set, and what it did can be recomputed."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import handbook
import pytest
from bank import START, Bank
from command import Command

import mlpkg as ml
from mlpkg.assignment import MILLION, Variant
from mlpkg.decisions import Decider, UseCase, verify
from mlpkg.decisions.policies import decode_policy
from mlpkg.decisions.replay import AS_RECORDED, replay
from mlpkg.decisions.setups import roll_back_parameters, set_parameters
from mlpkg.errors import MlpkgError
from mlpkg.rollout.control import start_rollout
from mlpkg.rollout.kinds import experiment
from mlpkg.settings import Settings
from mlpkg.store import Store, open_store
from mlpkg.times import HOUR, iso


def pays(store: Store, case: UseCase, first: int, last: int) -> list[str]:
    """The policy versions of some decisions; every third payment is large."""
    decider, versions = Decider(case, store), []
    for n in range(first, last):
        body = {"id": f"tx-{n}", "customer_id": n % 5, "terminal_id": 7, "amount": 300.0 if n % 3 == 0 else 10.0}
        at = START + n * HOUR
        versions.append(decider.decide(body | {"time": iso(at)}, arrived=at).policy)
    return versions


def test_decisions_before_and_after_a_threshold_changed_are_both_recomputed(bank: Bank, cli: Command):
    state = bank.store.settings.state
    before = pays(bank.store, handbook.fraud, 0, 12)
    answer = cli("policy", "fraud", "--set", "decline=2", "--why", "reviews are cheap", "--by", "ann", state=state)
    assert answer.status == 0 and "decline = 2.0  (set)" in answer.out
    after = pays(bank.store, handbook.fraud, 12, 24)
    assert len({*before}) == len({*after}) == 1 and before != after
    result = verify(handbook.fraud, bank.store)
    assert (result.decisions, result.actions, result.mismatches) == (24, 24, 0)
    actions = {d["event"]: d["action"] for d in cli("decisions", "fraud", "-n", 0, "--json", state=state).json}
    assert actions["tx-0"] == actions["tx-9"] == "decline" and actions["tx-12"] == "review"

    about = cli("policy", "fraud", "--json", state=state).json
    assert about["version"] == after[0] and about["set"] == {"decline": 2.0}
    assert [(c["change"], c["by"], c["why"]) for c in about["changes"]] == [("policy", "ann", "reviews are cheap")]
    assert cli("policy", "fraud", "--rollback", "--why", "no", state=state).status == 0
    assert pays(bank.store, handbook.fraud, 24, 26) == before[:2]
    assert verify(handbook.fraud, bank.store).mismatches == 0


def test_an_action_that_was_changed_by_hand_is_the_one_mismatch(bank: Bank, cli: Command):
    pays(bank.store, handbook.fraud, 0, 20)
    state = bank.store.settings.state
    with closing(sqlite3.connect(state / "mlpkg.db")) as db, db:
        change = (
            "update log set body=json_set(body, '$.action', 'gift') where id='tx-7' and "
            "source=(select id from source where name='decisions.fraud')"
        )
        assert db.execute(change).rowcount == 1
    answer = cli("verify", "fraud", "--json", state=state)
    assert answer.status == 1 and answer.json["mismatches"] == 1
    (difference,) = answer.json["differences"]
    assert (difference["event"], difference["what"], difference["recorded"]) == ("tx-7", "action", "gift")


def test_what_a_policy_was_can_be_read_when_its_code_is_gone(bank: Bank):
    versions = {*pays(bank.store, handbook.fraud, 0, 3)}
    kept = {version: decode_policy(body) for version, body in bank.store.policies("fraud").items()}
    assert versions <= {*kept}
    (policy,) = (kept[version] for version in versions)
    assert policy.parameters == {"decline": 0.5, "review": 200.0} and policy.function == "handbook.policy"
    assert "score > decline" in policy.source

    other = UseCase("fraud", handbook.features, policy=lambda score, event: "approve")
    result = verify(other, bank.store)
    assert (result.actions, result.mismatches) == (0, 0)
    assert result.unknown_actions == {f"the code of the policy {policy.version} is another here": 3}


def test_fallbacks_are_recomputed_too(bank: Bank):
    def unlucky(event: Any) -> str:
        return "review" if event.amount > 100 else "approve"

    case = UseCase("fraud", handbook.features, policy=handbook.policy, fallback=unlucky)
    decider = Decider(case, bank.store)
    decider.deadline_us = -1
    for n in range(4):
        body = bank.payment(f"tx-{n}", n, amount=300.0 if n % 2 else 10.0)
        assert decider.decide(body, arrived=START + n * 24 * HOUR).fallback
    result = verify(case, bank.store)
    assert (result.decisions, result.actions, result.mismatches) == (4, 4, 0)
    changed = UseCase("fraud", handbook.features, policy=handbook.policy, fallback=lambda event: "approve")
    assert verify(changed, bank.store).unknown_actions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"revew": 1.0}, "no parameter 'revew'; did you mean 'review'"),
        ({"review": "much"}, "has to be a number, not 'much'"),
        ({"review": True}, "has to be a number, not True"),
        ({}, "no parameter was named"),
    ],
)
def test_a_wrong_parameter_changes_nothing(bank: Bank, values: dict[str, Any], message: str):
    position = bank.store.last_position()
    with pytest.raises(MlpkgError, match=message.replace("(", r"\(")):
        set_parameters(bank.store, handbook.fraud, values, by="ann", why="")
    assert bank.store.last_position() == position and bank.store.setup("fraud") is None
    with pytest.raises(MlpkgError, match="no parameter of the policy"):
        roll_back_parameters(bank.store, handbook.fraud, by="ann", why="")


def test_a_parameter_reaches_a_process_that_runs(bank: Bank):
    """A second decider, opened before the change, decides by it with its next decision."""
    with closing(open_store(Settings(state=bank.store.settings.state))) as store:
        decider = Decider(handbook.fraud, store)
        large = [bank.payment(f"tx-{n}", n, amount=300.0) for n in range(2)]
        first = decider.decide(large[0], arrived=START)
        set_parameters(bank.store, handbook.fraud, {"review": 1e6, "decline": 2.0}, by="ann", why="trust")
        second = decider.decide(large[1], arrived=START + 24 * HOUR)
        assert (first.action, second.action) == ("decline", "approve")
        assert second.policy in store.policies("fraud")


def test_on_servers_too(on_servers: Settings):
    """The same on Kafka, Redis and PostgreSQL: two parameters, both recomputed."""
    with closing(ml.open_store(on_servers)) as store:
        bank = Bank(handbook.fraud, on_servers)
        with closing(bank.store):
            before = pays(bank.store, handbook.fraud, 0, 4)
            set_parameters(store, handbook.fraud, {"review": 500}, by="ann", why="dear")
            after = pays(bank.store, handbook.fraud, 4, 8)
        assert before[0] != after[0]
        result = verify(handbook.fraud, store)
        assert (result.decisions, result.actions, result.mismatches) == (8, 8, 0)


def test_a_replay_of_what_was_recorded_repeats_policies_and_variants(bank: Bank, tmp_path: Path):
    """Models, parameters and variants changed meanwhile; each decision is repeated by what decided it."""
    pays(bank.store, handbook.fraud, 0, 6)
    set_parameters(bank.store, handbook.fraud, {"decline": 2.0}, by="ann", why="trust")
    pays(bank.store, handbook.fraud, 6, 12)
    half = MILLION // 2
    strict = [Variant(name="usual", share=half), Variant(name="strict", share=half, parameters={"review": 5.0})]
    start_rollout(bank.store, handbook.fraud, experiment("strict", strict), by="ann", why="to see")
    pays(bank.store, handbook.fraud, 12, 30)
    again = replay(handbook.fraud, bank.store, START, START + 40 * HOUR, tmp_path / "again", model=AS_RECORDED)
    assert (again.decisions, again.equal, again.differences) == (30, 30, [])
    today = replay(handbook.fraud, bank.store, START, START + 40 * HOUR, tmp_path / "today")
    assert today.decisions == 30 and {d.what for d in today.differences} == {"action"}
