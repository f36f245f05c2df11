"""Reading a process's settings from its environment."""

import re
import socket
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

S = TypeVar("S", bound="FrozenSettings")


def _check_host_name(value: str) -> str:
    try:
        value.encode("idna")
    except ValueError:
        raise ValueError("must be a host's name or address") from None
    return value


def _check_own_host(value: str) -> str:
    try:
        socket.getaddrinfo(value, None, flags=socket.AI_PASSIVE)
    except (OSError, ValueError):
        raise ValueError("must be a name or an address of this machine; 0.0.0.0 is all of them") from None
    return value


def _check_bearer(value: SecretStr) -> SecretStr:
    if not re.fullmatch("[!-~]+", value.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces")
    return value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


HostName = Annotated[str, AfterValidator(_check_host_name)]
"""Another machine: it may not be known yet."""
OwnHost = Annotated[str, AfterValidator(_check_own_host)]
"""A host of this machine, to listen on."""
BearerSecret = Annotated[SecretStr, AfterValidator(_check_bearer)]
"""What two processes of ours know each other by: it goes into a header."""
Port = Annotated[int, Field(ge=1, le=65535)]


class FrozenSettings(BaseSettings):
    """What all settings of ours have in common: read from the environment alone, and never changed.

    White space around a value is no part of it, and a variable that is empty then is not set.
    """

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _strip_all(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        stripped = {name: _strip(name, value) if isinstance(value, str) else value for name, value in values.items()}
        return {name: value for name, value in stripped.items() if value != ""}


def _strip(name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name.upper()}: must be UTF-8") from None
    return value.strip()


def without_parts(values: Mapping[str, Any], *, url: str, parts: str) -> dict[str, Any]:
    """Leave out the settings whose names begin with `parts` where the one called `url` is set, whatever they say.

    They need not be meant for us: Kubernetes sets `RMQ_PORT=tcp://10.0.0.1:5672` beside a service called `rmq`.
    """
    given = values.get(url)
    if not given or (isinstance(given, str) and not given.strip()):
        return dict(values)
    return {name: value for name, value in values.items() if not name.startswith(parts)}


class ProcessSettings(FrozenSettings):
    """What every process takes: how much it logs and for whom, and where it is watched.

    `log_format` is `json` for machines or `text` for people; unset, text on a terminal and JSON elsewhere.
    """

    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = "INFO"
    log_format: Literal["json", "text"] | None = None
    health_host: OwnHost = "0.0.0.0"
    health_port: Port | None = None


def read_settings(settings_class: type[S]) -> S:
    """Read the settings, or end the process with one line: the wrong variables and what is right, but no value."""
    try:
        return settings_class()
    except ValidationError as error:
        properties = settings_class.model_json_schema()["properties"]
        faults = "; ".join(_describe(fault, properties) for fault in error.errors(include_input=False))
        raise SystemExit(f"wrong settings: {faults}") from None


def _describe(fault: ErrorDetails, properties: Mapping[str, Any]) -> str:
    """Say which variable is wrong and what is right: in a validator's own words, or in those of the field's schema."""
    if fault["type"] != "value_error":
        name = str(fault["loc"][0])
        return f"{name.upper()}: {_allowed(properties[name]) or fault['msg']}"
    said = str(fault["ctx"]["error"])
    # A fault between several variables has no place of its own; its text names them.
    return f"{str(fault['loc'][0]).upper()}: {said}" if fault["loc"] else said


def _allowed(schema: Mapping[str, Any]) -> str | None:
    """Put a field's JSON schema into words; None when it only says what kind of text it is."""
    kind = schema["anyOf"][0] if "anyOf" in schema else schema
    if "enum" in kind:
        return f"must be one of {', '.join(kind['enum'])}"
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}.get(kind["type"])
    if not words:
        return None
    limits = {
        "minimum": "at least {}",
        "exclusiveMinimum": "more than {}",
        "maximum": "at most {}",
        "exclusiveMaximum": "less than {}",
    }
    return ", ".join([f"must be {words}", *(text.format(kind[key]) for key, text in limits.items() if key in kind)])
