"""Every process's settings: the contract's defaults, the same as in env.example, and one line about a wrong value."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic_settings import BaseSettings

import configurator.settings
import service_a.settings
import service_b.results.settings
import service_b.settings
from messaging.settings import BrokerSettings
from runtime.settings import FrozenSettings, read_settings
from tests.certificates import Authority
from tests.seals import make_keys
from tests.system.spawning import ROOT, base_environment

SECRET = "hunter2-Secret"

LOGS = {"LOG_LEVEL": "INFO", "LOG_FORMAT": ""}
BROKER = {
    "AMQP_URL": "",
    "RMQ_HOST": "localhost",
    "RMQ_PORT": "5672",
    "RMQ_USER": "guest",
    "RMQ_PASSWORD": "guest",
    "EXCHANGE": "exchange",
    "TO_CONFIGURE_QUEUE": "to_configure",
    "CONFIGURED_QUEUE": "configured",
    "TO_CONFIGURE_KEY": "to_configure_key",
    "CONFIGURED_KEY": "configured_key",
}
DATABASE = {
    "DATABASE_URL": "",
    "POSTGRES_USER": "admin",
    "POSTGRES_PASSWORD": "admin",
    "POSTGRES_HOST": "localhost",
    "POSTGRES_PORT": "5432",
    "POSTGRES_DB": "test",
    "POOL_SIZE": "10",
}
HEALTH = {"HEALTH_HOST": "0.0.0.0", "HEALTH_PORT": ""}
SERVICE_A = LOGS | {
    "APP_NAME": "SERVICE_A",
    "APP_HOST": "0.0.0.0",
    "APP_PORT": "7777",
    "TLS_CERT_FILE": "",
    "TLS_KEY_FILE": "",
    "RESPONSE_DELAY_SECONDS": "60",
    "KNOWN_EQUIPMENT": "*",
    "ERROR_RATE": "0",
}
WEB = (
    LOGS
    | HEALTH
    | BROKER
    | DATABASE
    | {
        "APP_NAME": "SERVICE_B",
        "APP_HOST": "0.0.0.0",
        "APP_PORT": "7776",
        "REUSE_PORT": "false",
        "TLS_CERT_FILE": "",
        "TLS_KEY_FILE": "",
        "TLS_CLIENT_CA_FILE": "",
        "KEEPALIVE_SECONDS": "75",
        "MAX_CONNECTIONS": "",
        "SERVICE_A_GRACE_SECONDS": "75",
        "TASK_DEADLINE_SECONDS": "86400",
        "RETENTION_DAYS": "90",
        "KEEP_PARAMETERS": "failed",
        "TOKENS_FILE": "",
        "MAX_TASKS_PER_DEVICE": "1000",
        "MAX_TASKS_PER_TOKEN": "",
        "SEAL_PUBLIC_KEY_FILE": "",
        "IDEMPOTENCY_SECRET": "",
    }
)
RESULTS = (
    LOGS
    | HEALTH
    | BROKER
    | DATABASE
    | {
        "HEALTH_PORT": "7775",
        "MAX_ATTEMPTS": "3",
        "RETRY_BASE_SECONDS": "1",
        "RETRY_MAX_SECONDS": "300",
        "LEASE_TOKEN": "",
    }
)
CONFIGURATOR = (
    LOGS
    | HEALTH
    | BROKER
    | {
        "SERVICE_A_URL": "http://localhost:7777",
        "SERVICE_A_CA_FILE": "",
        "SERVICE_A_CERT_FILE": "",
        "SERVICE_A_KEY_FILE": "",
        "RESULTS_URL": "http://localhost:7775",
        "LEASE_TOKEN": "",
        "CONCURRENCY": "1000",
        "SHUTDOWN_GRACE_SECONDS": "90",
        "SEAL_KEY_FILE": "",
        "HEALTH_PORT": "7774",
    }
)

PROCESSES: dict[str, tuple[type[BaseSettings], dict[str, str]]] = {
    "service_a": (service_a.settings.Settings, SERVICE_A),
    "service_b": (service_b.settings.Settings, WEB),
    "service_b.results": (service_b.results.settings.Settings, RESULTS),
    "configurator": (configurator.settings.Settings, CONFIGURATOR),
}
"""Section 6 of the contract: each process's variables and their defaults; empty where there is none."""


URLS = {"AMQP_URL": ("RMQ_", "amqp://broker/"), "DATABASE_URL": ("POSTGRES_", "postgresql://database/")}
"""Which parts each URL makes meaningless, and a good one."""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SERVICE_A | WEB | RESULTS | CONFIGURATOR:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)


def plain(value: object) -> str:
    """Write a setting's value as a variable has it."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def values(settings: BaseSettings) -> dict[str, str]:
    return {name.upper(): plain(getattr(settings, name)) for name in type(settings).model_fields}


def example(package: str) -> Iterator[tuple[str, str]]:
    for line in (ROOT / package / "env.example").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield name, value


def run(module: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module],
        env=base_environment() | dict(environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.mark.parametrize("module", PROCESSES)
def test_the_defaults_are_the_contracts(module: str) -> None:
    settings, contract = PROCESSES[module]
    assert values(settings()) == contract


@pytest.mark.parametrize("package", ["service_a", "service_b", "configurator"])
def test_env_example_names_every_variable_with_its_default(package: str) -> None:
    contract: dict[str, str] = {}
    for module, (_, variables) in PROCESSES.items():
        if module.split(".")[0] == package:
            contract = variables | contract
    lines = list(example(package))
    assert dict(lines) == contract
    assert len(lines) == len(contract)  # none twice


@pytest.mark.parametrize("module", PROCESSES)
def test_an_empty_variable_means_the_default(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, contract = PROCESSES[module]
    for name in contract:
        monkeypatch.setenv(name, "")
    assert values(settings()) == contract


@pytest.mark.parametrize("module", PROCESSES)
def test_every_variable_is_read(module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings, contract = PROCESSES[module]
    keys, authority = make_keys(tmp_path), Authority(tmp_path)
    pair = authority.issue()
    given = {
        name: "1" if default.isdigit() else f"https://{name.lower()}" if default.startswith("http") else name.lower()
        for name, default in contract.items()
    } | {"LOG_LEVEL": "DEBUG", "LOG_FORMAT": "json"}
    special = {
        "HEALTH_PORT": "1",
        "MAX_CONNECTIONS": "1",
        "MAX_TASKS_PER_TOKEN": "1",
        "REUSE_PORT": "true",
        "KEEP_PARAMETERS": "all",
        "AMQP_URL": "",
        "DATABASE_URL": "",
        "TOKENS_FILE": os.devnull,
        "APP_HOST": "127.0.0.1",
        "HEALTH_HOST": "::1",
        "KNOWN_EQUIPMENT": "ABC1234,DEF5678",
        "SEAL_PUBLIC_KEY_FILE": str(keys.public),
        "IDEMPOTENCY_SECRET": "x" * 16,
        "SEAL_KEY_FILE": f"{keys.private},{keys.private}",
        "TLS_CERT_FILE": str(pair.certificate),
        "TLS_KEY_FILE": str(pair.key),
        "TLS_CLIENT_CA_FILE": str(authority.file),
        "SERVICE_A_CA_FILE": str(authority.file),
        "SERVICE_A_CERT_FILE": str(pair.certificate),
        "SERVICE_A_KEY_FILE": str(pair.key),
    }
    given |= {name: value for name, value in special.items() if name in contract}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert values(settings()) == given


@pytest.mark.parametrize("module", PROCESSES)
def test_white_space_around_a_value_is_no_part_of_it(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, contract = PROCESSES[module]
    for name, value in contract.items():
        monkeypatch.setenv(name, f" \t{value} \r\n")
    assert values(settings()) == contract


@pytest.mark.parametrize("variable", URLS)
def test_white_space_around_a_url_and_a_password_is_no_part_of_them(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, url = URLS[variable]
    monkeypatch.setenv(f"{parts}PASSWORD", f" {SECRET}\n")
    assert values(service_b.settings.Settings())[f"{parts}PASSWORD"] == SECRET
    monkeypatch.setenv(variable, f" {url}\n")
    assert values(service_b.settings.Settings())[variable] == url


SECRETS = {
    "AMQP_URL": "amqp://b/",
    "DATABASE_URL": "postgresql://b/",
    "IDEMPOTENCY_SECRET": "of 16 characters",
    "LEASE_TOKEN": "t",
    "POSTGRES_PASSWORD": "p",
    "RMQ_PASSWORD": "p",
}
"""What is a secret, and a good one."""


@pytest.mark.parametrize(
    ("module", "variable"),
    [(module, name) for module, (_, contract) in PROCESSES.items() for name in contract if name in SECRETS],
)
def test_a_secret_may_lie_in_a_file(
    module: str, variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRETS[variable]}\r\n")
    monkeypatch.setenv(f"{variable}_FILE", f" {file} ")
    settings = PROCESSES[module][0]()
    assert values(settings)[variable] == SECRETS[variable]


def test_nothing_else_is_kept_hidden() -> None:
    """A new secret belongs to those above."""
    for settings, _ in PROCESSES.values():
        hidden = {name.upper() for name, field in settings.model_fields.items() if "SecretStr" in str(field)}
        assert hidden <= set(SECRETS)


def test_a_url_from_a_file_wins_over_the_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("amqp://u:p@one/")
    monkeypatch.setenv("AMQP_URL_FILE", str(file))
    monkeypatch.setenv("RMQ_PORT", "tcp://10.0.0.1:5672")
    monkeypatch.setenv("RMQ_PASSWORD_FILE", str(tmp_path / "none"))
    assert nodes(monkeypatch) == ["amqp://u:p@one/?heartbeat=10"]
    monkeypatch.setenv("AMQP_URL_FILE", " ")
    with pytest.raises(SystemExit, match="RMQ_P"):
        read_settings(BrokerSettings)


def test_a_secret_that_is_given_twice_stops_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    monkeypatch.setenv("RMQ_PASSWORD_FILE", str(file))
    monkeypatch.setenv("RMQ_PASSWORD", f"another-{SECRET}")
    with pytest.raises(SystemExit) as stopped:
        read_settings(service_b.settings.Settings)
    right = "must be set by itself or by RMQ_PASSWORD_FILE, not by both"
    assert str(stopped.value) == f"wrong settings: RMQ_PASSWORD: {right}"


@pytest.mark.parametrize(
    "content", [None, b"", b" \n", b"\xff" + SECRET.encode()], ids=["none", "empty", "blank", "binary"]
)
def test_a_file_without_a_secret_stops_the_process(
    content: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An empty one would mean the default: a password that everybody knows."""
    file = tmp_path / SECRET
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("POSTGRES_PASSWORD_FILE", str(file))
    with pytest.raises(SystemExit) as stopped:
        read_settings(service_b.settings.Settings)
    right = "must be a file that can be read, UTF-8 and not empty"
    assert str(stopped.value) == f"wrong settings: POSTGRES_PASSWORD_FILE: {right}"


@pytest.mark.parametrize("module", PROCESSES)
@pytest.mark.parametrize("level", ["debug", "Debug", " warning "])
def test_the_level_is_given_in_any_case(module: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", level)
    assert values(PROCESSES[module][0]())["LOG_LEVEL"] == level.strip().upper()


@pytest.mark.parametrize("variable", URLS)
def test_the_parts_beside_a_url_are_not_judged(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes sets such variables in every container beside a service that is called `rmq` or `postgres`."""
    parts, url = URLS[variable]
    monkeypatch.setenv(f"{parts}PORT", "tcp://10.0.0.1:5672")
    monkeypatch.setenv(f"{parts}HOST", "a..b")
    with pytest.raises(SystemExit, match=rf"^wrong settings: .*{parts}PORT: must be a whole number, at least 1"):
        read_settings(service_b.settings.Settings)
    monkeypatch.setenv(variable, " ")
    with pytest.raises(SystemExit, match=f"{parts}HOST: must be a host's name or address"):
        read_settings(service_b.settings.Settings)
    monkeypatch.setenv(variable, url)
    settings = read_settings(service_b.settings.Settings)
    assert (values(settings)[variable], values(settings)[f"{parts}PORT"]) == (url, WEB[f"{parts}PORT"])


@pytest.mark.parametrize("module", PROCESSES)
def test_settings_cannot_be_changed_and_show_no_password(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RMQ_PASSWORD", "POSTGRES_PASSWORD", "LEASE_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    settings = PROCESSES[module][0]()
    assert SECRET not in f"{settings!r} {settings}"
    monkeypatch.setenv("AMQP_URL", f"amqp://user:{SECRET}@broker/")
    monkeypatch.setenv("DATABASE_URL", f"postgresql://user:{SECRET}@database/")
    settings = PROCESSES[module][0]()
    assert SECRET not in f"{settings!r} {settings}"
    with pytest.raises(ValueError, match="frozen"):
        settings.log_level = "DEBUG"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("module", "variable", "value"),
    [
        ("service_a", "ERROR_RATE", SECRET),
        ("service_b", "DATABASE_URL", f"postgresql://admin:{SECRET}/1@localhost/test"),
        ("service_b.results", "RETRY_MAX_SECONDS", "nan"),
        ("configurator", "AMQP_URL", f"http://guest:{SECRET}@localhost/"),
    ],
)
def test_a_wrong_value_ends_the_process_with_one_line(module: str, variable: str, value: str) -> None:
    ended = run(module, {variable: value})
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert re.fullmatch(rf"wrong settings: {variable}: [^\n]+\n", ended.stderr)
    assert SECRET not in ended.stderr


@pytest.mark.parametrize(
    ("module", "variable", "value"),
    [
        ("service_b", "HEALTH_PORT", "tcp://10.0.0.1:80"),
        *((module, "APP_NAME", f"{SECRET}\udcff") for module in ("service_a", "service_b")),
        ("service_b", "RMQ_PASSWORD", f"{SECRET}\udcff"),
        *((module, "LOG_LEVEL", "debug!") for module in PROCESSES),
        *((module, "LOG_FORMAT", "xml") for module in PROCESSES),
        *(
            (module, name, value)
            for module, (_, contract) in PROCESSES.items()
            for name, default in contract.items()
            if default.isdigit()
            for value in (SECRET, "-1", "1e99", "inf", "1 2")
        ),
        ("service_a", "ERROR_RATE", "1.1"),
        ("service_b", "TASK_DEADLINE_SECONDS", "0"),
        *(("service_b", "RETENTION_DAYS", days) for days in ("0", "0.5", "3651")),
        *(("service_b", "KEEP_PARAMETERS", whose) for whose in ("some", "FAILED", f"all,{SECRET}")),
        *(("service_b", "SEAL_PUBLIC_KEY_FILE", file) for file in (f"/{SECRET}", "/", SECRET * 300)),
        *(("configurator", "SEAL_KEY_FILE", files) for files in (f"/{SECRET}", "/", ",", f"-----BEGIN\n{SECRET}")),
        ("service_b", "IDEMPOTENCY_SECRET", SECRET[:15]),
        ("service_b.results", "MAX_ATTEMPTS", "0"),
        *(("service_b", f"MAX_TASKS_PER_{whose}", "0") for whose in ("DEVICE", "TOKEN")),
        *(
            (module, "LEASE_TOKEN", f"{SECRET}{end}")
            for module in ("service_b.results", "configurator")
            for end in (" x", "ü")
        ),
        ("configurator", "CONCURRENCY", "0"),
        ("configurator", "CONCURRENCY", "65536"),
        *(
            ("configurator", name, url)
            for name in ("SERVICE_A_URL", "RESULTS_URL")
            for url in (SECRET, "localhost:7777", "ftp://a", "http://", "http://a:b", "http://a:99999", f"//{SECRET}@a")
        ),
        *(("configurator", "RMQ_HOST", host) for host in (f"{SECRET} x", "a/b", "user@host", "host:5672")),
        *((module, "APP_HOST", host) for module in ("service_a", "service_b") for host in ("999.1.1.1", "no such")),
        *((module, "HEALTH_HOST", "a..b") for module in ("service_b.results", "configurator")),
        *(("service_a", "KNOWN_EQUIPMENT", known) for known in (",", "ABC1234,*", "ABC1234,", "short")),
        *(("configurator", "SERVICE_A_URL", f"http://{rest}") for rest in ("a/?x=1", "a/#f", "a..b", "a b")),
        *(("configurator", "RESULTS_URL", urls) for urls in ("http://a,", "http://a http://b", f"http://a,{SECRET}")),
        *(("configurator", "RMQ_HOST", host) for host in ("a..b", "x" * 64)),
        *(("service_b", name, "x" * 121) for name in ("EXCHANGE", "TO_CONFIGURE_KEY")),
        *(("service_b", name, value) for name in ("EXCHANGE", "CONFIGURED_QUEUE") for value in ("käse", "a%b")),
        ("service_b", "AMQP_URL", "amqp://a..b/"),
        ("service_b", "POSTGRES_HOST", "a..b"),
        *(
            ("service_b", "AMQP_URL", url)
            for url in (
                SECRET,
                f"http://guest:{SECRET}@a/",
                f"amqp://guest:{SECRET}@a:port/",
                f"amqp://guest:{SECRET}@/",
                f"amqp://guest:{SECRET}@a/,",
                f"amqp://a/,redis://:{SECRET}@b/",
                f"amqp://a/?heartbeat={SECRET}",
                "amqp://a/?heartbeat=0",
                "amqp://a/?heartbeat=601",
            )
        ),
        *(
            ("service_b.results", "DATABASE_URL", url)
            for url in (
                SECRET,
                f"mysql://admin:{SECRET}@a/test",
                f"postgresql://admin:{SECRET}@a:port/test",
                f"postgresql://admin:x/{SECRET}@a/test",
                f"postgresql://admin:{SECRET}@a:99999/test",
                f"postgresql://admin:{SECRET}@a,admin:{SECRET}@b/test",
                f"postgresql://admin:{SECRET}[@a/test",
                f"postgresql://admin:{SECRET}@{SECRET}@a/test",
                f"postgresql://admin:{SECRET}@a:1,b:{SECRET}/test",
                f"postgresql://admin:{SECRET}@a/test?sslmode={SECRET}",
            )
        ),
    ],
)
def test_every_wrong_value_is_named_and_not_echoed(
    module: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PROCESSES[module][0]
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as stopped:
        read_settings(settings) if issubclass(settings, FrozenSettings) else service_a.settings.read_settings()
    line = str(stopped.value)
    assert re.fullmatch(rf"wrong settings: {variable}: (each \w+ )?must be [^\n]+", line)
    assert SECRET not in line


@pytest.mark.parametrize(
    ("variable", "value", "right"),
    [
        ("APP_PORT", "0", "must be a whole number, at least 1, at most 65535"),
        ("TASK_DEADLINE_SECONDS", "inf", "must be a number, more than 0, at most 31536000"),
        ("LOG_LEVEL", "loud", "must be one of DEBUG, INFO, WARNING, ERROR"),
        ("KEEP_PARAMETERS", "some", "must be one of failed, all, none"),
        ("LOG_FORMAT", "xml", "must be one of json, text"),
    ],
)
def test_what_is_right_is_said_in_plain_words(
    variable: str, value: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=f"^wrong settings: {variable}: {right}$"):
        read_settings(service_b.settings.Settings)


@pytest.mark.parametrize(("days", "deadline"), [("1", "86401"), ("89", "7776000"), ("364", "31536000")])
def test_tasks_are_kept_for_as_long_as_they_may_last(days: str, deadline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETENTION_DAYS", days)
    monkeypatch.setenv("TASK_DEADLINE_SECONDS", deadline)
    with pytest.raises(SystemExit, match=r"^wrong settings: RETENTION_DAYS: must be [^\n]*$"):
        read_settings(service_b.settings.Settings)
    monkeypatch.setenv("RETENTION_DAYS", str(int(days) + 1))
    assert read_settings(service_b.settings.Settings).retention_days == int(days) + 1


def test_every_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_PORT", "x")
    monkeypatch.setenv("RMQ_PORT", "y")
    with pytest.raises(SystemExit) as stopped:
        read_settings(service_b.settings.Settings)
    assert re.findall(r"([A-Z_]+): must", str(stopped.value)) in (["APP_PORT", "RMQ_PORT"], ["RMQ_PORT", "APP_PORT"])


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CONFIGURED_QUEUE", "to_configure"),
        ("CONFIGURED_QUEUE", "to_configure.dead"),
        ("TO_CONFIGURE_QUEUE", "configured.dead"),
        ("CONFIGURED_KEY", "to_configure_key"),
    ],
)
def test_queues_that_would_share_messages_are_refused(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=rf"^wrong settings: [^\n]*{variable}[^\n]* must differ[^\n]*$"):
        read_settings(BrokerSettings)


def nodes(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return [str(url) for url in BrokerSettings().nodes]


def test_the_brokers_parts_make_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    assert nodes(monkeypatch) == ["amqp://guest:guest@localhost:5672/?heartbeat=10"]


def test_a_password_may_hold_any_character(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMQ_PASSWORD", "p@ss:w/rd?#,%20ü")
    (node,) = BrokerSettings().nodes
    assert (node.user, node.password, node.host) == ("guest", "p@ss:w/rd?#,%20ü", "localhost")


def test_a_list_of_nodes_wins_over_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert nodes(
        monkeypatch, AMQP_URL="amqp://u:p@one:1/v, amqps://two/?heartbeat=30,amqp://three//", RMQ_HOST="four"
    ) == ["amqp://u:p@one:1/v?heartbeat=10", "amqps://two/?heartbeat=30", "amqp://three//?heartbeat=10"]


@pytest.mark.parametrize(
    ("url", "heartbeat"),
    [("amqp://a/", 10), ("amqp://a/?heartbeat=2", 2), ("amqp://a/?heartbeat=2,amqp://b/?heartbeat=60", 60)],
)
def test_the_longest_heartbeat_tells_how_long_a_silence_is_borne(
    url: str, heartbeat: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMQP_URL", url)
    # aiormq closes a silent connection after that time.
    assert BrokerSettings().silence_seconds == 3 * (heartbeat + 1)


def test_several_results_processes_may_be_named() -> None:
    settings = configurator.settings.Settings(results_url=" http://a:1/ , https://b,http://a:1")
    assert settings.results_urls == ["http://a:1", "https://b"]


@pytest.mark.parametrize("name", ["SERVICE_A_CA_FILE", "SERVICE_A_CERT_FILE", "SERVICE_A_KEY_FILE"])
def test_service_as_certificates_are_for_https(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names them believes that the way to A is safe."""
    authority = Authority(tmp_path)
    monkeypatch.setenv(name, str(authority.file))
    with pytest.raises(
        SystemExit, match=f"^wrong settings: {name}: must be unset, or SERVICE_A_URL https://host:port$"
    ):
        read_settings(configurator.settings.Settings)
    monkeypatch.setenv("SERVICE_A_URL", "https://localhost")
    if name == "SERVICE_A_CA_FILE":
        assert read_settings(configurator.settings.Settings).service_a_ca_file == authority.file
    else:
        with pytest.raises(SystemExit, match=r"^wrong settings: SERVICE_A_[A-Z]+_FILE: must be set with SERVICE_A_"):
            read_settings(configurator.settings.Settings)
