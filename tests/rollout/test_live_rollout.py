"""Rollouts in a running service: every worker assigns the same, kills change nothing, and a breach is rolled back alone."""

import threading
from contextlib import closing
from http.client import HTTPException
from itertools import count
from pathlib import Path
from typing import Any

import handbook
import numpy as np
import psutil
import pytest
from bank import START, Bank, booster
from command import Command
from serving import CUSTOMERS, TERMINALS, Client, Packaged, Server, mlpkg, payment, serving
from waiting import soon

import mlpkg as ml
from mlpkg import models
from mlpkg.assignment import MILLION, Variant
from mlpkg.decisions import Decider, verify
from mlpkg.decisions.record import decode_decision
from mlpkg.examples.fraud.policy import fraud
from mlpkg.models import latest_setup
from mlpkg.rollout.control import start_rollout, stop_rollout
from mlpkg.rollout.guardrails import Guardrail
from mlpkg.rollout.kinds import canary, experiment, holdout
from mlpkg.settings import Settings
from mlpkg.store import Store, decisions_of
from mlpkg.times import HOUR, iso


class Payers:
    """Clients that pay until they are stopped; what was answered, by the id of the payment."""

    def __init__(self, server: Server, clients: int = 2):
        self.server, self.answers, self.done = server, dict[str, Any](), threading.Event()
        self.threads = [threading.Thread(target=self._pay, args=(own,)) for own in range(clients)]

    def _pay(self, own: int) -> None:
        for k in count():
            if self.done.wait(0.01):
                return
            pair = (own * 7919 + k * 31) % (CUSTOMERS * TERMINALS)
            body = payment(
                f"tx-{own}-{k}", customer_id=pair % CUSTOMERS, terminal_id=pair % TERMINALS, amount=pair / 99
            )
            try:
                with closing(Client(self.server.port)) as client:
                    answer = client.ask("POST", "/v1/decide", body)
            except (OSError, HTTPException):
                continue  # its worker was killed; nothing was promised
            if answer.status == 200:
                self.answers[answer.json["event"]] = answer.json

    def __enter__(self) -> "Payers":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        for thread in self.threads:
            thread.join()


def broken_model(state: Path) -> str:
    """Save a model that learned the opposite of the active one."""
    rows = np.random.default_rng(0).uniform(0, 100, (500, len(fraud.features.names)))
    about: dict[str, Any] = {"metrics": {"trial": 1.0}, "lineage": {}, "policy": {}}
    return models.save(state, "fraud", booster(fraud.features, rows, rows[:, -1] <= 60), fraud.features, **about)


@pytest.mark.e2e
def test_a_service_rolls_back_by_itself_and_kills_change_nothing(made: Packaged, tmp_path: Path):
    state = made.state(tmp_path / "state")
    with (
        closing(ml.open_store(Settings(state=state))) as store,
        serving(made.bento, state, tmp_path / "log") as server,
        Payers(server) as payers,
    ):
        assert soon(lambda: len(payers.answers) > 100)
        half, candidate = MILLION // 2, broken_model(state)
        prices = [Variant(name="usual", share=half), Variant(name="careful", share=half, parameters={"review": 2.5})]
        by_customer = experiment("prices", prices, unit="customer_id", layer="prices")
        start_rollout(store, fraud, by_customer, by="ann", why="is it worth it?")
        rails = [Guardrail("score distribution", 0.2), Guardrail("fallback rate", 0.05)]
        trial = canary("trial", model=candidate, steps=(50, 100), enough=5000, guardrails=rails)
        start_rollout(store, fraud, trial, by="ann", why="better?")
        assert soon(lambda: any(map(is_follower, server.family()))), "there is a process that follows"
        server.kill()
        server.start()
        assert soon(lambda: "rollout-rollback" in [c["change"] for c in store.promotions("fraud")]), server.output
        ended = len(payers.answers)
        assert soon(lambda: len(payers.answers) > ended + 60)
        last = store.promotions("fraud")[-1]
        assert (last["change"], last["version"], last["by"]) == ("rollout-rollback", "trial", "mlpkg")
        check_decisions(store, payers, candidate)
        assert [r.name for r in latest_setup(store.promotions("fraud")).rollouts] == ["prices"]
    result = mlpkg("verify", "fraud", state=state)
    assert result["mismatches"] == 0 and result["actions"] == result["decisions"] and not result["unknown_actions"]
    status = mlpkg("rollout", "status", "fraud", state=state)
    assert [r["name"] for r in status["running"]] == ["prices"]


def is_follower(process: psutil.Process) -> bool:
    try:
        return "mlpkg.serve.follower" in process.cmdline()
    except psutil.Error:
        return False


def check_decisions(store: Store, payers: Payers, candidate: str) -> None:
    """What was answered is what the log has; a customer has one variant, and the candidate decided what it was assigned."""
    answers = dict(payers.answers)
    records = {e.id: decode_decision(e.body) for e in store.read(streams=[decisions_of("fraud")])}
    assert answers.keys() <= records.keys()
    variants: dict[int, set[str]] = {}
    for event, answer in answers.items():
        record = records[event]
        assert (record.action, record.score) == (answer["action"], answer["score"])
        assigned = {a.rollout: a.variant for a in record.assignments or () if a.unexposed is None}
        if "prices" in assigned:
            variants.setdefault(record.keys["customer_id"], set()).add(assigned["prices"])
        if record.fallback is None:
            assert (record.model["version"] == candidate) == (assigned.get("trial") == "candidate")
    assert {len(v) for v in variants.values()} == {1}
    assert {name for v in variants.values() for name in v} == {"usual", "careful"}


@pytest.mark.parametrize("kind", ["file", "servers"])
def test_assignments_are_recomputed_on_both_stores(kind: str, tmp_path: Path, request: pytest.FixtureRequest):
    """An experiment with a model, one with a parameter, and a holdout; stopped, started again, and verified."""
    place = Settings(state=tmp_path / "state") if kind == "file" else request.getfixturevalue("on_servers")
    bank = Bank(handbook.fraud, place)
    with closing(bank.store) as store:
        about: dict[str, Any] = {"metrics": {"n": 2.0}, "lineage": {}, "policy": {}}
        second = models.save(store.settings.state, "fraud", booster(handbook.features), handbook.features, **about)
        half = MILLION // 2
        newer = [Variant(name="control", share=half), Variant(name="newer", share=half, model=second)]
        strict = [Variant(name="usual", share=half), Variant(name="strict", share=half, parameters={"decline": 0.2})]
        unit = "customer_id"
        started = [
            start_rollout(store, handbook.fraud, made, by="ann", why="to see")
            for made in (
                experiment("models", newer, layer="models", unit=unit),
                experiment("prices", strict, layer="prices", unit=unit),
                holdout("held", 20, unit=unit),
            )
        ]
        pays(bank, 0, 60)
        stop_rollout(store, handbook.fraud, started[0], by="ann", why="enough")
        pays(bank, 60, 80)
        start_rollout(store, handbook.fraud, started[0], by="ann", why="again")
        pays(bank, 80, 120)
        records = [decode_decision(e.body) for e in store.read(streams=[decisions_of("fraud")])]
        names = [tuple((a.rollout, a.version) for a in r.assignments or ()) for r in records]
        assert {("models", 1), ("models", 2), ("held", 1), ("prices", 1)} == {pair for each in names for pair in each}
        assert all(each in ((("held", 1),), ()) or ("held", 1) not in each for each in names)
        of_second = [r.model["version"] == second for r in records]
        assigned = ["newer" in [a.variant for a in r.assignments or ()] for r in records]
        assert of_second == assigned and any(of_second) and not all(of_second)
        result = verify(handbook.fraud, store)
        assert (result.decisions, result.actions, result.mismatches) == (120, 120, 0)


def pays(bank: Bank, first: int, last: int) -> None:
    """Payments of many customers."""
    decider = Decider(handbook.fraud, bank.store)
    for n in range(first, last):
        at = START + n * HOUR
        body = {"id": f"tx-{n}", "customer_id": n % 23, "terminal_id": 7, "amount": float(n % 90), "time": iso(at)}
        decider.decide(body, arrived=at)


def test_what_does_not_fit_is_refused_before_anything_changes(bank: Bank, cli: Command):
    state, position = bank.store.settings.state, bank.store.last_position()

    def refused(*arguments: str, words: str) -> None:
        assert cli("rollout", "start", "fraud", *arguments, "--why", "x", state=state).said_one_line(words)

    halves = ("--kind", "experiment", "--variant", "a=50")
    refused("t", *halves, "--variant", "b=40", words="add up to 100 %")
    refused("t", *halves, "--variant", "b=50,model=20200101T000000-00000000", words="there is no model")
    refused("t", *halves, "--variant", "b=50,revew=3", words="no parameter 'revew'")
    refused("t", *halves, "--variant", "b=50", "--unit", "customer", words="did you mean 'customer_id'")
    refused("t", *halves, "--variant", "b=50", "--where", "amuont > 3", words="no column 'amuont'")
    refused("t", "--set", "review=3", "--guardrail", "log loss=0.1", words="no outcome feeds")
    refused("t", "--set", "review=3", "--outcome", "fruad", words="no outcome 'fruad'")
    refused("t", "--set", "review=3", "--guardrail", "colour=0.1", words="'colour'")
    assert bank.store.last_position() == position
    assert cli("rollout", "start", "fraud", "t", *halves, "--variant", "b=50", "--why", "x", state=state).status == 0
    refused("u", *halves, "--variant", "b=50", words="claim the same part of the layer")
    assert cli("rollout", "stop", "fraud", "t", "--why", "x", state=state).status == 0
    assert cli("rollout", "status", "fraud", "--json", state=state).json["running"] == []
