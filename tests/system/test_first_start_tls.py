"""What `docker/compose.tls.yaml` needs at its first start, and that it finds it there."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from yarl import URL

from docker import first_start
from docker.certificates import HERE
from docker.first_start import APP, HANDED_OUT, KEPT
from docker.first_start_tls import SERVERS, USERS, hand_out
from messaging.settings import BrokerSettings
from runtime.tls import Files, server_context
from tests.certificates import NAMES
from tests.system.spawning import ROOT

SECRETS = "/run/secrets/"


def make(volume: Path) -> dict[str, int]:
    """Make everything; tell who owns which file."""
    given: dict[str, int] = {}

    def chown(file: Path, user: int, group: int) -> None:
        assert user == group
        given[f"{file.parent.name}/{file.name[1:]}"] = user

    first_start.hand_out(volume, BrokerSettings.model_construct(), chown)
    hand_out(volume, ["b.example.com"], "service", "test", chown)
    return given


def contents(volume: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(volume)): file.read_bytes()
        for file in volume.rglob("*")
        if file.is_file() and file.name != "definitions.json"
    }


def test_each_service_finds_what_it_needs_and_nobody_elses_key(tmp_path: Path) -> None:
    owners = make(tmp_path)
    for server, owner in SERVERS.items():
        folder = tmp_path / server
        server_context(Files(folder / "certificate.pem", folder / "key.pem", None, NAMES))
        assert owners[f"{server}/key.pem"] == owner
        assert (folder / "key.pem").stat().st_mode & 0o777 == 0o400
    for service in {**HANDED_OUT, **SERVERS}:
        assert (tmp_path / service / "ca.pem").read_bytes() == (tmp_path / KEPT / "ca.pem").read_bytes()
        assert (tmp_path / service / "ca.pem").stat().st_mode & 0o777 == 0o644
        assert (tmp_path / service / "key.pem").exists() == (service in SERVERS)
    assert (tmp_path / KEPT / "ca.key.pem").stat().st_mode & 0o777 == 0o600
    keys = [data for name, data in contents(tmp_path).items() if name.endswith("key.pem")]
    assert len(set(keys)) == len(SERVERS) + 1


def test_a_url_holds_its_services_own_password_and_verifies(tmp_path: Path) -> None:
    owners = make(tmp_path)
    files = contents(tmp_path)
    for service, user in USERS.items():
        url = URL(files[f"{service}/amqp_url"].decode())
        assert (url.scheme, url.host, url.port, url.user) == ("amqps", "rabbitmq", 5671, user)
        assert url.password == files[f"{service}/rmq_password"].decode()
        assert url.query == {"cafile": f"{SECRETS}ca.pem"}
        assert owners[f"{service}/amqp_url"] == APP
    for service in ("service_b", "service_b_results"):
        url = URL(files[f"{service}/database_url"].decode())
        assert (url.host, url.user, url.path) == ("postgres", "service", "/test")
        assert url.password == files[f"{service}/postgres_password"].decode()
        assert url.query == {"sslmode": "verify-full", "sslrootcert": f"{SECRETS}ca.pem"}


def test_what_is_made_stays(tmp_path: Path) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    make(tmp_path)
    assert contents(tmp_path) == before


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    text = (ROOT / "docker" / "compose.tls.yaml").read_text().replace("!override", "")
    loaded: dict[str, Any] = YAML(typ="safe").load(text)["services"]
    return loaded


@pytest.mark.parametrize("service", [*SERVERS, "migrate", "service_b_results", "configurator"])
def test_a_service_is_told_of_files_that_are_there(service: str, services: dict[str, Any], tmp_path: Path) -> None:
    make(tmp_path)
    said = repr(services[service])
    for conf in re.findall(r"\./docker/([\w.]+)", said):
        said += (ROOT / "docker" / conf).read_text()
    named = set(re.findall(rf"{SECRETS}(\w[\w.]*)", said))
    assert named
    assert named <= {file.name for file in (tmp_path / service).iterdir()}


def test_each_server_is_called_what_its_certificate_says(services: dict[str, Any]) -> None:
    assert "https://service_a:" in services["configurator"]["environment"]["SERVICE_A_URL"]
    assert "//localhost:" in repr(services["service_a"]["healthcheck"])
    assert "localhost" in HERE
    assert services["migrate"]["environment"]["PGSSLMODE"] == "verify-full"


def test_nothing_but_tls_is_open_to_other_machines(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert [port.rpartition(":")[2] for port in published] == ["5671", "15671"]
    assert all(re.match(r"\$\{[A-Z_]+_BIND:-127\.0\.0\.1\}:", port) for port in published)
