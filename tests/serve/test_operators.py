"""What an operator changes over HTTP: the same checks and records as on the command line, and nobody else may."""

import itertools
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from bank import booster
from serving import Packaged, Server, mlpkg, payment, serving

import mlpkg as ml
from mlpkg import auth, models
from mlpkg.examples.fraud.policy import fraud
from mlpkg.settings import Settings

CHANGES = [
    ("/v1/models/promote", {"version": "v2"}),
    ("/v1/models/rollback", {}),
    ("/v1/rollouts", {"name": "fees", "parameters": {"review": 5.0}}),
    ("/v1/rollouts/fees/step", {}),
    ("/v1/rollouts/fees/stop", {}),
    ("/v1/policy", {"parameters": {"review": 5.0}}),
    ("/v1/policy/rollback", {}),
]


@dataclass
class Desk:
    """A service with the tokens of an operator and of a caller, and a second model that could decide."""

    server: Server
    store: Any
    tokens: dict[str, str]
    first: str
    second: str

    def ask(self, path: str, role: str = "operator", **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.tokens[role]}"}
        method, url = "POST" if body else "GET", self.server.address + path
        return httpx.request(method, url, headers=headers, json=body or None, timeout=30)

    def changes(self) -> list[tuple[str, str, str]]:
        return [(c["change"], c["by"], c["why"]) for c in self.store.promotions("fraud")]


@pytest.fixture(scope="module")
def desk(made: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    state = made.state(folder / "state")
    with serving(made.bento, state, folder / "log", host="0.0.0.0") as server:
        with closing(ml.open_store(Settings(state=state))) as store:
            about: dict[str, Any] = {"metrics": {"trial": 1.0}, "lineage": {}, "policy": {}}
            second = models.save(state, "fraud", booster(fraud.features), fraud.features, **about)
            tokens = {role: auth.create(store, role, name=f"{role} ann", by="a test")[0] for role in auth.ROLES}
            first = store.active_version("fraud")
            assert first is not None
            yield Desk(server, store, tokens, first, second)


@pytest.mark.parametrize("role", [role for role in auth.ROLES if role != "operator"])
def test_nobody_but_an_operator_changes_anything(desk: Desk, role: str):
    before = desk.changes()
    for path, body in CHANGES:
        answer = desk.ask(path, role, **body, why="to see")
        assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json"), path
        assert "role operator" in answer.json()["detail"]
    assert desk.changes() == before


@pytest.mark.parametrize(("path", "body"), CHANGES)
def test_a_change_without_a_reason_is_refused(desk: Desk, path: str, body: dict[str, Any]):
    before = desk.changes()
    for why in ({"why": "  "}, {"why": ""}, {"why": "x" * 1001}):
        answer = desk.ask(path, **body, **why)
        assert answer.status_code == 422 and "why" in answer.json()["detail"], answer.text
    assert desk.changes() == before


def test_a_promotion_is_one_like_any_other(desk: Desk):
    """The service that was asked decides with it, and its record is what the command line reads."""
    try:
        answer = desk.ask("/v1/models/promote", version=desk.second, why="it is better")
        assert answer.status_code == 200 and answer.json()["model"] == desk.second, answer.text
        assert desk.changes()[-1] == ("promote", "operator ann", "it is better")
        until = time.monotonic() + 20  # workers load it beside their decisions
        for k in itertools.count():
            decided_by = desk.ask("/v1/decide", **payment(f"tx-promoted-{k}")).json()["model"]["version"]
            assert time.monotonic() < until
            if decided_by == desk.second:
                break
        shown = mlpkg("models", "fraud", "--changes", state=desk.server.state)[-1]
        assert (shown["change"], shown["version"], shown["by"]) == ("promote", desk.second, "operator ann")
    finally:
        desk.ask("/v1/models/rollback", why="enough")
    assert desk.store.active_version("fraud") == desk.first
    listed = {m["version"]: m["active"] for m in desk.ask("/v1/models").json()["models"]}
    assert listed == {desk.first: True, desk.second: False}


def test_parameters_are_set_and_taken_back(desk: Desk):
    before = desk.ask("/v1/policy").json()
    changed = desk.ask("/v1/policy", parameters={"review": 9}, why="clerks cost more")
    assert changed.json()["parameters"] == before["parameters"] | {"review": 9.0}
    last = desk.ask("/v1/policy").json()["changes"][-1]
    assert (last["by"], last["why"], last["parameters"]) == ("operator ann", "clerks cost more", {"review": 9.0})
    for wrong in ({"reviews": 9}, {"review": "dear"}):
        assert desk.ask("/v1/policy", parameters=wrong, why="a typo").status_code == 409
    assert desk.ask("/v1/policy/rollback", why="not so").json()["parameters"] == before["parameters"]
    assert desk.ask("/v1/policy/rollback", why="nor that").status_code == 409


def test_a_rollout_starts_steps_and_stops(desk: Desk):
    canary = {"name": "fees", "model": desk.second, "steps": [5, 50, 100]}
    started = desk.ask("/v1/rollouts", **canary, why="a candidate").json()
    assert started["rollouts"][0]["shares"] == {"candidate": 0.05, "control": 0.95}
    stepped = desk.ask("/v1/rollouts/fees/step", why="in a hurry").json()
    assert stepped["rollouts"][0]["shares"]["candidate"] == 0.5
    decided = [desk.ask("/v1/decide", **payment(f"tx-fees-{k}")).json() for k in range(20)]
    assert {d["assignments"][0]["variant"] for d in decided} == {"candidate", "control"}
    (shown,) = desk.ask("/v1/rollouts").json()["running"]
    assert sum(variant["decisions"] for variant in shown["variants"]) == 20
    assert (shown["by"], shown["why"]) == ("operator ann", "in a hurry")
    assert shown["next"] == "It waits for more decisions."
    page = httpx.get(f"{desk.server.address}/", headers={"authorization": f"Bearer {desk.tokens['operator']}"}).text
    assert "fees" in page and "It waits for more decisions." in page
    assert desk.ask("/v1/rollouts/fees/stop", why="seen enough").json()["rollouts"] == []
    assert desk.ask("/v1/rollouts/fees/stop", why="once more").status_code == 404
    changes = [change for change, _, _ in desk.changes() if change.startswith("rollout")]
    assert changes == ["rollout-start", "rollout-step", "rollout-stop"]
    assert mlpkg("rollout", "status", "fraud", state=desk.server.state)["changes"][0]["by"] == "operator ann"


HALVES = [{"name": "a", "share": 50}, {"name": "b", "share": 40, "parameters": {"review": 9.0}}]
REFUSED = [
    ({"kind": "experiment", "variants": HALVES}, "have to add up to 100 %"),
    ({"model": "20180101T000000-00000000"}, "there is no model"),
    ({"parameters": {"review": 9.0}, "unit": "country"}, "no field 'country'"),
    ({"parameters": {"review": 9.0}, "guardrails": {"log loss": 0.1}}, "no outcome feeds"),
    ({"parameters": {"review": 9.0}, "layer": "first"}, "claim the same part of the layer"),
    ({"parameters": {"review": 9.0}, "outcome": "happiness"}, "no outcome 'happiness'"),
    ({"parameters": {"reviews": 9.0}}, "no parameter 'reviews'"),
    ({"parameters": {"review": 9.0}, "where": "amount >"}, "fees"),
]


def test_a_rollout_that_does_not_fit_is_refused_before_anything_changes(desk: Desk):
    layer = {"name": "first", "layer": "first", "parameters": {"review": 8.0}, "steps": [5, 100]}
    assert desk.ask("/v1/rollouts", **layer, why="it claims the layer").status_code == 200
    before = desk.changes()
    try:
        for body, reason in REFUSED:
            answer = desk.ask("/v1/rollouts", name="fees", **body, why="to see")
            assert answer.status_code == 409 and reason in answer.json()["detail"], answer.text
            assert desk.changes() == before
    finally:
        desk.ask("/v1/rollouts/first/stop", why="enough")


def test_a_body_that_is_none_is_refused(desk: Desk):
    headers = {"authorization": f"Bearer {desk.tokens['operator']}"}
    for content, kind, status in (
        (b"{", "application/json", 400),
        (b"[]", "application/json", 422),
        (b"{}", "text/plain", 415),
        (b" " * 2_000_000, "application/json", 413),
    ):
        sent = headers | {"content-type": kind}
        answer = httpx.post(f"{desk.server.address}/v1/policy", content=content, headers=sent, timeout=30)
        assert answer.status_code == status, answer.text
