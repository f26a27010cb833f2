"""Tables of a real PostgreSQL are followed by the real connector, configured as `docs/platform.md` says."""

import json
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, LiteralString

import members
import psycopg
import pytest
from bank import put_live
from local_servers.connect_server import Connect
from local_servers.kafka_server import Kafka
from paths import ROOT, SUPPORT
from psycopg.conninfo import conninfo_to_dict

from mlpkg import lab
from mlpkg.decisions import Decider, Decision, verify
from mlpkg.settings import Settings
from mlpkg.store import open_store, store_place
from mlpkg.times import instant, iso, now

PATIENCE = 120  # seconds, on a busy machine
TABLE = "CREATE TABLE members (id int PRIMARY KEY, tier int NOT NULL, credit numeric(9, 2), born date, password text)"


def connector_of_the_page() -> dict[str, str]:
    """The configuration of the connector that the page shows."""
    (block,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "platform.md").read_text(), re.DOTALL)
    return json.loads(block)


class Club:
    """A database with a table of members, a connector, and a process that follows the changes into a store."""

    def __init__(self, url: str, connect: Connect, settings: Settings, prefix: str):
        self.database = psycopg.connect(url, autocommit=True)
        self.url, self.connect, self.settings, self.prefix = url, connect, settings, prefix
        self.connectors: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.store: Any = open_store(settings)
        put_live(members.case, self.store)
        self.decider = Decider(members.case, self.store)

    def does(self, statement: LiteralString) -> None:
        self.database.execute(statement)

    def connects(self, **changed: str) -> None:
        """Start a connector that knows nothing of earlier ones, so that it begins with a snapshot."""
        name = f"{self.prefix}{len(self.connectors)}"
        at = conninfo_to_dict(self.url)
        own = {"database.hostname": at["host"], "database.port": at["port"], "database.user": at["user"]}
        own |= {"database.password": at["password"], "database.dbname": at["dbname"], "topic.prefix": self.prefix}
        own |= {"slot.name": name, "publication.name": name, "topic.creation.default.replication.factor": "1"}
        page = connector_of_the_page()
        assert own.keys() < page.keys(), "the page shows what a builder has to set"
        self.connect.call("PUT", f"/connectors/{name}/config", page | own | changed)
        self.connectors.append(name)
        self.until(lambda: self.connect.state_of(name) == "RUNNING")

    def disconnects(self) -> None:
        """Remove the connector and its place in the log of the database."""
        name = self.connectors[-1]
        self.connect.forget(name)
        slots = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
        self.until(lambda: (self.database.execute(slots, [name]).fetchone() or [False])[0] is False)
        self.database.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", [name]
        )

    def follows(self) -> None:
        """Start `mlpkg changes`."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlpkg.cli", "changes", "visits"], cwd=self.settings.root, stdin=subprocess.DEVNULL
        )

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until a condition holds, and return what it gave."""
        until = time.monotonic() + PATIENCE
        while not (result := condition()):
            assert time.monotonic() < until, f"nothing came; {[*map(self.connect.state_of, self.connectors[-1:])]}"
            assert self.process is None or self.process.poll() is None, "mlpkg changes has ended"
            time.sleep(0.01)
        return result

    def visits(self, member: int) -> Decision:
        return self.decider.decide({"id": secrets.token_hex(8), "time": iso(now()), "member": member})

    def known(self, member: int) -> tuple[Any, ...]:
        """What a decision knows of a member now."""
        features = self.visits(member).features
        return tuple(features[f"known_{name}"] for name in ("tier", "credit", "born"))

    def rows(self, member: int) -> list[dict[str, Any]]:
        """The rows of a member in the log."""
        rows = [json.loads(entry.body) for entry in self.store.read(streams=["members"])]
        return [row for row in rows if row["member"] == member]

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
        for name in self.connectors[-1:]:
            self.connect.forget(name)
        self.database.close()
        self.store.close()


@pytest.fixture
def club(
    kafka_server: Kafka,
    redis_server: Any,
    postgres_server: Any,
    connect_server: Connect,
    postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Club]:
    prefix = f"t{secrets.token_hex(6)}"
    servers = kafka_server.settings() | redis_server.settings() | postgres_server.settings()
    lines = [f"{name} = {value}" for name, value in servers.items()]
    lines += ["store = cluster", f"namespace = {prefix}", "kafka_protocol = SASL_PLAINTEXT"]
    lines += ["use_cases = visits = members:case", f"changes = members = {prefix}.public.members"]
    (tmp_path / "settings.ini").write_text("\n".join(["[DEFAULT]", *lines, ""]))
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    settings = Settings.load(tmp_path)
    made = Club(postgres_url, connect_server, settings, prefix)
    try:
        made.does(TABLE)
        yield made
    finally:
        made.close()
        store_place(settings).remove()  # type: ignore[attr-defined]
        kafka_server.delete_topics(f"{prefix}.public")


def test_a_row_that_changes_is_in_the_next_decision_and_old_moments_keep_the_old_value(club: Club):
    """The test waits longer than the second that the change may take, and says how long it took."""
    club.does("INSERT INTO members VALUES (7, 1, 12.50, '1990-05-17', 'secret')")
    club.connects()
    club.follows()
    club.until(lambda: club.known(7)[0] == 1)
    assert club.known(7) == (1, 12.5, instant("1990-05-17") // 1_000_000)
    assert club.known(8) == (None, None, None)
    old = club.visits(7)

    began = time.monotonic()
    club.does("UPDATE members SET tier = 2, credit = NULL WHERE id = 7")
    club.until(lambda: club.known(7)[:2] == (2, None))
    print(f"an update was in a decision after {time.monotonic() - began:.2f} s")
    club.does("INSERT INTO members VALUES (8, 3)")
    club.until(lambda: club.known(8) == (3, None, None))
    club.does("UPDATE members SET id = 9 WHERE id = 8")
    club.until(lambda: club.known(9)[0] == 3 and club.known(8)[0] is None)
    before_deletion = club.visits(7)
    club.does("DELETE FROM members WHERE id = 7")
    club.until(lambda: club.known(7) == (None, None, None))
    club.does("INSERT INTO members VALUES (7, 5)")
    club.until(lambda: club.known(7)[0] == 5)

    assert verify(members.case, club.store).mismatches == 0
    frame = lab.training_set(members.features, now() - 10**9 * 3600, now(), use_case=members.case, store=club.store)
    tiers = frame.set_index("id")["known_tier"]
    assert (tiers[old.event], tiers[before_deletion.event]) == (1, 2)
    explained = lab.explain(members.features, "known_tier", old.event, use_case=members.case, store=club.store)
    assert explained.value == 1
    assert [row.get("tier") for row in club.rows(7)] == [1, 2, None, 5]
    assert not club.store.dead_letters()


def test_a_new_snapshot_counts_nothing_twice(club: Club):
    """A connector that lost its place reads all rows again: those that changed meanwhile count, the others do not."""
    club.does("INSERT INTO members SELECT n, n FROM generate_series(1, 9) n")
    club.connects()
    club.follows()
    club.until(lambda: club.known(9)[0] == 9)
    club.does("UPDATE members SET tier = 8 WHERE id = 9")
    club.until(lambda: club.known(9)[0] == 8)
    club.disconnects()
    club.does("UPDATE members SET tier = 0 WHERE id = 5")
    club.connects()
    club.until(lambda: club.known(5)[0] == 0)
    club.does("UPDATE members SET tier = 9 WHERE id = 9")
    club.until(lambda: club.known(9)[0] == 9)
    assert [len(club.rows(member)) for member in range(1, 10)] == [1, 1, 1, 1, 2, 1, 1, 1, 3]
    assert club.visits(9).features["changes_n_all"] == 3 and club.visits(4).features["changes_n_all"] == 1
    assert verify(members.case, club.store).mismatches == 0


def test_changes_of_the_schema_and_what_cannot_be_read_are_said(club: Club):
    """A column that the contract does not name is nothing; a field without its column is a dead letter, until it is back."""
    club.does("INSERT INTO members VALUES (1, 1, 5)")
    club.connects(
        **{
            "value.converter.schemas.enable": "true",
            "time.precision.mode": "adaptive",
            "decimal.handling.mode": "precise",
        }
    )
    club.follows()
    club.until(lambda: club.known(1) == (1, 5, None))
    club.does("ALTER TABLE members ADD nickname text DEFAULT 'x', DROP password")
    club.does("UPDATE members SET tier = 2, born = '1955-01-02' WHERE id = 1")
    club.until(lambda: club.known(1) == (2, 5, instant("1955-01-02") // 1_000_000))
    club.does("ALTER TABLE members DROP credit")
    club.does("UPDATE members SET tier = 3 WHERE id = 1")
    club.until(lambda: club.known(1)[:2] == (3, None))
    club.does("ALTER TABLE members RENAME tier TO level")
    club.does("UPDATE members SET level = 4 WHERE id = 1")
    club.does("TRUNCATE members")
    club.does("ALTER TABLE members RENAME level TO tier")
    club.does("INSERT INTO members VALUES (2, 44), (3, 4)")
    club.until(lambda: club.known(3)[0] == 4)
    club.until(lambda: len(club.store.dead_letters()) == 3)
    letters = {(letter.field, letter.value, letter.reason.partition(";")[0]) for letter in club.store.dead_letters()}
    assert letters == {
        ("Member.tier", "", "has no column 'tier' in the database"),
        ("Member.op", "t", "is a TRUNCATE, which names no rows, so all rows stay as they were"),
        ("Member.tier", "44", "is above 9"),
    }
    assert club.known(1)[0] == 3 and club.known(2)[0] is None


def test_the_command_ends_when_no_change_is_left(club: Club):
    """It says what became of the rows; run again, it has nothing to do."""
    club.does("INSERT INTO members VALUES (1, 1), (2, 2)")
    club.connects()
    counts: list[dict[str, int]] = []
    said: list[str] = []

    def checked() -> str:
        command = [sys.executable, "-m", "mlpkg.cli", "check", "visits"]
        ended = subprocess.run(
            command, cwd=club.settings.root, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        return next(line for line in ended.stdout.splitlines() if "changes" in line)

    def catches_up() -> bool:
        command = [sys.executable, "-m", "mlpkg.cli", "changes", "visits", "--until-caught-up", "--json"]
        ended = subprocess.run(
            command, cwd=club.settings.root, stdin=subprocess.DEVNULL, capture_output=True, check=True
        )
        counts.append(json.loads(ended.stdout))
        said.append(ended.stderr.decode())
        return counts[-1]["new"] > 0

    club.until(lambda: checked().startswith("· changes: members follows ") and ", 0 " not in checked())
    club.until(catches_up)
    assert counts[-1] == {"new": 2, "known": 0, "repeated": 0, "refused": 0} and not catches_up()
    assert club.known(2)[0] == 2 and not said[-1]
    assert checked().startswith("✓ changes: members follows ") and checked().endswith(", 0 messages wait")
    club.does("ALTER TABLE members RENAME credit TO bonus")
    club.does("UPDATE members SET bonus = 7 WHERE id IN (1, 2)")
    club.until(catches_up)
    assert said[-1].count("the rows of the table members have no column 'credit' in the database") == 1
    assert club.known(1)[:2] == (1, None)
