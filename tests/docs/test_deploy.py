"""The files of docs/deploy are what their schemas allow, and name only what mlpkg has."""

import copy
import re
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml
from paths import ROOT

from mlpkg.cli.main import mlpkg
from mlpkg.serve.routes import ROUTES
from mlpkg.settings import Settings

DEPLOY = ROOT / "docs" / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
OBJECTS = [(path.name, made) for path in MANIFESTS for made in yaml.safe_load_all(path.read_text())]
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
PAGE = (ROOT / "docs" / "deploy.md").read_text()


def is_valid_compose(path: Path) -> bool:
    """Whether the schema of the Compose Specification allows a file."""
    tool = Path(sysconfig.get_path("scripts"), "check-jsonschema")
    done = subprocess.run([tool, "--builtin-schema", "vendor.compose-spec", path], capture_output=True, text=True)
    return done.returncode == 0


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The pods of the manifests: the name of the object, the labels and the specification."""
    for _, made in OBJECTS:
        spec = made.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield made["metadata"]["name"], spec["template"]["metadata"]["labels"], spec["template"]["spec"]


def containers() -> Iterator[tuple[str, Sequence[str], dict[str, Any]]]:
    """The containers of mlpkg's image anywhere: name, command and environment."""
    for name, service in SERVICES.items():
        if service["image"].startswith("mlpkg"):
            yield f"compose {name}", service["command"], service.get("environment", {})
    for name, _, spec in pods():
        for container in spec["containers"]:
            environment = {variable["name"]: variable for variable in container["env"]}
            yield f"kubernetes {name}", container["command"], environment


CONTAINERS = list(containers())


def settings_texts() -> Iterator[tuple[str, str]]:
    yield "compose", (DEPLOY / "settings.ini").read_text()
    for _, made in OBJECTS:
        if made["kind"] == "ConfigMap":
            yield "kubernetes", made["data"]["settings.ini"]


@pytest.mark.parametrize("made", [pytest.param(made, id=f"{name}-{made['kind']}") for name, made in OBJECTS])
def test_a_manifest_is_what_kubernetes_takes(made: dict[str, Any]):
    newest = kubernetes_validate.latest_version()
    kubernetes_validate.validate(made, newest, strict=True)
    typing_error = copy.deepcopy(made) | {"specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(typing_error, newest, strict=True)


def test_the_compose_file_is_what_its_specification_allows(tmp_path: Path):
    assert is_valid_compose(COMPOSE)
    (tmp_path / "compose.yaml").write_text(COMPOSE.read_text().replace("healthcheck:", "healthchek:"))
    assert not is_valid_compose(tmp_path / "compose.yaml")


def parse(arguments: Sequence[str]) -> None:
    """Parse the arguments of `mlpkg`, and run nothing."""
    context = mlpkg.make_context("mlpkg", [*arguments], resilient_parsing=True)
    name, command, rest = mlpkg.resolve_command(context, [*arguments])
    assert command is not None
    command.make_context(name, rest, parent=context)


@pytest.mark.parametrize(
    ("name", "command"), [(name, command) for name, command, _ in CONTAINERS], ids=lambda value: str(value)
)
def test_a_command_is_one_that_mlpkg_has(name: str, command: Sequence[str]):
    if command[0] == "mlpkg":
        parse(command[1:])
        with pytest.raises(click.UsageError):
            parse([*command[1:], "--no-such-option"])
    else:
        assert (name, command[0]) == ("compose folders", "install")


def documented() -> set[str]:
    """The variables that are read by clients and named by the pages for operators."""
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("operations.md", "platform.md"))
    return {*re.findall(r"`((?:AWS_|PG)[A-Z_]+)\b", pages)}


@pytest.mark.parametrize(
    ("name", "environment"), [(name, env) for name, _, env in CONTAINERS], ids=lambda value: str(value)[:30]
)
def test_a_variable_is_one_that_mlpkg_or_a_client_reads(name: str, environment: dict[str, Any]):
    known = {f"MLPKG_{field.upper()}" for field in Settings.model_fields} | documented()
    assert set(environment) <= known
    assert "MLPKG_ENV" in environment or name == "compose folders"


def test_the_image_sets_variables_and_runs_a_command_that_mlpkg_has():
    text = (DEPLOY / "Dockerfile").read_text()
    names = set(re.findall(r"\b([A-Z_]+)=", text.partition("\nENV ")[2]))
    assert names - {"PYTHONDONTWRITEBYTECODE"} <= {f"MLPKG_{field.upper()}" for field in Settings.model_fields}
    parse(yaml.safe_load(text.rpartition("CMD ")[2])[1:])


@pytest.mark.parametrize(("where", "text"), list(settings_texts()), ids=lambda value: value.strip()[:10])
def test_the_settings_are_ones_that_mlpkg_has(where: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "settings.ini").write_text(text)
    monkeypatch.setenv("MLPKG_ENV", "production")
    settings = Settings.load(tmp_path)
    names = set(re.findall(r"^([a-z_]+) = ?", text, re.MULTILINE))
    assert names - {"use_cases"} <= settings.model_fields_set <= {*Settings.model_fields}, where
    assert settings.store == "cluster" and settings.models and settings.archive and not settings.trust_loopback
    assert (settings.replication, settings.min_insync) == (3, 2), "one broker may be away"
    assert not settings.kafka_password and "@" not in settings.redis and ":" not in settings.postgres.split("@")[0][13:]


def test_probes_ask_the_paths_of_the_service():
    probing = {path for route in ROUTES if route.is_probe for path in (route.path, *route.aliases)}
    asked = [
        container[probe]["httpGet"]["path"]
        for _, _, spec in pods()
        for container in spec["containers"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        if probe in container
    ]
    asked += re.findall(r"localhost:3000([^']*)'", COMPOSE.read_text())
    assert len(asked) == 4 and set(asked) <= probing


def test_selectors_select_the_pods_and_nothing_may_be_root():
    labels = [labels for _, labels, _ in pods()]
    selectors = [
        made["spec"].get("podSelector", made["spec"].get("selector", {}))
        for _, made in OBJECTS
        if made["kind"] in ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy")
    ]
    for selector in selectors:
        wanted = selector.get("matchLabels", selector)
        assert wanted and any(wanted.items() <= own.items() for own in labels)
    for name, _, spec in pods():
        assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"], name
        for container in spec["containers"]:
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"], name
            assert own["capabilities"] == {"drop": ["ALL"]} and container["resources"]["limits"]["memory"], name


def test_the_page_names_every_key_of_the_secret_and_every_variable_of_the_compose_file():
    keys = {
        variable["valueFrom"]["secretKeyRef"]["key"]
        for _, _, spec in pods()
        for container in spec["containers"]
        for variable in container["env"]
        if "valueFrom" in variable
    }
    assert keys == set(re.findall(r"--from-\w+=([a-z-]+)=", PAGE))
    variables = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE.read_text()))
    assert variables == set(re.findall(r"^ *export ([A-Z_]+)=", PAGE, re.MULTILINE))


def test_every_file_is_on_the_page():
    files = {path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*") if path.is_file()}
    assert files == set(re.findall(r"\]\(deploy/([^)#]+)\)", PAGE))
