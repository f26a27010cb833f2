"""What a store should hold, in plain Python: one list of entries, and what follows from it.

It shares no code with a store. Features come from `oracle`, which imports nothing of mlpkg. Texts are texts and amounts are cents.
"""

from dataclasses import dataclass, field
from typing import Any

import oracle
from oracle import Ask, Condition, Moment, Stream, World

DAY = oracle.UNITS["d"]
MATURES = {"fraud": 7 * DAY, "refund": 0}  # how old an event is when a report arrives that does not say when
HELP = Condition("page == 'help'", lambda row: row["page"] == "help")
ASKS = {  # the features of `cards`, as the oracle answers them
    "card_n": Ask("count", over=("1d", "30d")),
    "card_mean": Ask("mean", ("amount",), over=("30d",)),
    "card_last": Ask("last", ("shop",), over=("last 3",)),
    "pair_since": Ask("time_since_last", over=("30d",), by=("card", "shop")),
    "visits_n": Ask("count", over=("7d",), where=HELP, stream="visits"),
    "profile_segment": Ask("latest", ("segment",), over=("all",), stream="profiles"),
    "risk_n": Ask("count", over=("30d",), stream="fraud", by=("shop",)),
    "risk_mean": Ask("mean", ("fraud",), over=("30d",), stream="fraud", by=("shop",)),
    "later_mean": Ask("mean", ("fraud",), over=("30d",), stream="fraud", by=("shop",), late="7d"),
    "refunds_n": Ask("count", over=("30d",), stream="refund"),
    "refunds_sum": Ask("sum", ("refund",), over=("30d",), stream="refund"),
    "acted_n": Ask("count", over=("30d",), stream="decisions"),
    "acted_action": Ask("last", ("action",), over=("30d",), stream="decisions"),
}


@dataclass(eq=False)
class PlainEvent:
    """An event of a source; `reports` are those about it that have taken effect, each when it held, by outcome."""

    source: str
    id: str
    time: int
    arrived: int
    values: dict[str, Any]
    position: int = 0  # as the store has it
    reports: dict[str, list["PlainReport"]] = field(default_factory=dict)
    decision: "PlainDecision | None" = None


@dataclass(eq=False)
class PlainReport:
    """A report; `arrived` is None while it waits without saying when it arrived."""

    outcome: str
    id: str
    truth: Any
    corrects: bool
    arrived: int | None
    event: PlainEvent | None = None
    position: int = 0

    @property
    def precedence(self) -> tuple[bool, float, Any]:
        return self.corrects, float("inf") if self.arrived is None else self.arrived, self.truth

    @property
    def known(self) -> int:
        """From where it counts."""
        assert self.event
        return max(self.position, self.event.position + 1)


@dataclass(eq=False)
class PlainOther:
    """An entry that no timeline holds: a change of a model, or what a consumer derived."""

    source: str
    id: str
    position: int = 0


@dataclass(eq=False)
class PlainDecision:
    """A decision: its event, how many entries of the log it saw, the action, and the features that the store gave it."""

    event: PlainEvent
    seen: int
    action: str
    features: dict[str, str]
    position: int = 0


class Conflict(Exception):
    """An id that was used for other content."""


@dataclass
class PlainStore:
    """The log, as entries in their order, and the events and reports by their ids."""

    log: list[Any] = field(default_factory=list)
    events: dict[tuple[str, str], PlainEvent] = field(default_factory=dict)
    reports: dict[tuple[str, str], list[PlainReport]] = field(default_factory=dict)

    def accept(self, source: str, id: str, time: int, arrived: int, values: dict[str, Any]) -> bool:
        """Take an event; whether it is new."""
        known = self.events.get((source, id))
        if known:
            if (known.time, known.values) != (time, values):
                raise Conflict
            return False
        event = PlainEvent(source, id, time, arrived, values)
        self.events[source, id] = event
        self.log.append(event)
        for outcome in ("fraud", "refund") if source == "payments" else ():
            waited = self.reports.get((outcome, id), [])
            for report in waited:
                report.event = event
                report.arrived = time + MATURES[outcome] if report.arrived is None else report.arrived
            if waited:
                event.reports[outcome] = [max(waited, key=lambda report: report.precedence)]
        return True

    def report(self, outcome: str, id: str, truth: Any, corrects: bool, arrived: int | None) -> bool:
        """Take a report with an arrival, or None if it does not say; whether it is new."""
        reports = self.reports.setdefault((outcome, id), [])
        event = self.events.get(("payments", id))
        if event and arrived is None:
            arrived = event.time + MATURES[outcome]
        same_kind = [report for report in reports if report.corrects == corrects]
        if not corrects and same_kind:
            if same_kind[0].truth != truth:
                raise Conflict
            return False
        if any((report.truth, report.arrived) == (truth, arrived) for report in same_kind):
            return False
        self._add(PlainReport(outcome, id, truth, corrects, arrived, event))
        return True

    def correct_now(self, outcome: str, id: str, truth: Any, clock: int) -> bool:
        """Take a correction of a known event that arrives now; whether it is new."""
        reports = self.reports.setdefault((outcome, id), [])
        if reports and max(reports, key=lambda report: report.precedence).truth == truth:
            return False
        arrived = max([clock, *(report.arrived + 1 for report in reports if report.arrived is not None)])
        self._add(PlainReport(outcome, id, truth, True, arrived, self.events["payments", id]))
        return True

    def _add(self, report: PlainReport) -> None:
        self.reports[report.outcome, report.id].append(report)
        self.log.append(report)
        if report.event:
            held = report.event.reports.setdefault(report.outcome, [])
            if not held or report.precedence > held[-1].precedence:
                held.append(report)

    def waiting(self) -> list[PlainReport]:
        """The reports whose event has not arrived."""
        return [entry for entry in self.log if isinstance(entry, PlainReport) and entry.event is None]

    # -- what follows from the log ---------------------------------------------------------------------------------

    def rows(self, stream: str, card: int) -> list[tuple[Any, ...]]:
        """The timeline of a card: time, position, and for feedback minus the position of its event; then the values."""
        found: list[tuple[Any, ...]] = []
        for event in self.events.values():
            if event.values["card"] != card:
                continue
            if event.source == stream:
                found.append((event.time, event.position, 0, event.values))
            elif event.source == "payments" and stream in event.reports:
                report = event.reports[stream][-1]
                found.append((event.time, report.known, -event.position, {stream: report.truth}))
            elif event.decision and stream == "decisions":
                decision = event.decision
                found.append((event.time, decision.position, -event.position, {"action": decision.action}))
        return sorted(found, key=lambda row: row[:3])

    def world(self) -> World:
        """The log as the oracle takes it."""
        kinds = {"card": "int", "shop": "text", "page": "text", "segment": "text", "action": "text", "fraud": "bool"}
        amounts = {"amount": 100, "refund": 100, "score": 10**6}
        fields = {name: oracle.Field(kind) for name, kind in kinds.items()}
        fields |= {name: oracle.Field("number", scale) for name, scale in amounts.items()}
        streams = {
            "payments": Stream(fields, 90 * DAY),
            "visits": Stream(fields, 60 * DAY),
            "profiles": Stream(fields, 10**6 * DAY),
            "fraud": Stream(fields, 90 * DAY, "payments", {"fraud": False}, MATURES["fraud"]),
            "refund": Stream(fields, 90 * DAY, "payments"),
            "decisions": Stream(fields, 90 * DAY, "payments"),
        }
        for event in sorted(self.events.values(), key=lambda e: e.position):
            streams[event.source].events.append(oracle.Event(event.position, event.time, event.values))
            for outcome, reports in event.reports.items():
                versions: list[Any] = [(report.known, {outcome: report.truth}) for report in reports]
                streams[outcome].reports[event.position] = versions
            if event.decision:
                record = {"score": 500_000, "action": event.decision.action}
                streams["decisions"].reports[event.position] = [(event.decision.position, record)]
        return World(streams)

    def features(self, world: World, decision: PlainDecision) -> dict[str, Any]:
        """The features of a decision, by their names in `cards`."""
        event = decision.event
        moment = Moment(event.time, self.last_seen(decision), event.position, event.values)
        found: dict[str, Any] = {}
        for name, ask in ASKS.items():
            for end, value in world.answer(ask, moment).items():
                found[name if ask.verb == "latest" else f"{name}_{end}"] = value
        return found

    def last_seen(self, decision: PlainDecision) -> int:
        """The position of the last entry that a decision saw."""
        return max(getattr(entry, "position", 0) for entry in self.log[: decision.seen])
