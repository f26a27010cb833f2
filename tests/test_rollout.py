"""How what is live changes, and what is done where no model can be asked."""

import pytest
from conftest import Bank, Command, booster, put_live
from handbook import features, fraud

from mlpkg import models
from mlpkg.platform import Platform


def saved(platform: Platform, **metrics: float) -> str:
    """A model that is not live."""
    state = platform.settings.state
    return models.save(state, fraud.name, booster(features), features, metrics=metrics, lineage={}, policy={})


def test_what_is_rolled_back_twice_is_two_models_back(bank: Bank, cli: Command):
    state = bank.platform.settings.state
    second, third = put_live(fraud, bank.platform, n=2.0), put_live(fraud, bank.platform, n=3.0)
    assert bank.pays("tx-1", 0).model["version"] == third
    for version in (second, bank.version):
        answer = cli("rollback", "fraud", "--why", "too many complaints", "--by", "ann", state=state)
        assert (answer.status, answer.out) == (0, f"{version} is live\n")
        assert bank.pays(f"tx-{version}", 1).model["version"] == version, "by the next decision of another process"
    cli("rollback", "fraud", "--why", "still", state=state).said_one_line("no other model of 'fraud' was live before")
    assert bank.platform.live("fraud") == bank.version
    told = cli("models", "fraud", "--changes", "--json", state=state).json
    assert [(c["change"], c["version"]) for c in told[-2:]] == [("rollback", second), ("rollback", bank.version)]
    assert {(c["by"], c["why"], c["at"][:2]) for c in told[-2:]} == {("ann", "too many complaints", "20")}
    assert [e.source for e in bank.platform.read() if e.source.startswith("promotions")] == ["promotions.fraud"] * 5


def test_a_retired_model_is_not_live_and_never_will_be(bank: Bank, cli: Command):
    state = bank.platform.settings.state
    other = saved(bank.platform, n=2.0)
    cli("retire", "fraud", bank.version, "--why", "old", state=state).said_one_line("is live", "--successor")
    answer = cli("retire", "fraud", bank.version, "--why", "old", "--successor", other, "--by", "ann", state=state)
    assert (answer.status, bank.platform.live("fraud")) == (0, other)
    cli("promote", "fraud", bank.version, state=state).said_one_line("was retired by ann: old")
    cli("rollback", "fraud", "--why", "back", state=state).said_one_line("no other model")
    cli("retire", "fraud", bank.version, "--why", "again", state=state).said_one_line("was retired by ann")
    cli("retire", "fraud", "nonsense", "--why", "old", state=state).said_one_line("has no model nonsense")
    told = cli("models", "fraud", "--json", state=state).json
    assert {m["version"]: m["retired"] for m in told} == {bank.version: True, other: False}
    assert bank.pays("tx-1", 0).model["version"] == other


def test_a_rollback_passes_over_what_was_retired(bank: Bank, cli: Command):
    state = bank.platform.settings.state
    second, _ = put_live(fraud, bank.platform, n=2.0), put_live(fraud, bank.platform, n=3.0)
    assert cli("retire", "fraud", second, "--why", "wrong labels", state=state).status == 0
    assert cli("rollback", "fraud", "--why", "slow", state=state).out == f"{bank.version} is live\n"


def test_a_model_that_cannot_decide_is_refused_and_the_last_good_one_stays(
    bank: Bank, monkeypatch: pytest.MonkeyPatch, cli: Command
):
    bank.pays("tx-1", 0)
    state, version = bank.platform.settings.state, saved(bank.platform, n=2.0)
    with monkeypatch.context() as patch:
        patch.setattr(models.LightGBM, "score", lambda self, row: float("nan"))
        cli("promote", "fraud", version, state=state).said_one_line("cannot decide", "nan")
    with monkeypatch.context() as patch:
        patch.setattr("mlpkg.rollout.evaluate", lambda *given: 1 / 0)
        cli("promote", "fraud", version, state=state).said_one_line("cannot decide: ZeroDivisionError")
    path = models.find(state, "fraud", version).folder / "model.txt"
    path.write_text(path.read_text() + " ")
    cli("promote", "fraud", version, state=state).said_one_line("model.txt is not the file that was saved")
    assert bank.platform.live("fraud") == bank.version
    assert bank.pays("tx-2", 1).model["version"] == bank.version


def test_a_rollback_to_a_damaged_model_is_refused(bank: Bank, cli: Command):
    version = put_live(fraud, bank.platform, n=2.0)
    (models.find(bank.platform.settings.state, "fraud", bank.version).folder / "model.txt").unlink()
    answer = cli("rollback", "fraud", "--why", "slow", state=bank.platform.settings.state)
    assert answer.said_one_line("model.txt is missing")
    assert bank.platform.live("fraud") == version
