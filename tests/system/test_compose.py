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
    "SERVICE_A_URL": "http://service_a:7777",
    "RESULTS_URL": "http://service_b_results:7775",
}
FIXED = {"APP_HOST", "APP_PORT", "HEALTH_HOST", "HEALTH_PORT"}
"""What the file itself relies on: where its health checks and its published ports lead."""
HEALTH_PORTS = {"service_a": 7777, "service_b": 7773, "service_b_results": 7775, "configurator": 7774}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load((ROOT / "compose.yaml").read_text())["services"]
    return loaded


def default(settings: type[BaseSettings], name: str) -> str:
    """A setting's default as a variable has it."""
    value = settings.model_fields[name.lower()].default
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    if name == "LOG_FORMAT":
        return "json"  # Nobody reads a container's log at a terminal.
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("service", PROCESSES)
def test_every_variable_goes_through_with_its_default(service: str, services: dict[str, Any]) -> None:
    settings, environment = PROCESSES[service], services[service]["environment"]
    wanted = {name.upper() for name in settings.model_fields} - OWN
    if service == "service_a":
        wanted -= {"HEALTH_HOST", "HEALTH_PORT"}
    assert set(environment) == wanted
    for name, value in environment.items():
        if name in FIXED:
            assert "$" not in str(value)
        else:
            variable = NAMES.get((service, name), name)
            expected = IN_A_NETWORK.get(name) or default(settings, name)
            assert value == f"${{{variable}:-{expected}}}"


@pytest.mark.parametrize("service", PROCESSES)
def test_a_process_is_watched_where_its_clients_do_not_come(service: str, services: dict[str, Any]) -> None:
    port = HEALTH_PORTS[service]
    environment = services[service]["environment"]
    assert int(environment["HEALTH_PORT" if "HEALTH_PORT" in environment else "APP_PORT"]) == port
    assert re.findall(r":(\d+)/health", " ".join(services[service]["healthcheck"]["test"])) == [str(port)]
    if service != "service_a":
        assert all(not published.endswith(f":{port}") for published in services[service].get("ports", []))
