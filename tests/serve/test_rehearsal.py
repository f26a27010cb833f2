"""History over HTTP: a rehearsal on old data, and a log that is played against a running service."""

import json
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from command import Command
from made_once import made_once
from serving import SCRIPTS, Packaged, environment, free_port, payment, run, serving

import mlpkg as ml
from mlpkg import lab
from mlpkg.decisions.record import decode_decision
from mlpkg.examples.fraud.policy import fraud
from mlpkg.settings import Settings
from mlpkg.store import Store
from mlpkg.times import DAY, HOUR, SECOND, iso, now

pytestmark = pytest.mark.e2e
SPAN = 12 * HOUR


@contextmanager
def opened(state: Path) -> Iterator[Store]:
    with closing(ml.open_store(Settings(state=state))) as store:
        yield store


@pytest.fixture(scope="module")
def rehearsed(made: Packaged, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A state that a rehearsal of half a day left, when that began, and what the command printed."""

    def make(folder: Path) -> None:
        with opened(made.history) as store:
            last = store.last_arrival(["transactions"])
        assert last is not None
        start = last // DAY * DAY - 20 * DAY + 8 * HOUR  # by day, when people pay, whatever the time of the test
        span = ("--from", iso(start), "--to", iso(start + SPAN))
        how = ("--serve", "--into", folder / "state", "--bento", made.bento.folder)
        output = run(SCRIPTS / "mlpkg", "replay", "fraud", *span, *how, env=environment(made.history))
        (folder / "made.json").write_text(json.dumps([start, output]))

    folder = made_once(tmp_path_factory, "rehearsed", make)
    start, output = json.loads((folder / "made.json").read_text())
    return folder / "state", start, output


def test_a_rehearsal_decides_old_events_live_and_verifies_them(rehearsed: tuple[Path, int, str], made: Packaged):
    """From a log without any decision: all events of the stretch are decided, and the output reads as a person expects."""
    state, start, output = rehearsed
    with opened(state) as store:
        decisions = [decode_decision(e.body) for e in store.read(streams=["decisions.fraud"])]
        arrivals = [e.arrived for e in store.read(streams=["decisions.fraud"])]
        assert store.active_version("fraud") == made.version
        assert not any(token.revoked is None for token in store.tokens().values()), "the token is revoked"
    with opened(made.history) as store:
        paid = store.read(streams=["transactions"])
        assert len(decisions) == sum(start <= e.arrived < start + SPAN for e in paid) > 10
    assert {d.caller for d in decisions} == {"replay"}
    assert all(start <= arrived < start + SPAN for arrived in arrivals) and arrivals == sorted(arrivals)
    assert f"entries before {iso(start)} are in" in output and f"its clock starts at {iso(start)}" in output
    assert f"{len(decisions):,} decided, 0 refused" in output and "there is nothing to compare" in output
    assert f"verified: {len(decisions):,} decisions recomputed from the log, 0 mismatches" in output
    assert re.search(r"latency of a decision: p50 \d+\.\d ms, p99 \d+\.\d ms", output)
    assert any(re.fullmatch(r"  \S+Z +\S+ +(approve|review|decline) +\d\.\d{4}", line) for line in output.splitlines())
    assert "Traceback" not in output + (state / "service.log").read_text()


def test_a_log_on_servers_is_rehearsed_in_a_file(made: Packaged, on_servers: Settings, tmp_path: Path):
    """It decides what the log on the servers has, and writes nothing there."""
    when = now() // SECOND * SECOND - DAY
    with closing(ml.open_store(on_servers)) as store:
        store.register("fraud", fraud.features)
        for n in range(20):
            at = when + n * HOUR
            store.accept(fraud.on, payment(f"tx-{n}", time=iso(at)), arrived=at)
        before = [*store.read()]
    names = ("store", "namespace", "kafka", "kafka_user", "kafka_password", "kafka_protocol", "redis", "postgres")
    variables = {f"MLPKG_{name.upper()}": str(getattr(on_servers, name)) for name in names}
    span = ("--from", iso(when + 10 * HOUR), "--to", iso(when + 20 * HOUR))
    how = ("--serve", "--into", tmp_path / "again", "--bento", made.bento.folder)
    output = run(SCRIPTS / "mlpkg", "replay", "fraud", *span, *how, env=environment(on_servers.state, **variables))
    assert "10 entries before" in output and "10 decided, 0 refused" in output
    assert "verified: 10 decisions recomputed from the log, 0 mismatches" in output
    with closing(ml.open_store(on_servers)) as store:
        assert [*store.read()] == before
    with opened(tmp_path / "again") as store:
        last = decode_decision([*store.read(streams=["decisions.fraud"])][-1].body)
        assert last.features["customer_n_tx_7d"] == 20


def test_decisions_by_stated_arrival_have_the_features_of_a_training_set(
    rehearsed: tuple[Path, int, str], made: Packaged
):
    """The invariant of history over HTTP: bit for bit what the batch path computes from the log that was played."""
    state, start, _ = rehearsed
    with opened(state) as store:
        live = {e.id: decode_decision(e.body).features for e in store.read(streams=["decisions.fraud"])}
    with opened(made.history) as store:
        rows = lab.training_set(fraud.features, iso(start), iso(start + SPAN), store=store)
    rows = rows[rows["id"].isin(live)]
    assert len(rows) == len(live)
    for name in fraud.features.names:
        served = np.array([np.nan if live[id][name] is None else live[id][name] for id in rows["id"]], np.float64)
        expected = np.array(rows[name].tolist(), np.float64)
        assert ((served == expected) | (np.isnan(served) & np.isnan(expected))).all(), name


def test_a_log_played_against_a_service_is_equal_or_the_difference_is_named(
    rehearsed: tuple[Path, int, str], made: Packaged, tmp_path: Path, cli: Command
):
    """Over HTTP, into an empty service, with history; then again after a record of the log was changed."""
    log, start, _ = rehearsed
    span = ("--from", iso(start + HOUR), "--to", iso(start + 7 * HOUR))
    offset = str(start + HOUR - now())
    with serving(made.bento, tmp_path / "state", tmp_path / "log", MLPKG_CLOCK_OFFSET=offset) as server:
        ready = httpx.get(f"{server.address}/v1/ready").json()
        assert ready["rehearsal"].startswith(iso(start + HOUR)[:11]), "its readiness says that it rehearses"
        first = cli("replay", "fraud", *span, "--http", server.address, "--json", state=log)
        assert first.status == 0, first.out + first.err
        played = first.json
        with opened(log) as store:
            ids = [
                e.id for e in store.read(streams=["decisions.fraud"]) if start + HOUR <= e.arrived < start + 7 * HOUR
            ]
        assert (played["new"], played["different"], played["refused"]) == (0, 0, 0)
        assert played["decided"] == len(ids) > 3
        assert played["loaded"] > 1_000 and played["known"] == 0
        with closing(sqlite3.connect(log / "mlpkg.db")) as db, db:
            change = "update log set body=json_set(body, '$.action', 'hold', '$.features.amount', 1.0) where id=? and about is not null"
            assert db.execute(change, (ids[3],)).rowcount == 1
        again = cli("replay", "fraud", *span, "--http", server.address, state=log)
        assert again.status == 1, "a difference"
        assert f"{len(ids) - 1:,} of {len(ids):,} equal to what was decided" in again.out
        assert f"{ids[3]}: amount is recorded as 1.0, recomputed as" in again.out
        assert f"{ids[3]}: action is recorded as 'hold', recomputed as" in again.out
        assert re.search(r"(\d[\d,]*) entries before \S+ loaded, \1 of them were there", again.out), "an id counts once"
    with opened(tmp_path / "state") as store:
        assert ml.decisions.verify(fraud, store).mismatches == 0


def test_a_service_whose_clock_starts_in_the_past(made: Packaged, tmp_path: Path, cli: Command):
    """`mlpkg serve --as-of`: events arrive at its clock, features are of that time, and tokens go by the machine's clock."""
    state, as_of = tmp_path / "state", now() // SECOND * SECOND - 400 * DAY
    served = [SCRIPTS / "mlpkg", "serve", "fraud", "--bento", made.bento.folder, "--port", str(free_port())]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*map(str, served), "--as-of", iso(as_of)], env=environment(state), stdout=log, stderr=log
        )
    try:
        until = time.monotonic() + 180
        while "is served on" not in (output := (tmp_path / "log").read_text()):
            assert process.poll() is None and time.monotonic() < until, output
            time.sleep(0.2)
        assert f"a rehearsal whose clock started at {iso(as_of)}" in output
        address = output.split("is served on ")[1].split(" ")[0]
        secret = cli("token", "create", "--role", "auditor", "--expires", "1h", "--json", state=state).json
        with httpx.Client(base_url=address, timeout=20) as http:
            decided = http.post("/v1/decide", json=payment("old", time=iso(as_of))).json()
            assert decided["caller"] is None and decided["event"] == "old"
            entry = http.get("/v1/events/transactions/old").json()
            assert iso(as_of) <= entry["arrived"] < iso(as_of + HOUR), "the event arrived at the clock of the rehearsal"
            today = http.post("/v1/decide", json=payment("today")).json()
            assert (today["status"], today["title"]) == (422, "Rejected"), "today lies in the future for good"
            assert f"the clock of this rehearsal says {iso(as_of)[:10]}" in today["detail"]
            assert "send an event of about that time" in today["detail"] and "machine" not in today["detail"]
            held = {"authorization": f"Bearer {secret['token']}"}
            features = http.get("/v1/features?customer_id=17", headers=held).json()
            assert iso(as_of) <= features["time"] < iso(as_of + HOUR), (
                "the token holds, and the features are of that time"
            )
            assert features["features"]["customer_n_tx_1d"] == 1
            stated = payment("stated", time=iso(as_of + 2 * DAY), arrived=iso(as_of + 2 * DAY))
            assert http.post("/v1/decide", json=stated).status_code == 200, "an operator may be ahead of the rehearsal"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    with opened(state) as store:
        result = ml.decisions.verify(fraud, store)
        (letter,) = store.dead_letters()
    assert (result.decisions, result.mismatches) == (2, 0)
    assert as_of <= letter.at < as_of + HOUR, "it was refused at the clock of the rehearsal"
    report = cli("report", "fraud", state=state)
    assert f"outcomes as known at {iso(as_of + 2 * DAY)}:\nfraud: known of 0, not yet of 2; 0 are" in report.out
    report = cli("report", "fraud", "--as-of", iso(as_of + 30 * DAY), state=state)
    assert "fraud: known of 2, not yet of 0; 2 are old enough" in report.out
    assert not any(line.endswith(" ") for line in report.out.splitlines())
    early = cli("serve", "fraud", "--bento", "none:such", "--as-of", iso(as_of), state=state)
    words = (
        "the log of fraud goes on until",
        "when an event of transactions arrived",
        f"--as-of {iso(as_of + 2 * DAY)} or",
    )
    early.said_one_line(*words, "MLPKG_STATE=FOLDER")


def test_a_rehearsal_cannot_start_in_the_future_or_with_nothing(made: Packaged, tmp_path: Path, cli: Command):
    how = ("--bento", made.bento.folder)
    ahead = cli("serve", "fraud", *how, "--as-of", "2199-01-01", state=tmp_path / "state")
    assert ahead.status == 1 and "2199-01-01T00:00:00Z is in the future" in ahead.err
    span = ("--from", "2001-01-01", "--to", "2001-01-02")
    nothing = cli("replay", "fraud", *span, "--serve", "--into", tmp_path / "again", *how, state=made.history)
    assert nothing.status == 1 and "nothing arrived from 2001-01-01T00:00:00Z" in nothing.err
