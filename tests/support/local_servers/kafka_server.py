"""Kafka in KRaft mode: one broker, or several, each a Java process that is a controller too."""

import base64
import contextlib
import secrets
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Self

from background import free_port
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from local_servers import parts
from local_servers.process import HOST, Remembered, Server, ServerError, write_private

USER = "mlpkg"
JAVA = ["-XX:+UseSerialGC", "-XX:-UsePerfData", "-Dorg.slf4j.simpleLogger.showDateTime=true"]
LIGHT = (
    "-Xmx256m",
    "-XX:TieredStopAtLevel=1",
)  # 340 MB in all; compiling less saves a third of the start, not for measuring

# Clients log in with SCRAM, controllers with PLAIN, as there is no SCRAM before they have a quorum.
CONFIGURATION = """
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners=CLIENT://{address},CONTROLLER://{host}:{controller_port}
advertised.listeners=CLIENT://{address}
inter.broker.listener.name=CLIENT
controller.listener.names=CONTROLLER
listener.security.protocol.map=CLIENT:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-256
sasl.mechanism.controller.protocol=PLAIN
listener.name.client.sasl.enabled.mechanisms=SCRAM-SHA-256
listener.name.client.scram-sha-256.sasl.jaas.config={scram} required username="{user}" password="{password}";
listener.name.controller.sasl.enabled.mechanisms=PLAIN
listener.name.controller.plain.sasl.jaas.config={plain} required username="{user}" password="{password}" user_{user}="{password}";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:{user}
log.dirs={data}
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
default.replication.factor={replicas}
min.insync.replicas={in_sync}
offsets.topic.num.partitions=4
offsets.topic.replication.factor={replicas}
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
"""


class Broker(Server):
    """One broker of a cluster."""

    def __init__(self, cluster: "Kafka", node: int) -> None:
        super().__init__(cluster.folder / f"broker-{node}")
        self.cluster, self.node, self.name = cluster, node, f"Kafka broker {node}"

    def find_parts(self) -> None:
        self.cluster.find_parts()

    @property
    def controller_port(self) -> int:
        return self.remembered("controller_port", free_port)

    @property
    def password(self) -> str:
        return self.cluster.password

    def prepare(self) -> None:
        brokers = self.cluster.brokers
        text = CONFIGURATION.format(
            node=self.node,
            host=HOST,
            address=self.address,
            controller_port=self.controller_port,
            voters=",".join(f"{broker.node}@{HOST}:{broker.controller_port}" for broker in brokers),
            scram="org.apache.kafka.common.security.scram.ScramLoginModule",
            plain="org.apache.kafka.common.security.plain.PlainLoginModule",
            user=USER,
            password=self.password,
            data=self.folder / "data",
            replicas=len(brokers),
            in_sync=min(2, len(brokers)),
        )
        text += "".join(f"{name}={value}\n" for name, value in self.cluster.options.items())
        write_private(self.folder / "server.properties", text)
        shutil.rmtree(self.folder / "data", ignore_errors=True)  # of a start that was cut off
        secret = f"SCRAM-SHA-256=[name={USER},password={self.password}]"
        tool = ["kafka.tools.StorageTool", "format", "-t", self.cluster.id, "--add-scram", secret]
        formatted = subprocess.run(
            [*self._java("-XX:TieredStopAtLevel=1"), *tool, "-c", self.folder / "server.properties"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if formatted.returncode:
            raise ServerError(f"the folder of {self.name} was not formatted:\n{formatted.stdout}{formatted.stderr}")

    def _java(self, *options: str) -> list[str | Path]:
        return [parts.java(), *JAVA, *options, "-cp", f"{parts.jars('kafka')}/*"]

    def command(self) -> list[str | Path]:
        level = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        return [*self._java(*self.cluster.java, level), "kafka.Kafka", self.folder / "server.properties"]

    def answers(self) -> bool:
        """Whether it is a broker of the cluster that lets clients in."""
        client = AdminClient(self.cluster.client_settings() | {"bootstrap.servers": self.address, "log_level": 0})
        with contextlib.suppress(KafkaException):
            return self.node in client.list_topics(timeout=2).brokers
        return False


class Kafka(Remembered):
    """A cluster of brokers; what is done to it is done to all of them.

    `options` are further lines of server.properties, `java` the options of Java for one broker.
    """

    name = "Kafka"

    def __init__(
        self,
        folder: Path,
        brokers: int = 1,
        options: Mapping[str, object] | None = None,
        java: Sequence[str] = LIGHT,
    ) -> None:
        super().__init__(folder)
        self.options, self.java = options or {}, java
        self.brokers = [Broker(self, node) for node in range(1, self.remembered("brokers", lambda: brokers) + 1)]

    def find_parts(self) -> None:
        parts.java()
        parts.jars("kafka")

    @property
    def id(self) -> str:
        """128 bits; the first of them are 0, as a dash in front would be taken for an option."""
        bits = b"\0" + secrets.token_bytes(15)
        return self.remembered("id", lambda: base64.urlsafe_b64encode(bits).decode().rstrip("="))

    @property
    def address(self) -> str:
        return ",".join(broker.address for broker in self.brokers)

    def client_settings(self, user: str = USER, password: str | None = None) -> dict[str, str | int | float | bool]:
        """What a client of confluent-kafka needs to log in; without `user`, as the one who may do all."""
        return {
            "bootstrap.servers": self.address,
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "SCRAM-SHA-256",
            "sasl.username": user,
            "sasl.password": self.password if password is None else password,
        }

    def settings(self) -> dict[str, str]:
        return {"kafka": self.address, "kafka_user": USER, "kafka_password": self.password}

    @cached_property
    def admin(self) -> AdminClient:
        return AdminClient(self.client_settings() | {"log_level": 0})

    def add_user(self, name: str) -> dict[str, str | int | float | bool]:
        """Let a further user log in, who may do nothing until ACLs allow it; return what its clients need."""
        password = secrets.token_hex(16)
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        wanted = UserScramCredentialUpsertion(name, info, password.encode())
        self.admin.alter_user_scram_credentials([wanted])[name].result()
        return self.client_settings(name, password)

    def delete_topics(self, prefix: str) -> None:
        """Delete the topics whose names begin with `prefix`."""
        names = [name for name in self.admin.list_topics(timeout=30).topics if name.startswith(prefix)]
        for deleted in self.admin.delete_topics(names).values() if names else ():
            deleted.result()

    @property
    def is_running(self) -> bool:
        return all(broker.is_running for broker in self.brokers)

    @property
    def pids(self) -> list[int]:
        return [broker.pid for broker in self.brokers if broker.pid]

    @property
    def log(self) -> Path:
        return self.brokers[0].log

    def start(self) -> Self:
        for broker in self.brokers:  # before several threads ask for them
            broker.remember(port=broker.port, controller_port=broker.controller_port)
        self.remember(id=self.id, password=self.password)
        self._each(lambda broker: broker.launch())
        self._each(lambda broker: broker.wait_until_ready())
        return self

    def stop(self) -> None:
        self._each(lambda broker: broker.stop())

    def kill(self) -> None:
        self._each(lambda broker: broker.kill())

    def restart(self) -> Self:
        self.stop()
        return self.start()

    def pause(self) -> None:
        self._each(lambda broker: broker.pause())

    def resume(self) -> None:
        self._each(lambda broker: broker.resume())

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _each(self, do: Callable[[Broker], object]) -> None:
        """Do the same with all brokers at the same time: a controller without its quorum waits for the others."""
        with ThreadPoolExecutor(len(self.brokers)) as pool:
            list(pool.map(do, self.brokers))
