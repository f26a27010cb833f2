"""Models that shadow score what others decide, off the path of the answers: each decision once, to the bit as the log has it."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import handbook
import psutil
import pytest
from bank import START, Bank, booster, put_live
from command import Command
from serving import CUSTOMERS, TERMINALS, Client, Packaged, Server, mlpkg, payment, serving
from swap_sets import SETS
from waiting import soon

import mlpkg as ml
from mlpkg import lab, models
from mlpkg.examples.fraud.features import transactions
from mlpkg.examples.fraud.policy import fraud
from mlpkg.models import Model, registry
from mlpkg.rollout import Follower, shadow
from mlpkg.rollout.shadow import features as shadow_features
from mlpkg.settings import Settings
from mlpkg.store import Store, decisions_of, scores_of
from mlpkg.times import DAY, HOUR, iso, now

pytestmark = pytest.mark.e2e
KILLS = 2


def save(state: Path, features: ml.FeatureSet, **metrics: float) -> Model:
    version = models.save(state, "fraud", booster(features), features, metrics=metrics, lineage={}, policy={})
    return models.find(state, "fraud", version)


def follows(process: psutil.Process) -> bool:
    """Whether it is alive, and the one that scores."""
    try:
        return "mlpkg.serve.follower" in process.cmdline()
    except psutil.Error:
        return False


# In a service


@dataclass
class Shadowed:
    """A service in which three models shadowed while clients paid and the process that scores was killed."""

    server: Server
    store: Store
    versions: list[str]
    answers: list[dict] = field(default_factory=list)
    killed: int = 0
    idle: bool = False  # whether there was no such process before a model shadowed

    def scores_since(self, position: int) -> int:
        """How many scores of shadows the log has after a position."""
        return sum(1 for _ in self.store.read(position, streams=[scores_of("fraud")]))

    @property
    def followers(self) -> list[psutil.Process]:
        return [p for p in self.server.family() if follows(p)]

    def gauge(self, name: str) -> float:
        with closing(Client(self.server.port)) as client:
            lines = client.ask("GET", "/metrics").body.decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"mlpkg_{name} "))


def pay(run: Shadowed, own: int, done: threading.Event) -> None:
    with closing(Client(run.server.port)) as client:
        for k in count():
            if done.wait(
                0.02
            ):  # each payment is scored three times and verified, so as fast as can be would be too many
                return
            pair = (own * 7919 + k * 31) % (CUSTOMERS * TERMINALS)
            body = payment(
                f"tx-{own}-{k}", customer_id=pair % CUSTOMERS, terminal_id=pair % TERMINALS, amount=0.01 * pair
            )
            if k % 5 == 4:  # a payment that arrives late: later ones are in the timelines already
                body["time"] = iso(now() - HOUR)
            answer = client.ask("POST", "/v1/decide", body)
            assert answer.status == 200
            run.answers.append(answer.json)
            if k % 50 == 20:
                assert client.ask("POST", "/v1/outcomes/fraud", {"id": body["id"], "fraud": True}).status == 200


@pytest.fixture(scope="module")
def shadowed(made: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shadowed]:
    folder = tmp_path_factory.mktemp("shadowed")
    state = made.state(folder / "state")
    with serving(made.bento, state, folder / "log") as server, closing(ml.open_store(Settings(state=state))) as store:
        trained = [save(state, ml.FeatureSet("fraud", on=transactions, **SETS[k])) for k in (1, 3, 4)]  # type: ignore[arg-type]
        run, done = Shadowed(server, store, [m.version for m in trained]), threading.Event()
        clients = [threading.Thread(target=pay, args=(run, own, done)) for own in range(3)]
        for thread in clients:
            thread.start()
        try:
            assert soon(lambda: len(run.answers) > 200)
            run.idle = not run.followers
            for model in trained:
                registry.shadow(store, model, by="a test", why="to see")
            for _ in range(KILLS):
                position = store.last_position()
                assert soon(lambda: run.scores_since(position) > 50, 120), server.output  # noqa: B023
                for process in run.followers:
                    process.kill()
                    process.wait(5)
                    run.killed += 1
            answered = len(run.answers)
            assert soon(lambda: len(run.answers) > answered + 300, 120)
        finally:
            done.set()
            for thread in clients:
                thread.join()
        yield run


def test_every_decision_is_scored_once_by_each_shadow(shadowed: Shadowed):
    """Decisions made while the scoring process was dead are scored, too."""
    store = shadowed.store
    begun = max(c["position"] for c in store.promotions("fraud"))
    first = min(c["position"] for c in store.promotions("fraud") if c["change"] == "shadow")
    assert shadowed.idle and shadowed.killed >= KILLS
    assert soon(lambda: shadow.follower_lag("fraud", store) == (3, 0.0), 120), shadowed.server.output
    decided = {e.position: e.id for e in store.read(first, streams=[decisions_of("fraud")])}
    scored = [(e.about, s.event, s.model) for e, s in shadow.scores("fraud", store)]
    assert max(Counter(scored).values()) == 1
    assert all(decided[about] == event for about, event, _ in scored if about)
    for version in shadowed.versions:
        of_version = {about for about, _, model in scored if model == version}
        assert {p for p in decided if p > begun} <= of_version <= decided.keys()
    assert not [s.failed for _, s in shadow.scores("fraud", store) if s.failed]


def test_what_shadows_say_is_to_the_bit_what_the_log_gives(shadowed: Shadowed):
    assert soon(lambda: shadow.follower_lag("fraud", shadowed.store)[1] == 0)
    result = mlpkg("verify", "fraud", state=shadowed.server.state)
    assert (result["mismatches"], result["shadows"]["mismatches"]) == (0, 0), result
    assert result["shadows"]["models"].keys() == set(shadowed.versions)
    scores = {(s.event, s.model): s for _, s in shadow.scores("fraud", shadowed.store)}
    first, second = shadowed.versions[:2]
    start, end = iso(now() - DAY), iso(now() + DAY)
    compared = lab.compare(first, second, start, end, store=shadowed.store, use_case=fraud).rows
    for side, version in (("a", first), ("b", second)):
        rescored = zip(compared["id"], compared[f"score_{side}"], compared[f"action_{side}"], strict=True)
        pairs = [(scores[id, version], score, action) for id, score, action in rescored if (id, version) in scores]
        assert len(pairs) == sum(model == version for _, model in scores) > 300
        assert all((s.score, s.action) == (score, action) for s, score, action in pairs)


def test_the_decisions_themselves_are_those_that_were_answered(shadowed: Shadowed):
    for answer in shadowed.answers[-200:]:
        entry = shadowed.store.entry("decisions.fraud", answer["event"])
        assert entry and json.loads(entry.body) == answer


def test_what_shadows_and_how_far_behind_is_told(shadowed: Shadowed):
    assert soon(lambda: (shadowed.gauge("shadows"), shadowed.gauge("shadow_lag_seconds")) == (3, 0))
    with closing(Client(shadowed.server.port)) as client:
        models = client.ask("GET", "/v1/models").json["models"]
        catalog = client.ask("GET", "/v1/catalog").json[0]["models"]
    for listed in (models, catalog):
        assert {m["version"] for m in listed if m["shadows"]} == set(shadowed.versions)


def test_another_process_begins_where_one_was_killed_and_the_last_one_ends_with_its_worker(shadowed: Shadowed):
    """It stands last: no shadow is left, and then no service."""
    (process,) = shadowed.followers
    assert process.nice() > 0
    for version in shadowed.versions[:2]:
        registry.unshadow(shadowed.store, "fraud", version, by="a test", why="seen enough")
    registry.promote(shadowed.store, models.find(shadowed.server.state, "fraud", shadowed.versions[2]), by="a", why="b")
    assert soon(lambda: not shadowed.followers), "nothing shadows any more"
    registry.shadow(
        shadowed.store, models.find(shadowed.server.state, "fraud", shadowed.versions[0]), by="a", why="again"
    )
    assert soon(lambda: shadowed.followers)
    (process,) = shadowed.followers
    worker = process.parent()
    assert worker
    worker.kill()
    assert soon(lambda: not follows(process))
    assert "Traceback" not in shadowed.server.output, shadowed.server.output


# In this process


def test_a_shadow_says_nothing_of_what_was_decided_before_it_began_or_after_it_ended(bank: Bank, cli: Command):
    state = bank.store.settings.state
    model = save(state, handbook.features, n=2.0)
    bank.pays("before", 0)
    assert cli("shadow", "fraud", model.version, "--why", "to see", "--by", "ann", state=state).out.endswith(
        "shadows\n"
    )
    bank.pays("during", 1)
    cli("shadow", "fraud", model.version, "--why", "once more", state=state).said_one_line("shadows already")
    assert f"~ {model.version}" in cli("models", "fraud", state=state).out
    assert cli("shadow", "fraud", model.version, "--stop", "--why", "seen", state=state).status == 0
    bank.pays("after", 2)
    cli("shadow", "fraud", model.version, "--stop", "--why", "seen", state=state).said_one_line("does not shadow")
    cli("shadow", "fraud", bank.version, "--why", "to see", state=state).said_one_line("is active already")
    assert cli("follow", "fraud", state=state).out == "nothing is left to do\n"
    assert [s.event for _, s in shadow.scores("fraud", bank.store)] == ["during"]
    assert [c["change"] for c in bank.store.promotions("fraud")] == ["promote", "shadow", "unshadow"]
    assert bank.store.active_version("fraud") == bank.version
    answer = cli("verify", "fraud", state=state)
    assert answer.status == 0 and "1 scores by 1 that shadowed, 0 mismatches" in answer.out


def test_the_status_says_how_far_shadows_agree_with_what_was_decided(bank: Bank, cli: Command):
    """Of the latest scores of those that shadow now; what was decided before is not compared."""
    state = bank.store.settings.state
    model, other = (save(state, handbook.features, n=n) for n in (2.0, 3.0))
    bank.pays("tx-0", 0)
    for version in (model, other):
        registry.shadow(bank.store, version, by="ann", why="to see")
    made = {f"tx-{k}": bank.pays(f"tx-{k}", k, amount=20.0 * k) for k in range(1, 30)}
    Follower(handbook.fraud, bank.store).step()
    registry.unshadow(bank.store, "fraud", other.version, by="ann", why="seen")
    (agreed,) = cli("rollout", "status", "fraud", "--json", state=state).json["shadows"]
    scored = {s.event: s for _, s in shadow.scores("fraud", bank.store) if s.model == model.version}
    differences = [abs(scored[id].score - made[id].score) for id in made]  # type: ignore[operator]
    changed = sum(scored[id].action != made[id].action for id in made)
    assert (agreed["version"], agreed["compared"], agreed["failed"]) == (model.version, 29, 0)
    assert agreed["score_difference"] == pytest.approx(sum(differences) / 29)
    assert agreed["same_action"] == pytest.approx(1 - changed / 29) and sum(agreed["change"].values()) == changed
    assert f"{model.version}  shadow: 29 scores, 0 failed" in cli("rollout", "status", "fraud", state=state).out


def test_the_lab_shows_what_shadows_said_beside_what_was_served(bank: Bank):
    model = save(bank.store.settings.state, handbook.features, n=2.0)
    bank.pays("tx-0", 0)
    registry.shadow(bank.store, model, by="ann", why="to see")
    made = bank.pays("tx-1", 1, amount=250.0)
    Follower(handbook.fraud, bank.store).step()
    ((_, record),) = shadow.scores("fraud", bank.store)
    score = record.score
    frame = lab.shadows(use_case=handbook.fraud, store=bank.store)
    assert frame[["id", "model", "score"]].values.tolist() == [["tx-1", model.version, score]]
    assert (frame["served_score"].item(), frame["served_action"].item()) == (made.score, made.action)
    dossier = lab.decision("tx-1", use_case=handbook.fraud, store=bank.store)
    assert dossier.shadows["score"].to_dict() == {model.version: score}
    assert f"shadows: {model.version}: {made.action}, at a score of" in repr(dossier)
    assert "shadows" not in repr(lab.decision("tx-0", use_case=handbook.fraud, store=bank.store))


def test_a_score_that_was_changed_is_named(bank: Bank, cli: Command):
    registry.shadow(bank.store, save(bank.store.settings.state, handbook.features, n=2.0), by="ann", why="to see")
    bank.pays("tx-1", 0)
    assert Follower(handbook.fraud, bank.store).step() == 1
    bank.store.db.execute("update log set body=json_set(body, '$.score', 0.5) where body like '%\"failed\"%'")
    answer = cli("verify", "fraud", state=bank.store.settings.state)
    assert answer.status == 1 and "tx-1: score by" in answer.out and "0.5" in answer.out


def test_a_promoted_or_retired_model_shadows_no_more_and_may_again(bank: Bank):
    state = bank.store.settings.state
    first, second = save(state, handbook.features, n=2.0), save(state, handbook.features, n=3.0)
    for model in (first, second):
        registry.shadow(bank.store, model, by="ann", why="to see")
    registry.promote(bank.store, first, by="ann", why="better")
    registry.retire(bank.store, "fraud", second.version, by="ann", why="worse")
    assert registry.shadow_versions(bank.store.promotions("fraud")) == []
    assert registry.rollback(bank.store, "fraud", by="ann", why="not that good") == bank.version
    registry.shadow(bank.store, first, by="ann", why="another look")
    assert registry.shadow_versions(bank.store.promotions("fraud")) == [first.version]
    with pytest.raises(ml.MlpkgError, match="was retired by ann"):
        registry.shadow(bank.store, second, by="ann", why="another look")


def test_a_shadow_that_cannot_score_says_so_and_the_others_go_on(bank: Bank):
    state = bank.store.settings.state
    good, bad = save(state, handbook.features, n=2.0), save(state, handbook.features, n=3.0)
    for model in (good, bad):
        registry.shadow(bank.store, model, by="ann", why="to see")
    (bad.folder / "model.txt").unlink()
    bank.pays("tx-1", 0)
    follower = Follower(handbook.fraud, bank.store)
    assert (follower.step(), follower.step()) == (1, 0)
    scores = {s.model: s for _, s in shadow.scores("fraud", bank.store)}
    assert scores[good.version].score is not None and scores[good.version].failed is None
    assert scores[bad.version].score is None and "model.txt is missing" in str(scores[bad.version].failed)


@pytest.mark.parametrize("corrected", [False, True])
def test_what_was_corrected_since_is_seen_as_it_was_then(
    early_bank: Bank, monkeypatch: pytest.MonkeyPatch, corrected: bool
):
    """The timelines hold what is said now; where that is something else, a shadow is asked about what the log said then."""
    store, state = early_bank.store, early_bank.store.settings.state
    metadata = {"metrics": {"n": 2.0}, "lineage": {}, "policy": {}}
    version = models.save(state, "early", booster(handbook.early_features), handbook.early_features, **metadata)
    registry.shadow(store, models.find(state, "early", version), by="ann", why="to see")
    begun, made = now() - 9 * DAY, {}
    for k in range(8):
        moment = begun + k * DAY
        body = early_bank.payment(f"tx-{k}", 0) | {"time": iso(moment)}
        made[f"tx-{k}"] = early_bank.decider.decide(body, arrived=moment)
        store.report(handbook.frauds, {"id": f"tx-{k}", "fraud": True}, arrived=moment + DAY // 2)
    if corrected:
        for k in range(6):
            correction = {"id": f"tx-{k}", "fraud": False, "corrects": True}
            store.report(handbook.frauds, correction, arrived=begun + 8 * DAY)
    from_log: list[bool] = []
    computed = shadow_features.features_from_log
    monkeypatch.setattr(shadow_features, "features_from_log", lambda *args: from_log.append(True) or computed(*args))
    assert Follower(handbook.early, store).step() == 8
    assert bool(from_log) == corrected
    scores = {s.event: s.score for _, s in shadow.scores("early", store)}
    assert scores == {id: decision.score for id, decision in made.items()}, "it is the same model"
    assert made["tx-7"].features["known_risk_30d"] == 1.0
    assert shadow.verify_scores(handbook.early, store).mismatches == 0


def test_timelines_hold_what_an_old_decision_saw(bank: Bank, monkeypatch: pytest.MonkeyPatch):
    """These payments are older than anything that may still be decided today, and the log is not asked."""
    registry.shadow(bank.store, save(bank.store.settings.state, handbook.features, n=2.0), by="ann", why="to see")
    made = [bank.pays(f"tx-{k}", k / 24) for k in range(5)]
    monkeypatch.setattr(shadow_features, "features_from_log", None)
    Follower(handbook.fraud, bank.store).step()
    assert [s.score for _, s in shadow.scores("fraud", bank.store)] == [d.score for d in made]


def test_an_event_that_was_decided_by_the_fallback_is_scored_too(bank: Bank):
    careful = ml.UseCase("fraud", handbook.features, policy=handbook.policy, fallback="review", deadline="1us")
    registry.shadow(bank.store, save(bank.store.settings.state, handbook.features, n=2.0), by="a", why="b")
    decided = ml.decisions.Decider(careful, bank.store).decide(bank.payment("tx-1", 0), arrived=START)
    Follower(careful, bank.store).step()
    ((_, record),) = shadow.scores("fraud", bank.store)
    assert decided.score is None and record.score is not None and record.action in ("approve", "review", "decline")


def test_two_that_follow_at_once_score_each_decision_once(bank: Bank):
    registry.shadow(bank.store, save(bank.store.settings.state, handbook.features, n=2.0), by="a", why="b")
    other = ml.open_store(bank.store.settings)
    with closing(other):
        both = [Follower(handbook.fraud, bank.store), Follower(handbook.fraud, other)]
        for k in range(200):
            bank.pays(f"tx-{k}", k / 24)
        threads = [threading.Thread(target=f.step) for f in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [s.event for _, s in shadow.scores("fraud", bank.store)] == [f"tx-{k}" for k in range(200)]
    put_live(handbook.fraud, bank.store, n=9.0)
