"""What the environment says about this process."""

import re
import socket
import ssl
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service_a.tls import make_context

RIGHT = {
    "app_name": "must be UTF-8",
    "app_host": "must be a name or an address of this machine; 0.0.0.0 is all of them",
    "app_port": "must be a whole number, at least 1, at most 65535",
    "tls_cert_file": "must be a path",
    "tls_key_file": "must be set with TLS_CERT_FILE, and be the key that belongs to it, both as PEM, not encrypted",
    "response_delay_seconds": "must be a number, at least 0, at most 86400",
    "known_equipment": "must be * or a list of serials, with commas",
    "error_rate": "must be a number, at least 0, at most 1",
    "log_level": "must be one of DEBUG, INFO, WARNING, ERROR",
    "log_format": "must be one of json, text",
}
"""What is said to somebody who got a variable wrong."""

SERIAL = re.compile(r"[a-zA-Z0-9]{6,}")


class Settings(BaseSettings):
    """Every variable of service A; `env.example` beside this file explains them."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, hide_input_in_errors=True)

    app_name: str = "SERVICE_A"
    app_host: str = "0.0.0.0"
    app_port: int = Field(7777, ge=1, le=65535)
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = Field(None, validate_default=True)
    response_delay_seconds: float = Field(60.0, ge=0, le=86400, allow_inf_nan=False)
    known_equipment: str = "*"
    error_rate: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _strip(cls, values: dict[str, Any]) -> dict[str, Any]:
        """White space around a value is no part of it; what is empty then is not set. The level's case is free."""
        stripped = {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
        if isinstance(stripped.get("log_level"), str):
            stripped["log_level"] = stripped["log_level"].upper()
        return {name: value for name, value in stripped.items() if value != ""}

    @field_validator("app_name")
    @classmethod
    def _check_app_name(cls, value: str) -> str:
        return value.encode().decode()  # The system hands over bytes that are no text as lone surrogates.

    @field_validator("app_host")
    @classmethod
    def _check_app_host(cls, value: str) -> str:
        try:
            socket.getaddrinfo(value, None, flags=socket.AI_PASSIVE)
        except (OSError, ValueError):
            raise ValueError from None
        return value

    @field_validator("tls_key_file")
    @classmethod
    def _check_tls_files(cls, value: Path | None, others: ValidationInfo) -> Path | None:
        certificate = others.data.get("tls_cert_file")
        if (certificate is None) != (value is None):
            raise ValueError
        if certificate and value:
            try:
                make_context(certificate, value)
            except (OSError, ssl.SSLError):
                raise ValueError from None
        return value

    @field_validator("known_equipment")
    @classmethod
    def _check_known_equipment(cls, value: str) -> str:
        if value != "*" and not all(SERIAL.fullmatch(serial.strip()) for serial in value.split(",")):
            raise ValueError
        return value

    @cached_property
    def known(self) -> frozenset[str] | None:
        """The serials that exist, or None when every well-formed one does."""
        if self.known_equipment == "*":
            return None
        return frozenset(serial.strip() for serial in self.known_equipment.split(","))


def read_settings() -> Settings:
    """Read the settings, or end the process with one line that names the wrong variables and echoes no value."""
    try:
        return Settings()
    except ValidationError as error:
        names = dict.fromkeys(str(fault["loc"][0]) for fault in error.errors())
        faults = "; ".join(f"{name.upper()}: {RIGHT[name]}" for name in names)
        raise SystemExit(f"wrong settings: {faults}") from None
