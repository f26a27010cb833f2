"""An acknowledged write is in the store, whatever happens to the process that acknowledged it."""

import random
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import handbook
from bank import Bank
from command import Command
from paths import SUPPORT
from project import Project

import mlpkg as ml
from mlpkg.decisions import verify
from mlpkg.times import instant

ROUNDS = 2
WRITERS = ["one", "two"]


def run_and_kill(state: Path, number: int, patience: random.Random) -> list[str]:
    """Let some processes decide on one store at once and kill them; what they had acknowledged by then."""
    command = [sys.executable, SUPPORT / "decide_forever.py", state]
    writers = [subprocess.Popen([*command, own, str(number)], stdout=subprocess.PIPE, text=True) for own in WRITERS]
    acknowledged: list[list[str]] = [[] for _ in writers]
    try:
        readers = [
            threading.Thread(target=lambda w=writer, a=lines: a.extend(w.stdout))
            for writer, lines in zip(writers, acknowledged, strict=True)
        ]
        for reader in readers:
            reader.start()
        give_up = time.monotonic() + 60
        while min(map(len, acknowledged)) < 20 and time.monotonic() < give_up:
            time.sleep(0.01)
        time.sleep(patience.uniform(0, 0.2))
        for writer in writers:
            writer.kill()
            time.sleep(patience.uniform(0, 0.02))
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    for reader in readers:
        reader.join()
    assert min(map(len, acknowledged)) >= 20
    return [line.strip() for lines in acknowledged for line in lines if line.endswith("\n")]


def test_a_killed_process_loses_nothing_that_it_acknowledged(bank: Bank):
    """Two processes decide on one store, also the same payments, and are killed without warning, again and again."""
    store, state = bank.store, bank.store.settings.state
    acknowledged: list[str] = []
    for number in range(ROUNDS):
        acknowledged += run_and_kill(state, number, random.Random(number))

    decided = {line for line in acknowledged if not line.startswith("fraud ")}
    reported = {line.removeprefix("fraud ") for line in acknowledged if line.startswith("fraud ")}
    assert len(decided) > 20 * ROUNDS and reported
    entries = list(store.read())
    logged: dict[str, list[str]] = {}
    for entry in entries:
        logged.setdefault(entry.source, []).append(entry.id)
    for source, ids in logged.items():
        assert len(ids) == len(set(ids)), f"none is in {source} twice"
    assert decided <= set(logged["transactions"]) and decided <= set(logged["decisions.fraud"])
    assert reported <= set(logged["transactions.fraud"])
    assert set(logged["transactions"]) == set(logged["decisions.fraud"]), "no event without its decision"
    assert {e.about for e in entries if e.source == "decisions.fraud"} == {
        e.position for e in entries if e.source == "transactions"
    }
    assert verify(handbook.fraud, store).mismatches == 0


def test_threads_share_a_platform(bank: Bank):
    """A decider belongs to a thread, the store to all of them."""
    failed: list[BaseException] = []

    def work(own: int) -> None:
        try:
            decider = ml.decisions.Decider(handbook.fraud, bank.store)
            for k in range(100):
                for id in (f"{own}-{k}", f"both-{k}"):
                    body = bank.payment(id, k / 24, customer_id=k % 3)
                    decider.decide(body, arrived=instant(body["time"]))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    result = verify(handbook.fraud, bank.store)
    assert (result.decisions, result.mismatches) == (4 * 100 + 100, 0)


def test_an_interrupted_file_goes_in_the_second_time(stocked: Project, cli: Command, simulated: Path):
    """Ingesting is repeatable: what is there is known already."""
    again = cli("ingest", "fraud", simulated, "--json")
    assert again.status == 0, again.err
    assert sum(again.json["new"].values()) == 0 and again.json["refused"] == []
    with closing(ml.open_store(stocked.settings)) as store:
        assert again.json["known"] == sum(1 for e in store.read(streams=["transactions", "transactions.fraud"]))
