"""Tiles of timelines in Redis say what their rows say, whatever is written meanwhile, and decisions are the same bits."""

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import handbook
import numpy as np
import pytest
from bank import Bank
from batches import batch_of

from mlpkg.decisions import verify
from mlpkg.decisions.record import decode_decision
from mlpkg.engine.tiles import Tiles, summarise
from mlpkg.settings import Settings
from mlpkg.store.cluster.tiles import MANY_ROWS, TILE, unpack_tiles
from mlpkg.store.redis.sequencer import Questions, Sequencer
from mlpkg.times import DAY, instant

LAST = 28.0  # the day after the history


@pytest.fixture
def bank(on_servers: Settings) -> Iterator[Bank]:
    bank = Bank(handbook.fraud, on_servers)
    bank.store.register("fraud", handbook.features)
    with closing(bank.store):
        yield bank


def fill(bank: Bank, count: int) -> None:
    """Load payments of one customer at one terminal, over four weeks, and reports about some of them."""
    days = np.sort(np.random.default_rng(5).uniform(0, LAST, count))
    sent: list[Any] = []
    for k, day in enumerate(days.tolist()):
        body = bank.payment(f"old-{k}", day, amount=float(k % 90))
        sent.append((handbook.transactions, body, instant(body["time"])))
    for k in range(0, count, 3):
        sent.append((handbook.frauds, {"id": f"old-{k}", "fraud": k % 2 == 0}, instant(sent[k][1]["time"]) + DAY))
    assert bank.store.load(batch_of(sent), trusted=True).refused == []


def sequencer(bank: Bank) -> Sequencer:
    return bank.store.session.sequencer


def timelines(bank: Bank) -> list[Any]:
    return [
        bank.store.session.catalogue.find(*place)
        for place in (("transactions", "customer_id"), ("transactions.fraud", "terminal_id"))
    ]


def check_tiles(bank: Bank) -> int:
    """Compare every tile with the rows of its span; return how many there are."""
    questions, count = Questions(sequencer(bank)), 0
    for of_stream, value in zip(timelines(bank), (1, 7), strict=True):
        name, columns = of_stream.name(value), len(of_stream.columns)
        end = None
        for tile in questions.tiles(name):
            begin, last = np.frombuffer(tile, "<i8")[:2].tolist()
            assert end is None or begin >= end, "tiles do not overlap"
            members = questions.members(name, begin, last, 100_000)
            rows = np.frombuffer(b"".join(members), "<i8").reshape(len(members), -1)[:, 3:]
            (at,), (held,), (sums,) = unpack_tiles(tile, columns)
            assert (at, held) == (last, len(members)) and (sums == summarise(rows)[0]).all()
            end, count = last, count + 1
    return count


def recorded(bank: Bank, id: str) -> dict[str, Any]:
    entry = bank.store.entry("decisions.fraud", id)
    return decode_decision(entry.body).features


def test_decisions_about_a_long_timeline_are_the_same_bits_with_tiles(bank: Bank, tmp_path: Path):
    embedded = Bank(handbook.fraud, tmp_path / "embedded")
    with closing(embedded.store):
        embedded.store.register("fraud", handbook.features)
        for one in (bank, embedded):
            fill(one, 3 * MANY_ROWS)
            one.pays("first", LAST, amount=7.0)
        assert bank.store.session.tiles.make_noted() > MANY_ROWS // TILE and check_tiles(bank) > MANY_ROWS // TILE
        for k in range(40):
            late = LAST - k / 2 if k % 4 == 0 else LAST + k / 24  # some fall into tiles
            for one in (bank, embedded):
                one.pays(f"new-{k}", late, amount=float(k))
                one.hears(f"new-{k}", k % 3 == 0, max(late, LAST) + 0.5)
            assert recorded(bank, f"new-{k}") == recorded(embedded, f"new-{k}")
            if k % 7 == 0:
                bank.store.session.tiles.make(timelines(bank)[0].name(1))
                check_tiles(bank)
        assert len({recorded(bank, f"new-{k}")["customer_n_tx_30d"] for k in range(40)}) > 30
    checked = verify(handbook.fraud, bank.store)
    assert (checked.decisions, checked.mismatches, checked.fallbacks) == (41, 0, {})


def test_a_decision_reads_few_rows_of_a_long_timeline(bank: Bank):
    fill(bank, 4 * MANY_ROWS)
    bank.pays("first", LAST)
    bank.store.session.tiles.make_noted()
    row = handbook.transactions.parse(bank.payment("second", LAST + 0.1))
    plan = handbook.features.decision_plan
    with bank.store.decision("fraud", handbook.transactions, row, row.time, row.time) as decision:
        stream, _, name, reach, edges, _ = next(read for read in plan.reads if read[0] == "transactions")
        tiles = decision.read(stream, name, 1, row.time - reach, edges)
        read = sum(len(rows) for rows in decision._begun.timelines) // 8 // 3  # a row has three numbers, or more
        rows = decision.read(stream, name, 1, row.time - reach)
        decision.record('{"score":0.5,"action":"approve"}')
    assert isinstance(tiles, Tiles) and tiles.rows.sum() >= len(rows.data) // 8 // (2 + len(rows.names)) > 3 * MANY_ROWS
    assert read < MANY_ROWS


def test_what_is_written_while_tiles_are_made_is_in_them_or_keeps_them_away(bank: Bank):
    fill(bank, 3 * MANY_ROWS)
    maker, done = bank.store.session.tiles, threading.Event()
    names = [t.name(value) for t, value in zip(timelines(bank), (1, 7), strict=True)]

    def make() -> None:
        while not done.is_set():
            for name in names:
                maker.make(name)

    thread = threading.Thread(target=make)
    thread.start()
    moments = random.Random(3)
    for k in range(60):
        bank.pays(f"late-{k}", moments.uniform(0, LAST))
        bank.hears(f"old-{3 * k + 1}", True, LAST + 1)
        row = handbook.transactions.parse(bank.payment(f"undone-{k}", moments.uniform(0, LAST)))
        with suppress(ZeroDivisionError), bank.store.decision("fraud", handbook.transactions, row, row.time, row.time):
            raise ZeroDivisionError
    done.set()
    thread.join()
    for name in names:
        maker.make(name)
    assert check_tiles(bank) > 2 * MANY_ROWS // TILE
    assert verify(handbook.fraud, bank.store).mismatches == 0


def test_a_tile_of_rows_that_have_changed_is_not_kept(bank: Bank):
    fill(bank, MANY_ROWS)
    name, questions = timelines(bank)[0].name(1), Questions(sequencer(bank))
    members = questions.members(name, None, None, 200)
    last = int(np.frombuffer(members[-1], "<i8")[1])
    hash = hashlib.sha1(b"".join(members[:-1])).hexdigest()
    assert sequencer(bank).seal(name, [(0, last, hash, b"\0" * 24)]) == 0 and questions.tiles(name) == []
