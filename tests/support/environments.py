"""Production and staging side by side on shared servers, each with users of its own; staging may only read production."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType, ResourceType
from psycopg import sql

from mlpkg.settings import Settings
from mlpkg.store import mirrored_environment, store_place


def _let_use(kafka: Any, user: str, namespace: str) -> dict[str, str]:
    """Let a new user of Kafka do everything with the topics of a namespace; return the settings with which it logs in."""
    login = kafka.add_user(user)
    pattern = (f"{namespace}.", ResourcePatternType.PREFIXED, f"User:{user}", "*")
    rules = [
        AclBinding(kind, *pattern, AclOperation.ALL, AclPermissionType.ALLOW)
        for kind in (ResourceType.TOPIC, ResourceType.GROUP)
    ]
    for made in kafka.admin.create_acls(rules).values():
        made.result()
    return {"kafka": kafka.address, "kafka_user": user, "kafka_password": str(login["sasl.password"])}


def _make_role(postgres_url: str, role: str) -> str:
    """Make a role that may make schemas of its own in a database, and return the address with its login."""
    password = secrets.token_hex(8)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        name, database = sql.Identifier(role), sql.Identifier(postgres_url.rpartition("/")[2])
        connection.execute(sql.SQL("create role {} login password {}").format(name, sql.Literal(password)))
        connection.execute(sql.SQL("grant create, connect on database {} to {}").format(database, name))
    return f"postgresql://{role}:{password}@{postgres_url.rpartition('@')[2]}"


def _drop_role(postgres_url: str, role: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("drop owned by {}").format(sql.Identifier(role)))
        connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def section(settings: Settings, **more: str) -> str:
    """The lines of an environment in settings.ini, without passwords of Kafka and Redis."""
    names = ("state", "store", "namespace", "kafka", "kafka_user", "kafka_protocol", "postgres")
    lines = {name: str(getattr(settings, name)) for name in names} | more
    return "".join(f"{name} = {value}\n" for name, value in lines.items())


class Environments:
    """Two environments of one settings.ini: `production` and `staging`, which mirrors it."""

    def __init__(self, folder: Path, use_case: str, production: Settings, staging: Settings):
        self.folder, self.production = folder, production
        folder.mkdir(parents=True, exist_ok=True)
        text = f"[DEFAULT]\nuse_cases = {use_case}\n[production]\n{section(production)}"
        (folder / "settings.ini").write_text(f"{text}[staging]\n{section(staging, mirrors='production')}")
        name, _, target = use_case.partition("=")
        use_cases = {name.strip(): target.strip()}
        update = {"root": folder, "env": "staging", "mirrors": "production", "use_cases": use_cases}
        self.staging = staging.model_copy(update=update)

    @property
    def mirrored(self) -> Settings:
        """Production as staging reads it."""
        return mirrored_environment(self.staging)

    @property
    def variables(self) -> dict[str, str]:
        """What a command of staging needs in its environment."""
        secret = {"MLPKG_KAFKA_PASSWORD": self.staging.kafka_password, "MLPKG_REDIS": self.staging.redis}
        return {"MLPKG_ENV": "staging"} | {
            name: value for name, value in secret.items() if self.staging.store == "cluster"
        }


@contextmanager
def on_servers(
    folder: Path, kafka: Any, redis: Any, staging_redis: Any, postgres_url: str, use_case: str
) -> Iterator[Environments]:
    """Both environments on servers; their Kafka users and PostgreSQL roles are no superusers, and each has a Redis."""
    names = [f"t{secrets.token_hex(6)}" for _ in range(2)]
    made = []
    for name, environment, server in zip(names, ("production", "staging"), (redis, staging_redis), strict=True):
        servers = _let_use(kafka, name, name) | server.settings() | {"postgres": _make_role(postgres_url, name)}
        common = {"store": "cluster", "namespace": name, "kafka_protocol": "SASL_PLAINTEXT"}
        made.append(Settings(state=folder / environment, env=environment, **common, **servers))
    environments = Environments(folder, use_case, *made)
    try:
        yield environments
    finally:
        for settings in made:
            store_place(settings).remove()  # type: ignore[attr-defined]
        for name in names:
            _drop_role(postgres_url, name)


def in_files(folder: Path, use_case: str) -> Environments:
    """Both environments in files."""
    made = [Settings(state=folder / name, env=name) for name in ("production", "staging")]
    return Environments(folder, use_case, *made)


def allow_reading(environments: Environments, kafka: Any, postgres_url: str) -> list[str]:
    """Let staging read production, as an administrator of the servers does with `mlpkg up --reader`."""
    login = kafka.settings()
    admin = environments.production.model_copy(update=login | {"postgres": postgres_url})
    return store_place(admin).let_read(environments.staging.namespace)
