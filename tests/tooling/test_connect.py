"""Kafka Connect with Debezium: rows of PostgreSQL that change become messages."""

import json
import time
from contextlib import closing

import psycopg
import pytest
from confluent_kafka import Consumer
from local_servers.connect_server import Connect
from local_servers.kafka_server import Kafka
from local_servers.parts import Missing
from local_servers.process import ServerError


def test_a_row_that_changes_becomes_messages(
    kafka_server: Kafka, connect_server: Connect, kafka_prefix: str, postgres_url: str
):
    """A row that was there, an update with the row before it, a deletion, and the tombstone that follows it."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE shop (id int PRIMARY KEY, risk float)")
        connection.execute("ALTER TABLE shop REPLICA IDENTITY FULL")
        connection.execute("INSERT INTO shop VALUES (1, 0.5)")
        name = kafka_prefix.strip("-")
        connect_server.follow(name, postgres_url, kafka_prefix.rstrip("-"), table_include_list="public.shop")
        settings = kafka_server.client_settings() | {"group.id": kafka_prefix, "auto.offset.reset": "earliest"}
        settings |= {"isolation.level": "read_committed", "topic.metadata.refresh.interval.ms": 500}
        with closing(Consumer(settings)) as consumer:
            consumer.subscribe([f"{name}.public.shop"])
            assert change(connect_server, consumer, name) == ("r", None, {"id": 1, "risk": 0.5})
            connection.execute("UPDATE shop SET risk = 0.75")
            assert change(connect_server, consumer, name) == ("u", {"id": 1, "risk": 0.5}, {"id": 1, "risk": 0.75})
            connection.execute("DELETE FROM shop")
            assert change(connect_server, consumer, name) == ("d", {"id": 1, "risk": 0.75}, None)
            assert change(connect_server, consumer, name) is None
        connect_server.forget(name)


def change(connect: Connect, consumer: Consumer, name: str) -> tuple[str, object, object] | None:
    """The next message: what was done, the row before it and the row after it; None is a tombstone."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        message = consumer.poll(1)
        if message is None or message.error():  # such as a topic that is not there yet
            connect.state_of(name)
            continue
        assert json.loads(message.key() or b"") == {"id": 1}
        body = message.value()
        row = json.loads(body) if body else None
        return row and (row["op"], row["before"], row["after"])
    raise ServerError(f"no message came; {connect.state_of(name)}; {connect.end_of_log()}")


def test_connect_names_its_missing_jars(kafka_server: Kafka, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        Missing, match="the folder with the jars of connect is missing; get it with: make servers-install"
    ):
        Connect(tmp_path / "connect", kafka_server).start()
