"""What the environment says about this process."""

import re
import socket
from functools import cached_property
from typing import Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

SERIAL = re.compile(r"[a-zA-Z0-9]{6,}")


class Settings(BaseSettings):
    """Every variable of service A; `env.example` beside this file explains them."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, hide_input_in_errors=True)

    app_name: str = "SERVICE_A"
    app_host: str = "0.0.0.0"
    app_port: int = Field(7777, ge=1, le=65535)
    response_delay_seconds: float = Field(60.0, ge=0, le=86400, allow_inf_nan=False)
    known_equipment: str = "*"
    error_rate: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] | None = None

    @field_validator("app_host")
    @classmethod
    def _check_app_host(cls, value: str) -> str:
        try:
            socket.getaddrinfo(value, None, flags=socket.AI_PASSIVE)
        except (OSError, ValueError):
            raise ValueError("no such host") from None
        return value

    @field_validator("known_equipment")
    @classmethod
    def _check_known_equipment(cls, value: str) -> str:
        if value.strip() != "*" and not all(SERIAL.fullmatch(serial.strip()) for serial in value.split(",")):
            raise ValueError("must be * or a list of serials, with commas")
        return value

    @cached_property
    def known(self) -> frozenset[str] | None:
        """The serials that exist, or None when every well-formed one does."""
        if self.known_equipment.strip() == "*":
            return None
        return frozenset(serial.strip() for serial in self.known_equipment.split(","))


def read_settings() -> Settings:
    """Read the settings, or end the process with one line that names the wrong variables and echoes no value."""
    try:
        return Settings()
    except ValidationError as error:
        faults = "; ".join(f"{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors())
        raise SystemExit(f"wrong settings: {faults}") from None
