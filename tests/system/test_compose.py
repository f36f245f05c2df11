"""`compose.yaml` lets `.env` set what a process takes, and says the same defaults."""

import re
from typing import Any

import pytest
from pydantic_settings import BaseSettings
from ruamel.yaml import YAML

import configurator.settings
import service_a.settings
import service_b.results.settings
import service_b.settings
from docker.first_start import APP, HANDED_OUT, SERVER
from tests.system.spawning import ROOT

PROCESSES: dict[str, type[BaseSettings]] = {
    "service_a": service_a.settings.Settings,
    "service_b": service_b.settings.Settings,
    "service_b_results": service_b.results.settings.Settings,
    "configurator": configurator.settings.Settings,
}
OWN = {"REUSE_PORT"}
"""One process has a container's port to itself."""
NAMES = {("service_a", "APP_NAME"): "SERVICE_A_NAME", ("service_b", "APP_NAME"): "SERVICE_B_NAME"}
"""Two processes take these; a `.env` is for all of them."""
IN_A_NETWORK = {
    "RMQ_HOST": "rabbitmq",
    "POSTGRES_HOST": "postgres",
    "POSTGRES_USER": "service",
    "SERVICE_A_URL": "http://service_a:7777",
    "RESULTS_URL": "http://service_b_results:7775",
}
RMQ_USERS = {"service_b": "web", "service_b_results": "results", "configurator": "configurator"}
SECRETS = {"POSTGRES_PASSWORD", "RMQ_PASSWORD", "LEASE_TOKEN", "IDEMPOTENCY_SECRET"}
"""They come from files that are made at the first start, unless somebody names others."""
IN_A_VOLUME = {"SEAL_PUBLIC_KEY_FILE": "seal.pub", "SEAL_KEY_FILE": "seal.key"}
"""Files that are there unless others are named; an empty name leaves parameters unsealed."""
FIXED = {"APP_HOST", "APP_PORT", "HEALTH_HOST", "HEALTH_PORT"}
"""What the file itself relies on: where its health checks and its published ports lead."""
HEALTH_PORTS = {"service_a": 7777, "service_b": 7773, "service_b_results": 7775, "configurator": 7774}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    loaded: dict[str, Any] = load()["services"]
    return loaded


def load_text() -> str:
    return (ROOT / "compose.yaml").read_text()


def load() -> Any:
    return YAML(typ="safe").load(load_text())


def default(settings: type[BaseSettings], name: str) -> str:
    """A setting's default as a variable has it."""
    value = settings.model_fields[name.lower()].default
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    if name in SECRETS:
        return ""
    if name == "LOG_FORMAT":
        return "json"  # Nobody reads a container's log at a terminal.
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("service", PROCESSES)
def test_every_variable_goes_through_with_its_default(service: str, services: dict[str, Any]) -> None:
    settings, environment = PROCESSES[service], services[service]["environment"]
    wanted = {name.upper() for name in settings.model_fields} - OWN
    if service == "service_a":
        wanted -= {"HEALTH_HOST", "HEALTH_PORT"}
    secrets = {f"{name}_FILE" for name in SECRETS & wanted}
    assert set(environment) == wanted | secrets
    for name, value in environment.items():
        if name in secrets:
            file = name.removesuffix("_FILE").lower()
            assert value == f"${{{name}-/run/secrets/{file}}}"
            assert file in HANDED_OUT[service][1]
        elif name in IN_A_VOLUME:
            assert value == f"${{{name}-/run/secrets/{IN_A_VOLUME[name]}}}"
            assert IN_A_VOLUME[name] in HANDED_OUT[service][1]
        elif name in FIXED:
            assert "$" not in str(value)
        else:
            variable = NAMES.get((service, name), name)
            users = {"RMQ_USER": RMQ_USERS.get(service)}
            expected = (IN_A_NETWORK | users).get(name) or default(settings, name)
            assert value == f"${{{variable}:-{expected}}}"


@pytest.mark.parametrize("service", PROCESSES)
def test_a_process_is_watched_where_its_clients_do_not_come(service: str, services: dict[str, Any]) -> None:
    port = HEALTH_PORTS[service]
    environment = services[service]["environment"]
    assert int(environment["HEALTH_PORT" if "HEALTH_PORT" in environment else "APP_PORT"]) == port
    assert re.findall(r":(\d+)/health", " ".join(services[service]["healthcheck"]["test"])) == [str(port)]
    if service != "service_a":
        assert all(not published.endswith(f":{port}") for published in services[service].get("ports", []))


def test_no_password_stands_in_the_file() -> None:
    """Neither one that works, nor the default of one."""
    stated = re.findall(r"^ *([A-Z_]*(?:PASS|PASSWORD|_TOKEN|_SECRET|COOKIE)): (.*)$", load_text(), re.MULTILINE)
    stated.remove(("MAX_TASKS_PER_TOKEN", "${MAX_TASKS_PER_TOKEN:-}"))
    assert set(stated) == {(name, f"${{{name}:-}}") for name in SECRETS}
    assert not re.findall(r"[a-z]+://[^/\s]*@", load_text())


def test_nothing_is_open_to_other_machines(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert len(published) == 5
    assert all(re.match(r"\$\{[A-Z_]+_BIND:-127\.0\.0\.1\}:", port) for port in published)


def test_each_container_has_no_more_than_it_needs(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        # Who hands the secrets out gives them away.
        assert service.get("cap_add", []) == (["CHOWN"] if name == "secrets" else []), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "pids_limit"} <= set(service), name
        assert not service.get("privileged"), name


def test_service_a_is_on_a_network_of_its_own(services: dict[str, Any]) -> None:
    networks = {name: set(service.get("networks", [])) for name, service in services.items()}
    assert networks.pop("service_a") == {"service_a"}
    assert networks.pop("configurator") == {"service_a", "data"}
    assert networks.pop("secrets") == set()
    assert services["secrets"]["network_mode"] == "none"
    assert all(on == {"data"} for on in networks.values())
    assert set(load()["networks"]) == {"service_a", "data"}


def test_each_service_sees_its_own_secrets_alone(services: dict[str, Any]) -> None:
    seen = {}
    for name, service in services.items():
        for volume in service.get("volumes", []):
            if isinstance(volume, dict):
                assert (volume["source"], volume["target"], volume["read_only"]) == ("secrets", "/run/secrets", True)
                seen[name] = volume["volume"]["subpath"]
            else:
                assert not volume.startswith("secrets:") or name == "secrets"
    assert seen == {name: name for name in HANDED_OUT}
    users = dict.fromkeys(seen, APP) | {"postgres": SERVER, "rabbitmq": SERVER}
    assert {name: reader for name, (reader, _) in HANDED_OUT.items()} == users
    for name in seen:
        assert services[name]["depends_on"]["secrets"] == {"condition": "service_completed_successfully"}
