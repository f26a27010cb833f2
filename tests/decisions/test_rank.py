"""One event and its candidates: the order, the record of every alternative, and the same bits as each pair alone."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import handbook
import httpx
import jsonschema
import numpy as np
import pandas as pd
import pytest
from bank import booster, put_live
from command import Command
from offers import clicked, clicks, features, offers, policy, popular, shown, visits
from paths import SUPPORT
from ranking_shop import START, Shop, click
from serving import environment, free_port

import mlpkg as ml
from mlpkg import auth, lab, models
from mlpkg.client import AsyncClient, Client, Refused
from mlpkg.decisions import Decider, Decision, replay, request, verify
from mlpkg.errors import MlpkgError
from mlpkg.features import evaluate
from mlpkg.lab.rankings import rankings
from mlpkg.models import registry
from mlpkg.rollout import shadow
from mlpkg.rollout.shadow import features as shadow_features
from mlpkg.serve.app import Application
from mlpkg.settings import Settings
from mlpkg.times import DAY, HOUR, MINUTE, iso, now


@pytest.fixture(scope="module")
def shop_of_march(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The template of a shop in which it is March 2026."""
    made = Shop(tmp_path_factory.mktemp("march") / "shop")
    made.store.close()
    return made


@pytest.fixture
def shop(shop_of_march: Shop, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path / "shop", template=shop_of_march)
    with closing(made.store):
        yield made


def fields(decision: Decision) -> list[dict[str, Any]]:
    return [a.fields for a in decision.alternatives or ()]


def test_every_alternative_is_recorded_in_the_order_of_its_score(shop: Shop):
    body, decision = shop.ranks("v1")
    assert decision.alternatives
    scores: Any = [a.score for a in decision.alternatives]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) > 3
    assert sorted(f["item"] for f in fields(decision)) == sorted(c["item"] for c in body["candidates"])
    first = fields(decision)[0]
    assert (decision.score, decision.action) == (scores[0], f"item {first['item']}")
    assert (decision.keys["item"], decision.features["price"]) == (first["item"], first["price"])
    for a, b in zip(decision.alternatives, decision.alternatives[1:], strict=False):  # ties stay as they came
        if a.score == b.score:
            assert body["candidates"].index(a.fields) < body["candidates"].index(b.fields)
    stored = shop.store.entry("visits", "v1")
    assert json.loads(stored.body) | {"item": None, "price": None} == json.loads(stored.body), "no item was visited"


def test_each_pair_has_the_bits_that_it_has_alone(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    """Each alternative has the features and the score that the path of a single decision gives."""
    alone: list[list[tuple[float, bytes]]] = []

    def beside(features: Any, source: Any, row: Any, among: Any, unit: Any) -> Any:
        columns = decisions_evaluate(features, source, row, among, unit)
        pairs = []
        for i in range(len(among.fields)):
            filled = {name: int(codes[i]) for name, codes in among.codes.items()}
            codes: Any = [filled.get(c.name, code) for c, code in zip(source.columns, row.codes, strict=True)]
            values = evaluate(features, codes, row.time, unit.log_position, unit.event_position, unit.read)
            many = [float(column[i]) for column in columns.values()]
            assert np.array(values, np.float64).tobytes() == np.array(many).tobytes()
            pairs.append((shop.decider.model.predictor.score(values), json.dumps(among.fields[i])))  # type: ignore[union-attr]
        alone.append(pairs)
        return columns

    decisions_evaluate = request.evaluate_candidates
    monkeypatch.setattr(request, "evaluate_candidates", beside)
    for k in range(12):
        _, decision = shop.ranks(f"v{k}", shop.rng.choice([1, 2, 30]), shop.end + k * HOUR)
        recorded = {json.dumps(a.fields): a.score for a in decision.alternatives or ()}
        assert recorded == {name: score for score, name in alone[-1]}
    assert len(alone) == 12


def test_what_was_ranked_verifies_and_a_changed_score_is_found(shop: Shop):
    for k in range(10):
        shop.ranks(f"v{k}", moment=shop.end + k * HOUR)
        late = shop.end + k * HOUR - 2 * MINUTE  # comes between, and is not seen by the past
        shop.store.accept(clicks, click(1000 + k, shop.rng) | {"time": iso(late)}, arrived=shop.end + k * HOUR)
        shop.decider.decide(shop.visit(f"d{k}") | shop.candidates(1)[0], arrived=shop.end)
    result = verify(offers, shop.store)
    assert (result.decisions, result.mismatches) == (20, 0), result.differences
    shop.store.db.execute(
        "update log set body=json_set(body, '$.alternatives[7].score', 0.25) where id='v3' and body like '%alternatives%'"
    )
    result = verify(offers, shop.store)
    assert result.mismatches == 1 and [d.event for d in result.differences] == ["v3"]
    assert result.differences[0].what.startswith("score of item=")


def test_the_same_again_gets_the_recorded_answer_and_anything_else_a_conflict(shop: Shop):
    body, decision = shop.ranks("v1")
    size = shop.size
    assert shop.decider.rank(body, arrived=shop.end) == decision
    assert shop.decider.rank(body | {"candidates": body["candidates"][::-1]}, arrived=shop.end) == decision
    assert shop.decider.rank({k: v for k, v in body.items() if k != "candidates"}, arrived=shop.end) == decision
    assert shop.size == size
    others = [body["candidates"][1:], [*body["candidates"], {"item": 99, "price": 1.0}]]
    for other in [{"candidates": candidates} for candidates in others] + [{"user": "u99"}]:
        with pytest.raises(ml.Rejected, match="was used before") as refused:
            shop.decider.rank(body | other, arrived=shop.end)
        assert refused.value.status == 409
    shop.decider.decide(single := shop.visit("v2"), arrived=shop.end)
    with pytest.raises(ml.Rejected, match="without candidates"):
        shop.decider.rank(single, arrived=shop.end)
    assert shop.store.last_position() == size[0] + 2


@pytest.mark.parametrize("event", [None, 5, ["v1"]], ids=repr)
def test_what_is_no_event_is_rejected_with_candidates_too(shop: Shop, event: Any):
    for candidates in (None, shop.candidates(2)):
        with pytest.raises(ml.Rejected, match=f"is of type {type(event).__name__}, not an event; give a dict, or JSON"):
            shop.decider.rank(event, candidates, arrived=shop.end)
    with pytest.raises(MlpkgError, match="cannot be added to an event that is text"):
        shop.decider.rank('{"id": "v1"}', shop.candidates(2), arrived=shop.end)


def test_a_function_of_the_use_case_finds_candidates_where_none_are_given(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    decision = shop.decider.rank(shop.visit("v1"), arrived=shop.end)
    assert sorted(f["item"] for f in fields(decision)) == [c["item"] for c in popular(None)]
    size = shop.size
    monkeypatch.setattr(offers, "candidates", lambda event: [])
    with pytest.raises(ml.Rejected, match="nothing to rank"):
        shop.decider.rank(shop.visit("v3"), arrived=shop.end)
    assert shop.store.last_position() == size[0]


def unknown_items(event: Any) -> list[Any]:
    return [{"item": -1, "price": 1.0}]


def no_database(event: Any) -> list[Any]:
    raise OSError("the catalogue is away")


@pytest.mark.parametrize(
    "finder, detail",
    [(no_database, r"OSError: the catalogue is away"), (unknown_items, r"found itself.*candidates\.0\.item: -1")],
    ids=["raises", "refused"],
)
def test_the_fallback_decides_where_candidates_cannot_be_found(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, finder: Any, detail: str
):
    monkeypatch.setattr(offers, "candidates", finder)
    decision = shop.decider.rank(body := shop.visit("v1"), arrived=shop.end)
    assert (
        decision.fallback
        and decision.fallback["why"] == "candidates"
        and re.search(detail, decision.fallback["detail"])
    )
    assert (decision.action, decision.score, decision.alternatives) == ("as ever", None, [])
    size = shop.size
    monkeypatch.setattr(offers, "candidates", popular)
    assert shop.decider.rank(body, arrived=shop.end) == decision
    with pytest.raises(ml.Rejected, match="was used before without candidates"):
        shop.decider.rank({"id": "v1"}, shop.candidates(2), arrived=shop.end)
    assert shop.store.last_position() == size[0]
    result = verify(offers, shop.store)
    assert (result.mismatches, result.fallbacks) == (0, {"candidates": 1}), result.differences
    monkeypatch.setattr(offers, "candidates", finder)
    monkeypatch.setattr(offers, "fallback", None)
    with pytest.raises((OSError, MlpkgError), match=detail.removeprefix("OSError: ")):
        shop.decider.rank(shop.visit("v2"), arrived=shop.end)
    assert shop.store.last_position() == size[0]


def test_without_scores_the_order_is_the_one_given_and_the_record_says_why(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    def fails(self: Any, columns: Any) -> Any:
        raise ValueError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(type(shop.decider.model.predictor), "score_many", fails)  # type: ignore[union-attr]
        body, decision = shop.ranks("v1")
    assert decision.fallback == {"why": "score", "detail": "ValueError: no memory"}
    assert (decision.action, decision.score) == ("as ever", None) and fields(decision) == body["candidates"]
    assert {a.score for a in decision.alternatives or ()} == {None}
    assert decision.features["price"] == body["candidates"][0]["price"]
    result = verify(offers, shop.store)
    assert (result.mismatches, result.fallbacks) == (0, {"score": 1}), result.differences


def test_a_replay_ranks_again_what_was_ranked(shop: Shop, tmp_path: Path):
    old = {f"v{k}": shop.ranks(f"v{k}", moment=shop.end + k * HOUR)[1] for k in range(5)}
    done = replay(offers, shop.store, shop.end, shop.end + DAY, tmp_path / "again")
    with closing(ml.open_store(Settings(state=tmp_path / "again"))) as again:
        for id, decision in old.items():
            entry: Any = again.entry("decisions.offers", id)
            assert json.loads(entry.body)["alternatives"] == [
                {"fields": a.fields, "score": a.score} for a in decision.alternatives or ()
            ]
        assert done.decisions == 5 and verify(offers, again).mismatches == 0


def test_the_next_model_learns_from_what_was_shown(shop: Shop):
    """A training row has the features that its alternative was ranked by; another model scores the same rows."""
    for k in range(30):
        moment = shop.end + k * HOUR
        body, decision = shop.ranks(f"v{k}", 10, moment)
        for place, f in enumerate(fields(decision)[:3], 1):
            impression = {"id": f"v{k}-{place}", "time": iso(moment), "user": body["user"], "item": f["item"]}
            shop.store.accept(shown, impression | {"ranking": f"v{k}", "place": place}, arrived=moment)
            if shop.rng.random() < 0.5:
                shop.store.report(clicked, {"id": f"v{k}-{place}", "clicked": True}, arrived=moment + MINUTE)
    rows = rankings(iso(shop.end), use_case=offers, store=shop.store)
    assert len(rows) == 300
    again = rankings(iso(shop.end), model=shop.version, use_case=offers, store=shop.store)
    assert again["rescored"].tolist() == again["score"].tolist() == rows["score"].tolist()
    exposed = lab.events(shown, store=shop.store)[["ranking", "place", "item", "clicked"]]
    training = rows.merge(exposed, left_on=["id", "place", "item"], right_on=["ranking", "place", "item"])
    assert len(training) == 90
    version = put_live(offers, shop.store, shop.learn(training[features.names], training["clicked"].fillna(False)))
    assert shop.ranks("next", moment=shop.end + 2 * DAY)[1].model["version"] == version
    assert verify(offers, shop.store).mismatches == 0
    decision = lab.decision("v3", use_case=offers, store=shop.store)
    assert decision.alternatives["score"].tolist() == rows[rows["id"] == "v3"]["score"].tolist()
    assert "the first of 10 alternatives" in repr(decision)
    assert "user_n_7d" in repr(decision.explain("user_n_7d"))
    for call in (lambda: decision.explain("item_n_7d"), decision.by):
        with pytest.raises(MlpkgError, match=r"lab\.rankings"):
            call()
    span = iso(shop.end), iso(shop.end + DAY)
    compared = lab.compare(shop.version, version, *span, use_case=offers, store=shop.store)
    assert len(compared.rows) == 0 and compared.left_out["are rankings, see lab.rankings"] == 24


# Shadows

other_features = ml.FeatureSet(
    "offers",
    on=visits,
    item=clicks.by("item").agg(n=ml.count(over=["6h", "3d"]), dear=ml.max("price", over="3d")),
    pair=clicks.by("user", "item").agg(n=ml.count(over="9d")),
    rate=clicked.by("item", delay="1h").agg(clicked=ml.sum("clicked", over="7d")),
    price=ml.field("price"),
)


def shadowed(shop: Shop) -> str:
    """A model of other features that shadows from now on."""
    metadata: Any = {"metrics": {}, "lineage": {}, "policy": {}}
    state = shop.store.settings.state
    version = models.save(state, offers.name, booster(other_features), other_features, **metadata)
    registry.shadow(shop.store, models.find(state, offers.name, version), by="ann", why="to see")
    return version


@pytest.mark.parametrize("from_log", [False, True])
def test_a_ranking_is_shadowed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_log: bool):
    """Every alternative has the score that the log gives, also of a fallback, and where what the timelines hold was corrected since."""
    shop = Shop(tmp_path / "shop", START)
    with closing(shop.store):
        shop.ranks("before")
        version = shadowed(shop)
        shop.store.accept(visits, shop.visit("v12"), arrived=shop.end)  # is decided last
        for k in range(12):
            moment = shop.end + k * HOUR
            _, decision = shop.ranks(f"v{k}", shop.rng.choice([1, 2, 30]), moment)
            item = fields(decision)[0]["item"]
            impression = {
                "id": f"s{k}",
                "time": iso(moment),
                "user": "u1",
                "item": item,
                "ranking": f"v{k}",
                "place": 1,
            }
            shop.store.accept(shown, impression, arrived=moment)
            shop.store.report(clicked, {"id": f"s{k}", "clicked": True}, arrived=moment)
            shop.decider.decide(shop.visit(f"d{k}", moment) | shop.candidates(1)[0], arrived=moment)
            shop.store.accept(clicks, click(1000 + k, shop.rng) | {"time": iso(moment - MINUTE)}, arrived=moment)
        if from_log:
            shop.store.report(clicked, {"id": "s3", "clicked": False, "corrects": True}, arrived=moment)
        with monkeypatch.context() as patch:
            patch.setattr(shop.decider, "deadline_us", -1)
            late = shop.decider.rank({"id": "v12", "candidates": shop.candidates(20)}, arrived=shop.end + DAY)
            assert late.fallback and late.score is None
        computed, asked_log = shadow_features.features_from_log, []
        with monkeypatch.context() as patch:
            patch.setattr(shadow_features, "features_from_log", lambda *args: asked_log.append(True) or computed(*args))
            assert shadow.Follower(offers, shop.store).step() == 25
        assert bool(asked_log) == from_log
        scores = {s.event: s for _, s in shadow.scores(offers.name, shop.store)}
        assert scores.keys() == {f"{kind}{k}" for kind in "vd" for k in range(12)} | {"v12"}
        assert len({s.score for s in scores.values()}) > 3
        rows = rankings(model=version, use_case=offers, store=shop.store)
        for id, candidates in rows[rows["id"].str.startswith("v")].groupby("id"):
            candidates = candidates.iloc[np.argsort(-np.array(candidates["rescored"]), kind="stable")]
            ranked: Any = scores[str(id)].alternatives
            assert [(a.fields["item"], a.score) for a in ranked] == [
                *zip(candidates["item"], candidates["rescored"], strict=True)
            ]
            assert scores[str(id)].score == ranked[0].score
            assert scores[str(id)].action == policy(ranked[0].score, SimpleNamespace(**ranked[0].fields))
        (agreed,) = shadow.shadow_status(offers.name, shop.store)
        by_ranking: Any = [r for _, r in rows[rows["id"].str.match("v[0-9]$|v1[01]$")].groupby("id")]
        orders: Any = [(r["place"], r["rescored"].rank(ascending=False, method="first")) for r in by_ranking]
        assert (agreed["rankings"], agreed["compared"], agreed["failed"]) == (12, 25, 0)
        firsts = [a.to_numpy()[b.to_numpy() == 1] == 1 for a, b in orders]
        assert agreed["same_first_choice"] == pytest.approx(np.mean(firsts))
        assert agreed["rank_correlation"] == pytest.approx(np.nanmean([a.corr(b) for a, b in orders]))
        compared: Any = lab.compare_rankings("served", version, use_case=offers, store=shop.store)
        compared = compared[compared["id"] != "before"]  # which was decided before it shadowed
        assert len(compared) == 12 and compared["same_first"].mean() == pytest.approx(agreed["same_first_choice"])
        assert compared["rank_correlation"].mean() == pytest.approx(agreed["rank_correlation"])
        plain = [e.body for e, s in shadow.scores(offers.name, shop.store) if s.event.startswith("d")]
        assert len(plain) == 12 and not [body for body in plain if "alternatives" in body]
        result = shadow.verify_scores(offers, shop.store)
        assert (result.decisions, result.mismatches) == (25, 0), result.differences


FIRST, LAST = "$.alternatives[0]", "$.alternatives[19]"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("json_set(body, '$.alternatives[7].score', 0.25)", "score of item="),
        ("json_set(body, '$.alternatives[7].fields.item', 77)", "score of item="),
        ("json_set(body, '$.score', 0.25)", "score by"),
        ("json_remove(body, '$.alternatives[7]')", "score of item="),
        (f"json_set(body, '{FIRST}', body->'{LAST}', '{LAST}', body->'{FIRST}')", "place of item="),
        ("json_remove(body, '$.alternatives')", "score by"),
    ],
)  # fmt: skip
def test_a_number_of_a_shadowed_ranking_that_was_changed_is_found(shop: Shop, change: str, what: str):
    shadowed(shop)
    for k in range(5):
        shop.ranks(f"v{k}", moment=shop.end + k * HOUR)
    shadow.Follower(offers, shop.store).step()
    shop.store.db.execute(f"update log set body={change} where id like 'v3\x1f%'")
    assert shop.store.db.changes() == 1
    result = shadow.verify_scores(offers, shop.store)
    assert result.mismatches == 1 and {d.event for d in result.differences} == {"v3"}
    assert any(d.what.startswith(what) for d in result.differences), result.differences


def test_the_lab_shows_what_a_shadow_would_have_put_first(shop: Shop):
    version = shadowed(shop)
    _, decision = shop.ranks("v1")
    shop.decider.decide(shop.visit("d1") | shop.candidates(1)[0], arrived=shop.end)
    shadow.Follower(offers, shop.store).step()
    (scored,) = shadow.scores_about(offers.name, "v1", shop.store)
    ranked: Any = scored.alternatives
    place = [a.fields for a in ranked].index(fields(decision)[0]) + 1
    frame = lab.shadows(use_case=offers, store=shop.store).set_index("id")
    assert (frame.loc["v1", "score"], frame.loc["v1", "place"]) == (ranked[0].score, place)
    assert frame.loc["d1", "place"] is pd.NA
    explained = lab.decision("v1", use_case=offers, store=shop.store)
    assert explained.shadows.loc[version].to_dict() == {
        "score": scored.score, "action": scored.action, "failed": "", "place": place
    }  # fmt: skip
    assert f"what was first is its place {place}" in repr(explained)
    assert explained.alternatives[version].to_dict() == {
        here: next(a.score for a in ranked if a.fields == candidate)
        for here, candidate in enumerate(fields(decision), 1)
    }
    assert "place" not in lab.decision("d1", use_case=offers, store=shop.store).shadows


def test_a_backlog_of_long_rankings_is_scored_in_pieces(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    shadowed(shop)
    for k in range(10):
        shop.ranks(f"v{k}", 50, moment=shop.end + k * HOUR)
    monkeypatch.setattr("mlpkg.rollout.shadow.follower._PAGE", 5_000)
    follower, steps = shadow.Follower(offers, shop.store), []
    while n := follower.step():
        steps.append((n, follower.behind))
    assert sum(n for n, _ in steps) == 10 and len(steps) > 3
    assert [behind for _, behind in steps] == [True] * (len(steps) - 1) + [False]
    assert [s.event for _, s in shadow.scores(offers.name, shop.store)] == [f"v{k}" for k in range(10)]


def test_a_matrix_has_the_scores_of_its_rows(shop: Shop):
    predictor: Any = shop.decider.model and shop.decider.model.predictor
    rng = np.random.default_rng(0)
    rows = rng.choice([0.0, np.nan, 1.0, 5.5, 1e9, -3.0], (2_000, len(features.names)))
    codes = rng.integers(-(2**62), 2**62, 2_000)
    columns = {n: codes if n in features.categories else rows[:, i] for i, n in enumerate(features.names)}
    many = predictor.score_many(columns)
    singly = [predictor.score(row) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]
    assert np.array(singly).tobytes() == many.tobytes()


def test_an_event_that_was_sent_before_is_ranked_by_its_id(shop: Shop):
    shop.store.accept(visits, shop.visit("v1"), arrived=shop.end)
    candidates = shop.candidates(5)
    decision = shop.decider.rank({"id": "v1", "candidates": candidates}, arrived=shop.end)
    assert len(fields(decision)) == 5 and shop.decider.rank({"id": "v1"}, arrived=shop.end) == decision
    for wrong, words in (
        ({"id": "v2", "candidates": candidates}, "no event"),
        ({"id": "v1", "candidates": [7]}, "candidates.0"),
    ):
        with pytest.raises(ml.Rejected, match=words):
            shop.decider.rank(wrong, arrived=shop.end)
    with pytest.raises(ml.Rejected, match="candidates"):
        shop.decider.decide({"id": "v1", "candidates": candidates}, arrived=shop.end)


# Over HTTP


class Web:
    """The application in this process."""

    def __init__(self, app: Application):
        self.app = app

    def ask(
        self, method: str, path: str, body: Any = None, kind: str = "application/json", **more: str
    ) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as web:
                data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
                return await web.request(method, path, content=data, headers={"content-type": kind, **more})

        return asyncio.run(once())

    def rank(self, body: Any, kind: str = "application/json") -> httpx.Response:
        return self.ask("POST", "/v1/rank", body, kind)


@pytest.fixture(scope="module")
def shop_of_today(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The template of a shop in which it is today."""
    made = Shop(tmp_path_factory.mktemp("today") / "shop", now())
    made.store.close()
    return made


@pytest.fixture
def live(shop_of_today: Shop, tmp_path: Path) -> Iterator[Shop]:
    """A shop in which it is today."""
    made = Shop(tmp_path / "shop", template=shop_of_today)
    with closing(made.store):
        yield made


@pytest.fixture
def web(live: Shop) -> Iterator[Web]:
    app = Application(offers, live.store.settings)
    with closing(app):
        yield Web(app)


def test_a_ranking_is_answered_as_it_is_recorded_described_and_counted(live: Shop, web: Web):
    body = live.visit("v1") | {"candidates": live.candidates(20)}
    answer = web.rank(body)
    assert answer.status_code == 200, answer.text
    assert web.rank(body).content == answer.content == web.ask("GET", "/v1/decisions/v1").content
    document = web.ask("GET", "/v1/openapi.json").json()
    operation = document["paths"]["/v1/rank"]["post"]
    assert set(operation["requestBody"]["content"]) == {"application/json"}
    for schema, instance in (("Decision", answer.json()), ("Ranking", body)):
        jsonschema.validate(instance, {"$ref": f"#/components/schemas/{schema}", **document})
    assert 'mlpkg_requests_total{route="/v1/rank",status="200"} 2' in (text := web.ask("GET", "/metrics").text)
    assert 'action="rank"' in text and "item " not in text


def test_a_ranking_is_told_to_its_own_caller_alone(live: Shop, web: Web):
    """By its id, with its candidates and with others."""
    body = live.visit("v1") | {"candidates": live.candidates(20)}
    own, other = (auth.create(live.store, "application", name=name, by="a test")[0] for name in ("shop", "spy"))
    first = web.ask("POST", "/v1/rank", body, authorization=f"Bearer {own}")
    assert first.status_code == 200 and first.json()["caller"] == "shop"
    for again in (body, {"id": "v1"}):
        assert web.ask("POST", "/v1/rank", again, authorization=f"Bearer {own}").content == first.content
        refused = web.ask("POST", "/v1/rank", again, authorization=f"Bearer {other}")
        assert refused.status_code == 403 and not {"alternatives", "score"} & refused.json().keys()
        seen = next(auth.all_accesses(live.store))
        assert (seen["name"], seen["path"], seen["allowed"]) == ("spy", "/v1/rank?id=v1", False)


BAD = {
    "ten thousand": lambda c: [{"item": i, "price": 1.0} for i in range(10_000)],
    "one too many": lambda c: [{"item": i, "price": 1.0} for i in range(201)],
    "none": lambda c: [],
    "twice": lambda c: [*c, c[0]],
    "a text for a number": lambda c: [*c, {"item": "7", "price": 1.0}],
    "a fraction": lambda c: [*c, {"item": 7.5, "price": 1.0}],
    "true": lambda c: [*c, {"item": True, "price": 1.0}],
    "null": lambda c: [*c, {"item": None, "price": 1.0}],
    "NaN": lambda c: [*c, {"item": 70, "price": float("nan")}],
    "infinity": lambda c: [*c, {"item": 70, "price": float("inf")}],
    "below its bound": lambda c: [*c, {"item": -1, "price": 1.0}],
    "beyond 64 bits": lambda c: [*c, {"item": 2**70, "price": 1.0}],
    "beyond 53 bits": lambda c: [*c, {"item": 2**60, "price": 1.0}],
    "a huge price": lambda c: [*c, {"item": 70, "price": 1e300}],
    "a missing field": lambda c: [*c, {"item": 70}],
    "an unknown field": lambda c: [*c, {"item": 70, "price": 1.0, "colour": "red"}],
    "a value": lambda c: [*c, 70],
    "a list": lambda c: [*c, [70, 1.0]],
    "an object": lambda c: c[0],
    "a string": lambda c: "17",
}


@pytest.mark.parametrize("what", BAD)
def test_bad_candidates_are_refused_and_nothing_is_stored(live: Shop, web: Web, what: str):
    position = live.store.last_position()
    body = live.visit("bad") | {"candidates": BAD[what](live.candidates(3))}
    answer = web.rank(body)
    problem = answer.json()
    assert answer.status_code == 422 and problem["field"].startswith("Visit.candidates"), problem
    assert problem["event"] == "bad" and len(answer.content) < 3_000
    if len(body["candidates"]) == 4 and isinstance(body["candidates"], list):
        assert problem["field"].startswith("Visit.candidates.3"), problem
    assert live.store.last_position() == position and live.store.entry("visits", "bad") is None
    assert web.rank(live.visit("good")).status_code == 200


def test_what_is_no_ranking_is_refused(live: Shop, web: Web):
    position, candidates = live.store.last_position(), live.candidates(2)
    body = live.visit("bad") | {"candidates": candidates}
    text = json.dumps(body)
    twice = text.replace('"candidates":', '"candidates": [], "candidates":')
    inside = text.replace('"price":', '"price": 1.0, "price":', 1)
    for sent, status, field in [
        (twice.encode(), 422, "Visit.candidates"),
        (inside.encode(), 422, "Visit.price"),
        (json.dumps(body | {"item": 3}).encode(), 422, "Visit.item"),
        (json.dumps({k: v for k, v in body.items() if k != "user"}).encode(), 422, "Visit.user"),
        (text[:-5].encode(), 400, "Visit"),
        (b"[" * 50_000, 400, "Visit"),
        (json.dumps([body]).encode(), 422, "Visit"),
    ]:
        answer = web.rank(sent)
        assert (answer.status_code, answer.json()["field"]) == (status, field), answer.text
    assert web.rank(text.encode(), "application/x-ndjson").status_code == 415
    assert web.ask("GET", "/v1/rank").status_code == 405
    assert live.store.last_position() == position


def test_a_use_case_that_does_not_rank_says_what_it_would_take(tmp_path: Path):
    with closing(Application(handbook.fraud, Settings(state=tmp_path / "bank", trust_loopback=True))) as app:
        web = Web(app)
        answer = web.rank({"id": "x"})
        assert answer.status_code == 404 and "rank='...'" in answer.json()["detail"]
        assert "/v1/rank" not in web.ask("GET", "/v1/openapi.json").json()["paths"]
    with pytest.raises(MlpkgError, match="does not rank"):
        Decider(handbook.fraud, ml.open_store(Settings(state=tmp_path / "bank"))).rank({"id": "x"})


@pytest.mark.parametrize(
    ("rank", "words"),
    [("user", "has to be optional"), ("itme", "did you mean 'item'"), ((), "name the fields"), (("item",) * 2, "each once")],
)  # fmt: skip
def test_a_use_case_that_cannot_rank_so_is_refused_by_name(rank: Any, words: str):
    with pytest.raises(ValueError, match=words):
        ml.UseCase("wrong", features, policy=policy, rank=rank)
    with pytest.raises(ValueError, match="which field they fill"):
        ml.UseCase("wrong", features, policy=policy, candidates=popular)


# As a server of its own


@contextmanager
def served(state: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "uvicorn", "--factory", "offers:application", "--port", str(port)]
    env = environment(state, PYTHONPATH=os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")]))
    with open(state / "served.log", "ab") as log:
        process = subprocess.Popen([*command, "--log-level", "warning"], cwd=SUPPORT, env=env, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_server_that_is_killed_keeps_the_rankings_it_acknowledged_whole(live: Shop):
    """Both clients get the same answers; after SIGKILL amid rankings each acknowledged one is there, and none is half there."""
    state, port = live.store.settings.state, free_port()
    bodies = [live.visit(f"k{k}") for k in range(150)]
    candidate_lists = [live.candidates(30) for _ in bodies]
    answers: list[Decision] = []
    with Client(f"http://127.0.0.1:{port}", attempts=60) as client:

        def ask() -> None:
            for body, candidates in zip(bodies, candidate_lists, strict=True):
                answers.append(client.rank(body, candidates))

        load = threading.Thread(target=ask)
        with served(state, port) as process:
            assert client.ready()
            load.start()
            while len(answers) < 50:
                assert load.is_alive()
            process.send_signal(signal.SIGKILL)
            process.wait()
        with served(state, port):
            load.join()

            async def again() -> Decision:
                async with AsyncClient(f"http://127.0.0.1:{port}") as other:
                    return await other.rank(bodies[7], candidate_lists[7])

            assert asyncio.run(again()) == answers[7] == client.decision("k7")
            with pytest.raises(Refused, match="other candidates") as refused:
                client.rank(bodies[7], candidate_lists[8])
            assert refused.value.status == 409
            assert len(client.rank(live.visit("found")).alternatives or ()) == len(popular(None))
    assert [d.event for d in answers] == [body["id"] for body in bodies]
    recorded = {e.id: e.body for e in live.store.read(streams=["decisions.offers"])}
    events = {e.id for e in live.store.read(streams=["visits"]) if not e.id.startswith("h")}
    assert recorded.keys() == events == {*(d.event for d in answers), "found"}
    result = verify(offers, live.store)
    assert (result.decisions, result.mismatches) == (151, 0), result.differences


def test_the_command_line_ranks_as_a_service_does(
    tmp_path: Path, shop_of_march: Shop, cli: Command, monkeypatch: pytest.MonkeyPatch
):
    """With the candidates of the event, of the option, or of the use case; and what is refused is refused in one line."""
    state = tmp_path / "shop"
    with closing(Shop(state, template=shop_of_march).store):
        pass
    monkeypatch.setenv("MLPKG_USE_CASES", "offers = offers:offers")
    body = {"id": "r1", "time": iso(START), "user": "u1", "weekend": False}
    items = [{"item": 3, "price": 12.5}, {"item": 4, "price": 7.0}]
    at = ("--arrived", iso(START))
    ranked = cli("rank", "offers", json.dumps(body), "--candidates", json.dumps(items), *at, "--json", state=state).json
    assert sorted(a["fields"]["item"] for a in ranked["alternatives"]) == [3, 4]
    again = cli("rank", "offers", json.dumps(body | {"candidates": items}), *at, "--json", state=state).json
    assert again == ranked, "the recorded one"
    own = cli("rank", "offers", json.dumps(body | {"id": "r2"}), *at, state=state)
    assert own.status == 0 and len(own.out.splitlines()) == 1 + len(popular(None)), own
    refused = cli("rank", "offers", json.dumps(body | {"id": "r3"}), "--candidates", "[3, 3]", *at, state=state)
    assert refused.said_one_line("candidates")
    both = json.dumps(body | {"id": "r3", "candidates": items})
    assert cli("rank", "offers", both, "--candidates", "[]", *at, state=state).said_one_line("has candidates already")
