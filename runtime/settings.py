"""Reading a process's settings from its environment."""

import socket
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

S = TypeVar("S", bound=BaseSettings)


def _check_host_name(value: str) -> str:
    try:
        value.encode("idna")
    except ValueError:
        raise ValueError("not a host") from None
    return value


def _check_own_host(value: str) -> str:
    try:
        socket.getaddrinfo(value, None, flags=socket.AI_PASSIVE)
    except (OSError, ValueError):
        raise ValueError("no such host") from None
    return value


HostName = Annotated[str, AfterValidator(_check_host_name)]
"""Another machine: it may not be known yet."""
OwnHost = Annotated[str, AfterValidator(_check_own_host)]
"""A host of this machine, to listen on."""


class LogSettings(BaseSettings):
    """What every process takes: how much it logs, and for whom.

    `log_format` is `json` for machines or `text` for people; unset, text on a terminal and JSON elsewhere.
    """

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, hide_input_in_errors=True)

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] | None = None


def read_settings(settings_class: type[S]) -> S:
    """Read the settings, or end the process with one line that names the wrong variables and echoes no value."""
    try:
        return settings_class()
    except ValidationError as error:
        faults = "; ".join(
            f"{'_'.join(map(str, fault['loc'])).upper() or 'settings'}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False)
        )
        raise SystemExit(f"wrong settings: {faults}") from None
