"""The scripts in a real Redis: what a transaction writes is seen, undone and refused exactly as its callers rely on."""

import struct
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest

from mlpkg.errors import StoreError, StoreLocked
from mlpkg.store.redis.sequencer import (
    Aborted,
    Begun,
    Busy,
    Changed,
    Connection,
    IsKnown,
    Known,
    Questions,
    ReportEntry,
    Row,
    Sequencer,
    Stale,
    StateKeeper,
    Unit,
    binary,
    lock_of,
    packed_place,
)

if TYPE_CHECKING:
    from local_servers.redis_server import Redis

CARD = "1:596"  # a timeline
ALL = [(CARD, "-inf")]
NOTHING = msgspec.Raw(b"\xa0")


@pytest.fixture
def sequencer(redis_server: "Redis", redis_prefix: str) -> Iterator[Sequencer]:
    """A sequencer whose state is complete for the Redis that runs."""
    with closing(Connection(redis_server.url)) as connection:
        sequencer = Sequencer(connection, redis_prefix)
        keeper = StateKeeper(sequencer)
        sequencer.process, sequencer.epoch = connection.run(), 1
        sequencer.use_server(sequencer.process)
        keeper.write(run=sequencer.process, epoch=1, generation=0)
        yield sequencer
        keeper.delete_all()


def packed(number: int) -> bytes:
    return struct.pack("<q", number)


def row(value: int, time: int = 1_000, replaces: bool = False, about: str | int = "own") -> Row:
    """A row with one column, about its own unit or about the event at a position."""
    is_about = about if isinstance(about, str) else binary(packed(about))
    return Row(CARD, time, binary(packed(time)), 0, is_about, binary(packed(value)), replaces)


def payment(id: str, *rows: Row) -> Unit:
    return Unit([lock_of("payments", id)], ("payments", id, NOTHING), rows=[*rows])


def begin(sequencer: Sequencer, *units: Unit, reads: list[tuple[str, str]] | None = None) -> Begun:
    answer = sequencer.begin(units, reads or [])
    assert isinstance(answer, Begun)
    return answer


def commit(sequencer: Sequencer, begun: Begun, units: int = 1) -> None:
    sequencer.commit(begun.first, [packed_place(0, n) for n in range(units)])


def undo(sequencer: Sequencer, begun: Begun) -> None:
    assert sequencer.doom(begun.first, 0) is not None
    sequencer.undo(begun.first)


def firsts(sequencer: Sequencer) -> list[int]:
    """The transactions that are pending."""
    return [span.first for span in sequencer.spans()]


def values(rows: bytes) -> list[int]:
    """The columns of rows that lie end to end: time, position, about, and one value."""
    return [value for _, _, _, value in struct.iter_unpack("<qqqq", rows)]


def card(sequencer: Sequencer) -> list[int]:
    """What is committed of the timeline."""
    return values(sequencer.read(ALL)[0][0])


def test_a_transaction_sees_its_own_row_and_is_known_once_it_is_committed(sequencer: Sequencer) -> None:
    questions = Questions(sequencer)
    begun = begin(sequencer, payment("tx-1", row(7)), reads=ALL)
    assert values(begun.timelines[0]) == [7] and not begun.needs
    assert firsts(sequencer) == [begun.first] and sequencer.stable_position() == begun.first - 1
    (pending,) = questions.known("payments", ["tx-1"])
    assert pending is not None and pending.is_pending
    sequencer.commit(begun.first, [packed_place(2, 5)])
    sequencer.commit(begun.first, [packed_place(2, 5)])  # asked again after the answer was lost
    assert questions.known("payments", ["tx-1", "tx-2"]) == [Known(begun.first, 2, 5, b""), None]
    assert firsts(sequencer) == [] and sequencer.stable_position() == begun.first
    assert sequencer.begin([payment("tx-1")]) == IsKnown({0: Known(begun.first, 2, 5, b"")})


def test_transactions_that_begin_together_see_those_before_them(sequencer: Sequencer) -> None:
    """Up to the first one that cannot begin; of what is behind it, nothing is written."""
    busy = begin(sequencer, payment("tx-3"))
    units = [payment(f"tx-{k}", row(k)) for k in range(1, 6)]
    first, second = sequencer.begin_all([([unit], ALL, None) for unit in units])
    assert isinstance(first, Begun) and isinstance(second, Begun)
    assert values(first.timelines[0]) == [1] and values(second.timelines[0]) == [1, 2]
    assert busy.first < first.first < second.first and (first.needs, second.needs) == (frozenset(), {first.first})
    assert sequencer.spans() == [(begun.first, begun.first, 1) for begun in (busy, first, second)]
    undo(sequencer, second)
    with pytest.raises(Busy):
        sequencer.begin_all([([unit], ALL, None) for unit in units[2:]])
    undo(sequencer, busy)
    answers = [a for a in sequencer.begin_all([([unit], ALL, None) for unit in units[1:]]) if isinstance(a, Begun)]
    assert [values(answer.timelines[0]) for answer in answers] == [
        [1, 2],
        [1, 2, 3],
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5],
    ]
    errors = sequencer.commit_all([(begun.first, [packed_place(0, 1)]) for begun in (answers[0], first, *answers[1:])])
    assert [type(error) for error in errors] == [Busy, *[type(None)], *[Busy] * 3]
    assert card(sequencer) == [1]


def test_positions_follow_one_another_in_a_transaction_and_grow(sequencer: Sequencer) -> None:
    first = begin(sequencer, payment("tx-1"), payment("tx-2"))
    second = begin(sequencer, payment("tx-3"))
    assert second.first > first.first + 1
    ahead = second.first + 10**12  # the clock may go back: no position does
    StateKeeper(sequencer).write(last=ahead)
    assert begin(sequencer, payment("tx-4")).first == ahead + 1


def test_an_id_that_another_transaction_writes_is_busy(sequencer: Sequencer) -> None:
    begun = begin(sequencer, payment("tx-1"))
    with pytest.raises(Busy) as busy:
        sequencer.begin([payment("tx-1")])
    assert busy.value.holder == begun.first
    with pytest.raises(Busy):
        Questions(sequencer).about("payments", "fraud", "tx-1")
    commit(sequencer, begun)
    assert isinstance(sequencer.begin([payment("tx-1")]), IsKnown)


def test_nothing_is_written_when_the_reports_are_not_those_that_the_caller_knew(sequencer: Sequencer) -> None:
    report = Unit(
        [lock_of("fraud", "tx-1")],
        expects=[("fraud", "tx-1", NOTHING)],
        missing=[("payments", "tx-1")],
        reports=[ReportEntry("fraud", "tx-1", NOTHING, 1, 2, "{}", waits=True)],
    )
    begun = begin(sequencer, report)
    commit(sequencer, begun)
    questions = Questions(sequencer)
    assert questions.outcomes() == ["fraud"] and questions.waiting("fraud") == ["tx-1"]
    (reports,) = questions.reports("fraud", ["tx-1"])
    assert msgspec.msgpack.decode(reports) == [[begun.first, 1, 2, "{}"]]
    assert sequencer.begin([report]) == Changed("fraud", "tx-1", reports)

    blind = payment("tx-1")
    blind.outcomes = ["fraud"]
    assert sequencer.begin([blind]) == Changed("fraud", "tx-1", reports)
    assert firsts(sequencer) == [] and questions.known("payments", ["tx-1"]) == [None]
    blind.settles = {"fraud": binary(reports)}
    commit(sequencer, begin(sequencer, blind))
    late = Unit([lock_of("fraud", "tx-1")], missing=[("payments", "tx-1")])
    assert isinstance(sequencer.begin([late]), Changed)


def test_a_commit_waits_for_what_the_transaction_saw(sequencer: Sequencer) -> None:
    first = begin(sequencer, payment("tx-1", row(1)))
    second = begin(sequencer, payment("tx-2", row(2)), reads=ALL)
    assert values(second.timelines[0]) == [1, 2] and second.needs == {first.first} and second.oldest == first.first
    with pytest.raises(Busy) as busy:
        commit(sequencer, second)
    assert busy.value.holder == first.first
    commit(sequencer, first)
    commit(sequencer, second)
    assert card(sequencer) == [1, 2]


def test_an_undone_transaction_leaves_nothing_and_dooms_those_that_saw_it(sequencer: Sequencer) -> None:
    first = begin(sequencer, payment("tx-1", row(1)))
    second = begin(sequencer, payment("tx-2", row(2)), reads=ALL)
    other = begin(sequencer, payment("tx-3"))
    undo(sequencer, first)
    for begun in (first, second):
        with pytest.raises(Aborted):
            commit(sequencer, begun)
    commit(sequencer, other)
    undo(sequencer, second)
    questions = Questions(sequencer)
    assert card(sequencer) == [] and questions.known("payments", ["tx-1", "tx-2"]) == [None, None]
    assert questions.void() == [(first.first, first.first), (second.first, second.first)] and firsts(sequencer) == []
    assert isinstance(sequencer.begin([payment("tx-1")]), Begun)


def test_others_undo_a_transaction_only_when_it_is_old(sequencer: Sequencer) -> None:
    begun = begin(sequencer, payment("tx-1"), payment("tx-2"))
    assert sequencer.doom(begun.first) is None
    assert sequencer.doom(begun.first, 0) == begun.first + 1
    assert sequencer.doom(begun.first) == begun.first + 1  # who noticed it first may have died
    with pytest.raises(Aborted):
        sequencer.add(begun.first, begun.first, begun.first, [row(1)])
    sequencer.undo(begun.first)
    sequencer.undo(begun.first)
    assert sequencer.doom(begun.first, 0) is None


def test_a_replaced_row_comes_back_when_the_correction_is_undone(sequencer: Sequencer) -> None:
    commit(sequencer, begin(sequencer, payment("tx-1", row(1, about=5))))
    correction = begin(sequencer, payment("tx-2", row(2, replaces=True, about=5)), reads=ALL)
    assert values(correction.timelines[0]) == [2]
    undo(sequencer, correction)
    assert card(sequencer) == [1]


def test_a_replaced_row_that_is_void_does_not_come_back(sequencer: Sequencer) -> None:
    first = begin(sequencer, payment("tx-1", row(1, about=5)))
    correction = begin(sequencer, payment("tx-2", row(2, replaces=True, about=5)), reads=ALL)
    undo(sequencer, first)
    undo(sequencer, correction)
    assert card(sequencer) == []


def test_a_correction_moves_what_an_earlier_decision_reads(sequencer: Sequencer) -> None:
    commit(sequencer, begin(sequencer, payment("tx-1", row(1, about=5))))
    decision = begin(sequencer, payment("tx-2"))
    commit(sequencer, begin(sequencer, payment("tx-3", row(2, replaces=True, about=5))))
    with pytest.raises(StoreLocked, match="correction"):
        sequencer.read(ALL, decision.first, decision.first)


def test_a_decision_reads_up_to_its_own_position(sequencer: Sequencer) -> None:
    first = begin(sequencer, payment("tx-1", row(1)))
    decision = begin(sequencer, payment("tx-2"))
    commit(sequencer, begin(sequencer, payment("tx-3", row(3))))
    (rows,), needs = sequencer.read(ALL, decision.first, decision.first)
    assert values(rows) == [1] and needs == {first.first}
    assert card(sequencer) == [3], "who is in no transaction reads what is committed"
    commit(sequencer, first)
    assert card(sequencer) == [1, 3]
    late = [(CARD, "1000")]
    assert sequencer.read(late)[0] == [b""]  # rows of that time are not later


def test_nobody_reads_a_timeline_that_is_reserved(sequencer: Sequencer) -> None:
    reserving = payment("tx-1")
    reserving.reserves = [CARD]
    begun = begin(sequencer, reserving)
    with pytest.raises(Busy) as busy:
        sequencer.begin([payment("tx-2")], ALL)
    assert busy.value.holder == begun.first
    later = begin(sequencer, payment("tx-3"))
    with pytest.raises(Busy):
        sequencer.read(ALL, later.first, later.first)
    sequencer.add(begun.first, begun.first, begun.first, [row(9, about="event")])
    commit(sequencer, begun)
    assert card(sequencer) == [9]
    assert begin(sequencer, payment("tx-4"), reads=ALL).needs == frozenset()


def test_a_process_that_is_out_of_date_may_not_go_on(sequencer: Sequencer) -> None:
    begun = begin(sequencer, payment("tx-1"))
    keeper = StateKeeper(sequencer)
    assert keeper.next_generation() == 1
    with pytest.raises(Stale) as stale:
        sequencer.begin([payment("tx-2")])
    assert stale.value.why == "generation"
    commit(sequencer, begun)  # what has begun may end
    sequencer.generation = 1
    keeper.write(epoch=2)
    for call in (
        lambda: sequencer.begin([payment("tx-2")]),
        lambda: sequencer.read(ALL),
        lambda: Questions(sequencer).known("payments", ["tx-1"]),
        lambda: commit(sequencer, begun),
    ):
        with pytest.raises(Stale) as stale:
            call()
        assert stale.value.why == "epoch"
    keeper.write(run="another")
    with pytest.raises(Stale) as stale:
        sequencer.begin([payment("tx-2")])
    assert stale.value.why == "run"
    assert keeper.read()[:3] == ("another", 2, 1)


def test_rows_are_read_while_others_write_and_when_nobody_does(sequencer: Sequencer) -> None:
    commit(sequencer, begin(sequencer, payment("tx-1", row(1))))
    assert card(sequencer) == [1]
    pending = begin(sequencer, payment("tx-2", row(2)))
    assert card(sequencer) == [1], "what is pending is not there yet"
    commit(sequencer, pending)
    assert card(sequencer) == [1, 2] and sequencer.read([]) == ([], frozenset())


def test_a_connection_that_was_closed_is_made_again(sequencer: Sequencer) -> None:
    commit(sequencer, begin(sequencer, payment("tx-1", row(1))))
    (number,) = sequencer.connection.exchange([("CLIENT", "ID")])
    assert sequencer.client.client_kill_filter(_id=number) == 1 and card(sequencer) == [1]


def test_an_error_of_redis_is_an_error_of_the_store(sequencer: Sequencer) -> None:
    sequencer.client.set(sequencer.key("t:1:596"), "no timeline")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        card(sequencer)


def test_a_build_leaves_the_rows_that_are_there(sequencer: Sequencer) -> None:
    commit(sequencer, begin(sequencer, payment("tx-1", row(2, about=5))))

    def member(position: int, about: int, value: int) -> bytes:
        return struct.pack(">q", position) + struct.pack("<qqqq", 1_000, position, about, value)

    old = [(CARD, 1_000, member(3, 5, 1), packed(5)), (CARD, 1_000, member(4, 6, 8), packed(6))]
    for _ in range(2):  # a build that was cut off is done again
        sequencer.backfill(old)
    assert card(sequencer) == [8, 2]


def test_positions_of_the_log_are_kept_when_redis_is_rebuilt(sequencer: Sequencer) -> None:
    units, places = [payment("tx-1", row(1)), payment("tx-2", row(2))], [packed_place(0, 5), packed_place(1, 6)]
    assert sequencer.replay(units, [17, 40], places) is None
    known = Questions(sequencer).known("payments", ["tx-1", "tx-2"])
    assert [(k.position, k.partition, k.offset) for k in known if k] == [(17, 0, 5), (40, 1, 6)]
    assert card(sequencer) == [1, 2] and sequencer.spans() == []
    assert isinstance(sequencer.replay(units[1:], [40], places[1:]), IsKnown)
    assert card(sequencer) == [1, 2], "nothing is written twice"
    assert StateKeeper(sequencer).read().last == 40


def test_what_is_pending_is_listed_with_its_positions_and_claims(sequencer: Sequencer) -> None:
    first = begin(sequencer, payment("tx-1", row(1)), payment("tx-2", row(2)))
    second = begin(sequencer, payment("tx-3"))
    assert [tuple(span) for span in sequencer.spans()] == [
        (first.first, first.first + 1, 2),
        (second.first, second.first, 1),
    ]
    commit(sequencer, first, 2)
    assert firsts(sequencer) == [second.first]


def test_only_the_timelines_of_one_definition_are_deleted(sequencer: Sequencer) -> None:
    other = row(2)._replace(timeline="12:596")
    commit(sequencer, begin(sequencer, payment("tx-1", row(1), other)))
    StateKeeper(sequencer).delete_timelines(1)
    (first, second), _ = sequencer.read([(CARD, "-inf"), ("12:596", "-inf")])
    assert first == b"" and values(second) == [2]


def test_an_error_of_redis_names_the_address_and_no_password(redis_server: "Redis", redis_prefix: str) -> None:
    with closing(Connection(redis_server.url.replace(redis_server.password, "wrong-password"))) as connection:
        with pytest.raises(StoreError, match=f"{redis_server.address} refuses the password") as refused:
            connection.run()
    assert "wrong-password" not in str(refused.value)
    with closing(Connection("redis://:secret@127.0.0.1:1/0")) as connection:
        with pytest.raises(StoreError, match=r"127\.0\.0\.1:1") as missing:
            StateKeeper(Sequencer(connection, redis_prefix)).read()
    assert "secret" not in str(missing.value)
