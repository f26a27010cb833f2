"""How what is active changes, and what is done where no model can be asked."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import handbook
import pytest
from bank import START, Bank, booster, put_live
from command import Command
from handbook import features, fraud

import mlpkg as ml
from mlpkg import lab, models
from mlpkg.decisions import Decider, UseCase, verify
from mlpkg.errors import MlpkgError
from mlpkg.lab.reports import report, report_text
from mlpkg.settings import Settings
from mlpkg.store import Store, open_store
from mlpkg.times import instant, iso


def saved(store: Store, **metrics: float) -> str:
    """A model that is not active."""
    state = store.settings.state
    return models.save(state, fraud.name, booster(features), features, metrics=metrics, lineage={}, policy={})


def test_what_is_rolled_back_twice_is_two_models_back(bank: Bank, cli: Command):
    state = bank.store.settings.state
    second, third = put_live(fraud, bank.store, n=2.0), put_live(fraud, bank.store, n=3.0)
    assert bank.pays("tx-1", 0).model["version"] == third
    for version in (second, bank.version):
        answer = cli("rollback", "fraud", "--why", "too many complaints", "--by", "ann", state=state)
        assert (answer.status, answer.out) == (0, f"{version} is active\n")
        assert bank.pays(f"tx-{version}", 1).model["version"] == version, "by the next decision of another process"
    cli("rollback", "fraud", "--why", "still", state=state).said_one_line("no other model of 'fraud' was active before")
    assert bank.store.active_version("fraud") == bank.version
    changes = cli("models", "fraud", "--changes", "--json", state=state).json
    assert [(c["change"], c["version"]) for c in changes[-2:]] == [("rollback", second), ("rollback", bank.version)]
    assert {(c["by"], c["why"], c["at"][:2]) for c in changes[-2:]} == {("ann", "too many complaints", "20")}
    assert [e.source for e in bank.store.read() if e.source.startswith("promotions")] == ["promotions.fraud"] * 5


def test_a_retired_model_is_not_live_and_never_will_be(bank: Bank, cli: Command):
    state = bank.store.settings.state
    other = saved(bank.store, n=2.0)
    cli("retire", "fraud", bank.version, "--why", "old", state=state).said_one_line("is active", "--successor")
    answer = cli("retire", "fraud", bank.version, "--why", "old", "--successor", other, "--by", "ann", state=state)
    assert (answer.status, bank.store.active_version("fraud")) == (0, other)
    cli("promote", "fraud", bank.version, state=state).said_one_line("was retired by ann: old")
    cli("rollback", "fraud", "--why", "back", state=state).said_one_line("no other model")
    cli("retire", "fraud", bank.version, "--why", "again", state=state).said_one_line("was retired by ann")
    cli("retire", "fraud", "nonsense", "--why", "old", state=state).said_one_line("has no model nonsense")
    listed = cli("models", "fraud", "--json", state=state).json
    assert {m["version"]: m["retired"] for m in listed} == {bank.version: True, other: False}
    assert bank.pays("tx-1", 0).model["version"] == other


def test_a_rollback_passes_over_what_was_retired(bank: Bank, cli: Command):
    state = bank.store.settings.state
    second, _ = put_live(fraud, bank.store, n=2.0), put_live(fraud, bank.store, n=3.0)
    assert cli("retire", "fraud", second, "--why", "wrong labels", state=state).status == 0
    assert cli("rollback", "fraud", "--why", "slow", state=state).out == f"{bank.version} is active\n"


def test_a_model_that_cannot_decide_is_refused_and_the_last_good_one_stays(
    bank: Bank, monkeypatch: pytest.MonkeyPatch, cli: Command
):
    bank.pays("tx-1", 0)
    state, version = bank.store.settings.state, saved(bank.store, n=2.0)
    with monkeypatch.context() as patch:
        patch.setattr(models.LightGBM, "score", lambda self, row: float("nan"))
        cli("promote", "fraud", version, state=state).said_one_line("cannot decide", "nan")
    with monkeypatch.context() as patch:
        patch.setattr("mlpkg.models.smoke_test.evaluate", lambda *args: 1 / 0)
        cli("promote", "fraud", version, state=state).said_one_line("cannot decide: ZeroDivisionError")
    path = models.find(state, "fraud", version).folder / "model.txt"
    path.write_text(path.read_text() + " ")
    cli("promote", "fraud", version, state=state).said_one_line("model.txt is not the file that was saved")
    assert bank.store.active_version("fraud") == bank.version
    assert bank.pays("tx-2", 1).model["version"] == bank.version


def test_a_rollback_to_a_damaged_model_is_refused(bank: Bank, cli: Command):
    version = put_live(fraud, bank.store, n=2.0)
    (models.find(bank.store.settings.state, "fraud", bank.version).folder / "model.txt").unlink()
    answer = cli("rollback", "fraud", "--why", "slow", state=bank.store.settings.state)
    assert answer.said_one_line("model.txt is missing")
    assert bank.store.active_version("fraud") == version


careful = UseCase("fraud", features, policy=handbook.policy, fallback="review")


@pytest.fixture
def careful_bank(tmp_path: Path) -> Iterator[Bank]:
    made = Bank(careful, tmp_path / "bank")
    with contextlib.closing(made.store):
        yield made


def broken(*args: Any) -> Any:
    raise RuntimeError("a bug")


def test_without_a_model_the_fallback_decides_and_says_so(tmp_path: Path):
    with contextlib.closing(ml.open_store(Settings(state=tmp_path))) as store:
        decider = Decider(careful, store)
        body = {"id": "tx-1", "time": "2018-04-01T00:00:00Z", "customer_id": 1, "terminal_id": 7, "amount": 10.0}
        made = decider.decide(body, arrived=START)
        assert (made.action, made.score, made.features, made.model) == ("review", None, {}, {})
        assert made.fallback and made.fallback["why"] == "model" and "no model is active" in made.fallback["detail"]
        assert made.keys == {"customer_id": 1, "terminal_id": 7} and made.policy in store.policies("fraud")
        assert decider.decide(body) == made, "and it stays so"
        assert [e.source for e in store.read()] == ["transactions", "decisions.fraud"]
        with pytest.raises(MlpkgError, match="no model is active"):
            decider.check()
        result = verify(careful, store)
        assert (result.decisions, result.mismatches, result.models, result.fallbacks) == (1, 0, {}, {"model": 1})


@pytest.mark.parametrize("why", ["features", "score", "deadline"])
def test_what_fails_is_said_and_what_was_known_is_recorded(
    careful_bank: Bank, monkeypatch: pytest.MonkeyPatch, why: str, cli: Command
):
    bank = careful_bank
    bank.pays("tx-1", 0)
    with monkeypatch.context() as patch:
        if why == "deadline":
            bank.decider.deadline_us = 0
        else:
            name, where = (
                ("evaluate", "mlpkg.decisions.request")
                if why == "features"
                else ("LightGBM.score", "mlpkg.models.predictors")
            )
            patch.setattr(f"{where}.{name}", broken)
        made = bank.pays("tx-2", 1)
    bank.decider.deadline_us = None
    after = bank.pays("tx-3", 2)
    assert made.fallback and (made.fallback["why"], made.action, made.score) == (why, "review", None)
    assert "a bug" in made.fallback["detail"] or why == "deadline"
    assert made.model["version"] == bank.version
    assert (after.fallback, after.features["customer_n_tx_7d"]) == (None, 3), "the event counts all the same"
    assert made.features.get("customer_n_tx_7d") == (None if why == "features" else 2)

    result = verify(careful, bank.store)
    assert (result.decisions, result.mismatches, result.fallbacks) == (3, 0, {why: 1})
    assert result.models == {bank.version: 2}
    state = bank.store.settings.state
    assert f"1 by the fallback ({why}), 0 mismatches" in cli("verify", "fraud", state=state).out
    assert f"fallback, {why}" in cli("decisions", "fraud", state=state).out
    frame = lab.decisions(use_case=careful, store=bank.store)
    assert frame["fallback"].fillna("").tolist() == ["", why, ""] and frame["score"].isna().tolist() == [
        False,
        True,
        False,
    ]
    summary = report(careful, bank.store)
    assert summary["fallbacks"] == {why: 1} and f"because of the {why}: 1" in report_text(summary)
    dossier = lab.decision("tx-2", use_case=careful, store=bank.store)
    assert f"the fallback, because of the {why}" in repr(dossier)
    assert dossier.by()["score"].notna().all(), "what the model would have said can be asked for later"
    with pytest.raises(MlpkgError, match="has no score"):
        _ = dossier.reasons
    compared = lab.compare("served", bank.version, "2018-04-01", "2018-04-09", store=bank.store, use_case=careful)
    assert compared.left_out["were decided by the fallback"] == 1 and len(compared.rows) == 2


def test_features_of_a_fallback_are_verified_like_others(careful_bank: Bank):
    bank = careful_bank
    bank.decider.deadline_us = 0
    bank.pays("tx-1", 0)
    bank.store.db.execute(
        "update log set body=json_set(body, '$.features.customer_n_tx_7d', 99) where body like '%deadline%'"
    )
    result = verify(careful, bank.store)
    assert (result.mismatches, [d.what for d in result.differences]) == (1, ["customer_n_tx_7d"])


def test_two_use_cases_decide_the_same_event(tmp_path: Path):
    event = {"id": "tx-1", "time": iso(START), "customer_id": 1, "terminal_id": 1, "amount": 5.0}
    with contextlib.closing(open_store(Settings(state=tmp_path))) as store:
        cases = [UseCase(name, features, policy=handbook.policy, fallback=f"{name} says") for name in ("one", "two")]
        made = [Decider(case, store).decide(event, arrived=START) for case in cases]
        again = [Decider(case, store).decide({"id": "tx-1"}) for case in cases]
        assert made == again and [d.action for d in made] == ["one says", "two says"]
        assert [e.source for e in store.read()] == ["transactions", "decisions.one", "decisions.two"]


def test_a_fallback_may_be_a_function_of_the_event(tmp_path: Path):
    def by_amount(event: Any) -> str:
        return "review" if event.amount > 50 else "approve"

    case = UseCase("fraud", features, policy=handbook.policy, fallback=by_amount, deadline="1us")
    bank = Bank(case, tmp_path)
    with contextlib.closing(bank.store):
        made = [bank.pays(f"tx-{amount}", 0, amount=amount) for amount in (10.0, 60.0)]
        assert [(d.action, d.fallback and d.fallback["why"]) for d in made] == [
            ("approve", "deadline"),
            ("review", "deadline"),
        ]
        assert made[0].policy not in ("constant", bank.pays("tx-10.0", 0, amount=10.0).model["version"])


def test_a_store_that_fails_is_no_reason_to_fall_back(careful_bank: Bank, monkeypatch: pytest.MonkeyPatch):
    """Nothing can be recorded then, so nothing is answered."""
    bank = careful_bank
    bank.pays("tx-1", 0)
    with monkeypatch.context() as patch:
        patch.setattr(
            "mlpkg.decisions.request.evaluate", lambda *args: bank.store.db.execute("select nothing from nowhere")
        )
        with pytest.raises(MlpkgError):
            bank.pays("tx-2", 1)
    assert bank.store.entry("transactions", "tx-2") is None


def test_a_fallback_that_cannot_be_is_refused_where_it_is_defined():
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"fallback": ""}, "neither an action nor a function"),
        ({"fallback": "review", "deadline": "soon"}, "is not a duration"),
        ({"deadline": "5ms"}, "no fallback that says what to do"),
    ]
    for more, words in wrong:
        with pytest.raises(ValueError, match=words):
            UseCase("fraud", features, policy=handbook.policy, **more)


def test_a_record_of_before_there_were_fallbacks_is_read(careful_bank: Bank):
    made = careful_bank.pays("tx-1", 0)
    careful_bank.store.db.execute("update log set body=json_remove(body, '$.fallback') where body like '%fallback%'")
    assert "fallback" not in json.loads(careful_bank.store.entry("decisions.fraud", "tx-1").body)
    assert careful_bank.pays("tx-1", 0) == made
    assert verify(careful, careful_bank.store).mismatches == 0


def test_a_model_whose_folder_is_put_back_ends_the_fallback(bank: Bank, tmp_path: Path):
    """Missing at the start, it is looked for again; and so is one that lost a file and gets it back."""
    folder = models.models_dir(bank.store.settings.state, "fraud") / bank.version
    folder.rename(tmp_path / "aside")
    careful = UseCase("fraud", features, policy=handbook.policy, fallback="review")
    decider = Decider(careful, bank.store)

    def decides(id: str, within: float = 10.0) -> bool:
        """Whether the model is asked again before long."""
        until, number = time.monotonic() + within, 0
        while time.monotonic() < until:
            number += 1
            body = bank.payment(f"{id}-{number}", 1)
            if decider.decide(body, arrived=instant(body["time"])).fallback is None:
                return True
            time.sleep(0.1)
        return False

    assert not decides("missing", 0.5)
    (tmp_path / "aside").rename(folder)
    assert decides("back")
    (folder / "model.txt").rename(tmp_path / "model.txt")
    decider = Decider(careful, bank.store)
    assert not decides("damaged", 0.5)
    (tmp_path / "model.txt").rename(folder / "model.txt")
    assert decides("mended")
    assert verify(careful, bank.store).mismatches == 0
