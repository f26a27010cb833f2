"""Why a decision was made: contributions that add up, answers that hold, and the same explanation for everybody."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import handbook
import lightgbm as lgb
import msgspec
import numpy as np
import psutil
import pytest
import reasoned_bank
from bank import Bank, put_live
from command import Command
from paths import SUPPORT
from ranking_shop import Shop
from serving import environment, free_port
from waiting import soon

import mlpkg as ml
from mlpkg import models
from mlpkg.client import Client
from mlpkg.decisions import Decider, Decision
from mlpkg.errors import MlpkgError
from mlpkg.models import Categories, registry
from mlpkg.reasons import Explainer, explain_decision, explanations
from mlpkg.reasons.changed_event import recorded_columns
from mlpkg.settings import Settings
from mlpkg.store import decisions_of, reasons_of
from mlpkg.times import HOUR, instant, iso, now

# Contributions


class Claim(ml.Event):
    person: str
    amount: ml.Money
    channel: str | None = None
    age: float | None = None


claims = ml.Source("claims", Claim)
features = ml.FeatureSet(
    "claims",
    on=claims,
    person=claims.by("person").agg(
        n=ml.count(over="7d"), mean=ml.mean("age", over="7d"), often=ml.mode("channel", over="7d")
    ),
    amount=ml.field("amount"),
    channel=ml.field("channel"),
    age=ml.field("age"),
    ratio=ml.field("amount") / ml.feature("person_mean_7d"),
)


def policy(score, event):
    return "pay" if score < 0.4 else "look"


case = ml.UseCase("claims", features, policy=policy, fallback="look", reasons=True)
OBJECTIVES: dict[str, dict[str, Any]] = {
    "binary": {"objective": "binary"},
    "regression": {"objective": "regression"},
    "poisson": {"objective": "poisson"},
    "tweedie": {"objective": "tweedie"},
    "lambdarank": {"objective": "lambdarank"},
    "forest": {"objective": "binary", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
    "dart": {"objective": "binary", "boosting": "dart"},
}


def train(options: dict[str, Any]) -> tuple[lgb.Booster, Categories]:
    from mlpkg.engine.columns import text_code

    rng = np.random.default_rng(3)
    words = [text_code(word) for word in ("app", "web", "desk")]
    categories = Categories(dict.fromkeys(features.categories, words))
    rows = rng.uniform(0, 60, (1500, len(features.names)))
    for name in features.categories:
        rows[:, features.names.index(name)] = rng.integers(0, 4, len(rows))
    rows[rng.random(rows.shape) < 0.15] = np.nan
    by_channel = 80 * (rows[:, features.names.index("channel")] == 1)
    labels = (np.nansum(rows, axis=1) + by_channel + rng.normal(0, 10, len(rows)) > 180).astype(int)
    kinds: Any = {"feature_name": features.names, "categorical_feature": features.categories}
    groups = {"group": [30] * 50} if options["objective"] == "lambdarank" else {}
    common = {"verbose": -1, "num_threads": 1, "num_leaves": 15}
    return lgb.train(common | options, lgb.Dataset(rows, labels, **groups, **kinds), 25), categories


def decide_claims(store: Any, count: int) -> list[Decision]:
    rng, decider, made = random.Random(1), Decider(case, store), []
    for k in range(count):
        time = iso(instant("2024-03-01") + k * HOUR)
        body = {"id": f"c-{k}", "time": time, "person": f"p{k % 3}", "amount": rng.randrange(100, 9000) / 100}
        body |= {"channel": rng.choice(["app", "web", "fax", None]), "age": rng.choice([None, 20.5, 44.0])}
        made.append(decider.decide(body, arrived=instant(time)))
    return made


@pytest.mark.parametrize("options", OBJECTIVES.values(), ids=list(OBJECTIVES))
def test_contributions_and_base_add_up_to_the_raw_score(tmp_path: Path, options: dict[str, Any]):
    """Missing values, unknown categories and every supported objective included."""
    booster, categories = train(options)
    with closing(ml.open_store(Settings(state=tmp_path / "state"))) as store:
        about: Any = {"metrics": {}, "lineage": {}, "policy": {}}
        version = models.save(store.settings.state, "claims", booster, features, categories=categories, **about)
        models.promote(store, models.find(store.settings.state, "claims", version), by="a test", why="to decide")
        made = decide_claims(store, 40)
        assert any(d.features["age"] is None for d in made) and any(d.features["channel"] is None for d in made)
        explained: Any = Explainer(case, store).explain(made)
        columns = recorded_columns(features, [d.features for d in made])
        raw = np.asarray(booster.predict(categories.matrix(columns), raw_score=True))
        for decision, e, expected in zip(made, explained, raw.tolist(), strict=True):
            assert list(e.contributions) == features.names
            assert e.base + sum(e.contributions.values()) == pytest.approx(expected, abs=1e-9)
            assert e.raw_score == pytest.approx(expected, abs=1e-9) and e.score == decision.score
            shares = sum(abs(r.share) for r in e.reasons)
            assert shares <= 1 + 1e-9 and sum(r.share for r in e.reasons) + e.other == pytest.approx(
                sum(e.contributions.values()) / sum(map(abs, e.contributions.values()))
            )
        if options["objective"] == "binary" and options.get("boosting") != "rf":  # a forest's is the sum of its trees
            score: Any = decision.score
            assert expected == pytest.approx(np.log(score / (1 - score)))
        texts = {r.value for e in explained for r in e.reasons if r.feature == "channel"}
        assert texts <= {"app", "web", "fax", "not known"} and texts


def test_a_decision_has_the_same_explanation_alone_and_among_others(bank: Bank):
    made = [bank.pays(f"tx-{k}", k / 4, customer_id=k % 3, amount=25.0 * (k % 12)) for k in range(30)]
    together = Explainer(reasoned_bank.fraud, bank.store).explain(made)
    assert together == [Explainer(reasoned_bank.fraud, bank.store).explain([d])[0] for d in made]


def test_it_is_made_of_the_record_and_not_of_what_is_known_by_now(bank: Bank):
    decision = bank.pays("tx-0", 10, amount=30.0)
    (before,) = Explainer(reasoned_bank.fraud, bank.store).explain([decision])
    for k in range(5):
        bank.pays(f"late-{k}", 9, amount=900.0)
    bank.hears("tx-0", True, 11)
    registry.promote(
        bank.store,
        models.find(bank.store.settings.state, "fraud", put_live(bank.case, bank.store, n=3.0)),
        by="a",
        why="b",
    )
    assert Explainer(reasoned_bank.fraud, bank.store).explain([decision]) == [before]


def test_a_record_that_was_changed_is_not_explained_away(bank: Bank):
    bank.pays("tx-0", 0)
    bank.store.db.execute("update log set body=json_set(body, '$.features.amount', 99.0) where body like '%as_of%'")
    with pytest.raises(MlpkgError, match=r"records the score .* gives .* for the recorded features; see: mlpkg verify"):
        explain_decision(reasoned_bank.fraud, "tx-0", bank.store)
    assert not list(explanations("fraud", bank.store))


# Counterfactuals


def test_a_payment_with_the_amount_that_is_named_gets_the_action_that_is_named(tmp_path: Path):
    """Each answer is tried in another store with the same past, where the payment comes with that amount."""
    bodies, rng = [], random.Random(5)
    with closing(Bank(handbook.fraud, tmp_path / "first").store) as store:
        first = Bank(handbook.fraud, store.settings)
        for k in range(60):
            amount = rng.randrange(100, 15_000) / 100
            body = first.payment(f"tx-{k}", k / 4, customer_id=k % 3, amount=amount)
            bodies.append(body)
            first.decider.decide(body, arrived=instant(body["time"]))
        answers = [explain_decision(reasoned_bank.fraud, body["id"], first.store) for body in bodies]
        first.store.close()
    declined = [(k, a) for k, a in enumerate(answers) if a.action == "decline"]
    helped = [
        (k, a) for k, a in declined if a.counterfactual and [c.name for c in a.counterfactual.changes] == ["amount"]
    ]
    assert declined and helped, Counter(a.action for a in answers)
    assert all(a.counterfactual is None for a in answers if a.action != "decline")
    for k, answer in helped[:4]:
        assert answer.counterfactual
        second = Bank(handbook.fraud, tmp_path / f"second-{k}")
        with closing(second.store):
            for body in bodies[:k]:
                second.decider.decide(body, arrived=instant(body["time"]))
            changed = bodies[k] | {"amount": answer.counterfactual.changes[0].value}
            decision = second.decider.decide(changed, arrived=instant(changed["time"]))
        assert (decision.action, decision.score) == (answer.counterfactual.action, answer.counterfactual.score)
        assert decision.action != "decline"


def test_a_policy_whose_code_is_gone_is_not_asked(bank: Bank):
    bank.pays("tx-0", 0)

    def other(score, event):
        return "decline"

    changed = ml.UseCase(
        "fraud",
        handbook.features,
        policy=other,
        reasons=ml.Reasons(changeable={"approve": ["amount"], "decline": ["amount"]}),
    )
    (explanation,) = Explainer(changed, bank.store).explain([bank.decider.decide({"id": "tx-0"})])
    assert not isinstance(explanation, MlpkgError) and explanation.counterfactual
    assert explanation.counterfactual.note.endswith("cannot be said: its policy is no longer here.")
    assert explanation.policy.name == "policy" and explanation.policy.parameters == {"decline": 0.5, "review": 200.0}


# Rankings and fallbacks


def test_of_a_ranking_the_first_alternative_is_explained(tmp_path: Path):
    shop = Shop(tmp_path / "shop")
    with closing(shop.store):
        _, decision = shop.ranks("v1")
        (explanation,) = Explainer(shop.decider.use_case, shop.store).explain([decision])
        assert not isinstance(explanation, MlpkgError) and decision.alternatives
        first = decision.alternatives[0]
        assert explanation.alternatives == 20 and f"the first of 20 alternatives ({first})" in explanation.text[0]
        assert explanation.score == first.score and explanation.counterfactual is None
        model = models.find(shop.store.settings.state, "offers", shop.version)
        columns = recorded_columns(model.features, [decision.features])
        raw = model.predictor.booster.predict(model.categories.matrix(columns), raw_score=True)  # type: ignore[attr-defined]
        assert explanation.raw_score == pytest.approx(raw[0])


def test_what_the_fallback_decided_is_explained_by_its_reason(tmp_path: Path, cli: Command):
    with closing(ml.open_store(Settings(state=tmp_path / "state"))) as store:
        careful = ml.UseCase("fraud", handbook.features, policy=handbook.policy, fallback="review", reasons=True)
        body = {"id": "tx-1", "time": iso(now()), "customer_id": 1, "terminal_id": 7, "amount": 10.0}
        decision = Decider(careful, store).decide(body)
        explanation = explain_decision(careful, "tx-1", store)
    assert decision.fallback and explanation.policy.fallback == decision.fallback
    assert (explanation.reasons, explanation.raw_score, explanation.policy.name) == ([], None, "review")
    assert "no model could be used" in explanation.text[1]


# On the command line and in a service


def test_the_command_line_says_why_in_sentences_and_as_a_record(bank: Bank, cli: Command):
    state = bank.store.settings.state
    bank.pays("tx-0", 0, amount=80.0)
    answer = cli("explain", "fraud", "tx-0", state=state)
    assert answer.status == 0 and answer.out.startswith("The decision on tx-0 of ") and "policy" in answer.out
    record = json.loads(cli("explain", "fraud", "fraud/transactions/tx-0", "--json", state=state).out)
    assert record["text"] == answer.out.splitlines() and record["format"] == 1
    cli("explain", "fraud", "tx-9", state=state).said_one_line("has no decision on the event 'tx-9'")


@contextmanager
def served(state: Path, port: int) -> Iterator[psutil.Process]:
    command = [sys.executable, "-m", "uvicorn", "--factory", "reasoned_bank:application", "--port", str(port)]
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    env = environment(
        state, PYTHONPATH=path, MLPKG_USE_CASES="fraud = reasoned_bank:fraud", MLPKG_TRUST_LOOPBACK="true"
    )
    with open(state / "served.log", "ab") as log:
        process = subprocess.Popen([*command, "--log-level", "warning"], cwd=SUPPORT, env=env, stdout=log, stderr=log)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def followers(server: psutil.Process) -> list[psutil.Process]:
    return [p for p in server.children(recursive=True) if "mlpkg.serve.follower" in " ".join(p.cmdline())]


@pytest.mark.e2e
def test_a_service_explains_each_decision_once_within_seconds_though_the_process_is_killed(bank: Bank):
    store, port = bank.store, free_port()
    with served(store.settings.state, port) as server, Client(f"http://127.0.0.1:{port}", attempts=60) as client:
        assert client.ready()
        asked = {}
        for k in range(120):
            event = {
                "id": f"tx-{k}",
                "time": iso(now()),
                "customer_id": k % 3,
                "terminal_id": 7,
                "amount": 9.0 * (k % 20),
            }
            client.decide(event)
            if k % 30 == 5:
                asked[f"tx-{k}"] = client.explanation(f"tx-{k}")
            if k == 60:
                assert soon(lambda: followers(server))
                (process,) = followers(server)
                process.kill()
        ids = {f"tx-{k}" for k in range(120)}
        assert soon(lambda: {e.event for _, e in explanations("fraud", store)} == ids), "within seconds"
        assert Counter(e.id for e in store.read(streams=[reasons_of("fraud")])) == Counter(ids)
        answers = {id: client.explanation(id) for id in ids}
        assert {id: answers[id] for id in asked} == asked
        assert answers == {e.event: e for _, e in explanations("fraud", store)}
        assert client.explanation("tx-999") is None
    decided = {e.position: e.id for e in store.read(streams=[decisions_of("fraud")])}
    assert all(decided[entry.about or 0] == entry.id for entry in store.read(streams=[reasons_of("fraud")]))
    assert msgspec.json.encode(answers["tx-5"]) == msgspec.json.encode(
        explain_decision(reasoned_bank.fraud, "tx-5", store)
    )
