"""Reading a process's settings from its environment."""

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import override

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

    White space around a value is no part of it, and a variable that is empty then is not set. A secret may lie in a
    file, which `NAME_FILE` names, instead of in the variable `NAME`.
    """

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, hide_input_in_errors=True)

    @override
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        variables = {name.lower(): value for name, value in os.environ.items()}
        names = [file_of(name) for name in cls._secrets()]
        files = {name: variables[name] for name in names if name in variables}
        return init_settings, env_settings, InitSettingsSource(settings_cls, files)

    @model_validator(mode="before")
    @classmethod
    def _strip_all(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        stripped = {name: _strip(name, value) if isinstance(value, str) else value for name, value in values.items()}
        given = {name: value for name, value in stripped.items() if value != ""}
        for name in cls._secrets():
            if (file := given.pop(file_of(name), None)) is None:
                continue
            if name in given:
                raise ValueError(f"{name.upper()}: must be set by itself or by {file_of(name).upper()}, not by both")
            given[name] = _read_secret(file_of(name), Path(file))
        return given

    @classmethod
    def _secrets(cls) -> list[str]:
        return [name for name, field in cls.model_fields.items() if _is_secret(field.annotation)]


def _is_secret(annotation: object) -> bool:
    return annotation is SecretStr or any(map(_is_secret, get_args(annotation)))


def file_of(secret: str) -> str:
    """Name the setting that says in which file a secret lies."""
    return f"{secret}_file"


def _read_secret(name: str, file: Path) -> str:
    try:
        secret = file.read_text("utf-8").strip()
    except (OSError, ValueError):
        secret = ""
    if not secret:
        raise ValueError(f"{name.upper()}: must be a file that can be read, UTF-8 and not empty")
    return secret


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
    given = [value for value in (values.get(url), values.get(file_of(url))) if value]
    if not any(value.strip() if isinstance(value, str) else value for value in given):
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
