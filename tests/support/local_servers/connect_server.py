"""Kafka Connect with the PostgreSQL connector of Debezium: the changes of a database's rows become messages in Kafka."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from psycopg.conninfo import conninfo_to_dict

from local_servers import parts
from local_servers.kafka_server import JAVA, LIGHT, USER, Kafka
from local_servers.process import HOST, Server, ServerError, write_private

CONFIGURATION = """
bootstrap.servers={kafka}
group.id={group}
config.storage.topic={group}-configs
offset.storage.topic={group}-offsets
status.storage.topic={group}-status
config.storage.replication.factor=1
offset.storage.replication.factor=1
offset.storage.partitions=1
status.storage.replication.factor=1
status.storage.partitions=1
exactly.once.source.support=enabled
key.converter=org.apache.kafka.connect.json.JsonConverter
key.converter.schemas.enable=false
value.converter=org.apache.kafka.connect.json.JsonConverter
value.converter.schemas.enable=false
listeners=http://{address}
rest.advertised.host.name={host}
rest.extension.classes=org.apache.kafka.connect.rest.basic.auth.extension.BasicAuthSecurityRestExtension
"""
LOGIN = """
security.protocol=SASL_PLAINTEXT
sasl.mechanism=SCRAM-SHA-256
sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required username="{user}" password="{password}";
"""
CALLERS = """
KafkaConnect {{
  org.apache.kafka.connect.rest.basic.auth.extension.PropertyFileLoginModule required file="{file}";
}};
"""


class Connect(Server):
    """One worker of Kafka Connect."""

    name = "Kafka Connect"

    def __init__(self, folder: Path, kafka: Kafka) -> None:
        super().__init__(folder)
        self.kafka = kafka

    def find_parts(self) -> None:
        parts.java()
        parts.jars("connect")

    def prepare(self) -> None:
        login = LOGIN.format(user=USER, password=self.kafka.password)
        text = CONFIGURATION.format(
            kafka=self.kafka.address, group=f"connect-{self.port}", host=HOST, address=self.address
        )
        for client in ("", "admin.", "producer.", "consumer."):
            text += "".join(f"{client}{line}\n" for line in login.split("\n") if line)
        write_private(self.folder / "connect.properties", text)
        write_private(self.folder / "callers.properties", f"{USER}={self.password}\n")
        write_private(self.folder / "callers.jaas", CALLERS.format(file=self.folder / "callers.properties"))

    def command(self) -> list[str | Path]:
        options = [
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            f"-Djava.security.auth.login.config={self.folder / 'callers.jaas'}",
        ]
        java = [parts.java(), *JAVA, *LIGHT, *options, "-cp", f"{parts.jars('connect')}/*"]
        return [*java, "org.apache.kafka.connect.cli.ConnectDistributed", self.folder / "connect.properties"]

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Call the HTTP interface; raise `HTTPError` with the answer when it refuses."""
        login = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(f"http://{self.address}{path}", data, headers, method=method), timeout=60) as answer:
            return json.loads(answer.read() or "null")

    def answers(self) -> bool:
        try:
            return self.call("GET", "/connectors") is not None
        except (HTTPError, URLError, ConnectionError, TimeoutError):
            return False

    def follow(self, name: str, url: str, topics: str, **options: str) -> None:
        """Follow a database of PostgreSQL: the changes of a table go to the topic `TOPICS.SCHEMA.TABLE`.

        `options` are further settings of the connector, with `_` for `.`, such as `table_include_list`.
        """
        database = conninfo_to_dict(url)
        config: Mapping[str, object] = {
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "database.hostname": database["host"],
            "database.port": database["port"],
            "database.user": database["user"],
            "database.password": database["password"],
            "database.dbname": database["dbname"],
            "plugin.name": "pgoutput",
            "slot.name": name.replace("-", "_"),
            "publication.name": name.replace("-", "_"),
            "topic.prefix": topics,
            "topic.creation.default.replication.factor": 1,
            "topic.creation.default.partitions": 1,
            **{option.replace("_", "."): value for option, value in options.items()},
        }
        self.call("PUT", f"/connectors/{name}/config", config)

    def state_of(self, name: str) -> str:
        """RUNNING when the connector and its task run; raise `ServerError` with the reason when one has failed."""
        try:
            status = self.call("GET", f"/connectors/{name}/status")
        except HTTPError as error:
            if error.code == 404:
                return "UNASSIGNED"  # it is known, but no worker has it yet
            raise
        running = [status["connector"], *status["tasks"]]
        for part in running:
            if part["state"] == "FAILED":
                raise ServerError(f"the connector {name} failed: {part.get('trace')}")
        return "RUNNING" if len(running) > 1 and all(part["state"] == "RUNNING" for part in running) else "UNASSIGNED"

    def forget(self, name: str) -> None:
        """Follow the database no more; its replication slot stays until the database is dropped."""
        self.call("DELETE", f"/connectors/{name}")
