"""Settings of the configurator."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator
from yarl import URL

from messaging.sealing.keys import read_private_keys
from messaging.settings import BrokerSettings
from runtime.settings import BearerSecret, Port, ProcessSettings
from runtime.tls import Files, client_context


class Settings(BrokerSettings, ProcessSettings):
    """`concurrency` is the number of calls to service A in flight at once: the number of consumers.

    `results_url` may list several processes, with commas, and `lease_token` is what they ask for, if they do;
    `seal_key_file` several files, the newest key first. Service A's certificate is one of `service_a_ca_file`, or of
    the system's; `service_a_cert_file` is what we show.
    """

    service_a_url: str = "http://localhost:7777"
    service_a_ca_file: Path | None = None
    service_a_cert_file: Path | None = None
    service_a_key_file: Path | None = None
    results_url: str = "http://localhost:7775"
    lease_token: BearerSecret | None = None
    concurrency: int = Field(1000, ge=1, le=65535)
    shutdown_grace_seconds: float = Field(90, ge=0, le=86400, allow_inf_nan=False)
    health_port: Port = 7774
    seal_key_file: str | None = None

    @field_validator("service_a_url")
    @classmethod
    def _check_service_a_url(cls, value: str) -> str:
        return _check_url(value)

    @field_validator("results_url")
    @classmethod
    def _check_results_url(cls, value: str) -> str:
        return ",".join(dict.fromkeys(_check_url(part.strip()) for part in value.split(",")))

    @field_validator("seal_key_file")
    @classmethod
    def _check_seal_key_file(cls, value: str | None) -> str | None:
        read_private_keys(_files(value))
        return value

    @model_validator(mode="after")
    def _check_service_a_files(self) -> Self:
        if self.service_a_files:
            client_context(self.service_a_files)
        elif given := [name for name, _ in self._service_a_files]:
            raise ValueError(f"{given[0]}: must be unset, or SERVICE_A_URL https://host:port")
        return self

    @property
    def service_a_files(self) -> Files | None:
        """The files by which A and we know each other, if any; None where A does not speak TLS."""
        return self._service_a_files if URL(self.service_a_url).scheme == "https" else None

    @property
    def _service_a_files(self) -> Files:
        names = "SERVICE_A_CERT_FILE", "SERVICE_A_KEY_FILE", "SERVICE_A_CA_FILE"
        return Files(self.service_a_cert_file, self.service_a_key_file, self.service_a_ca_file, names)

    @property
    def seal_key_files(self) -> Sequence[Path]:
        """The files with the keys to open parameters with."""
        return _files(self.seal_key_file)

    @property
    def results_urls(self) -> Sequence[str]:
        """The results processes that may be asked for leases."""
        return self.results_url.split(",")


def _files(value: str | None) -> list[Path]:
    return [Path(part.strip()) for part in value.split(",")] if value else []


def _check_url(value: str) -> str:
    try:
        url = URL(value)
        (url.host or "").encode("idna")
    except ValueError:
        raise ValueError("must be http://host:port") from None
    if url.scheme not in ("http", "https") or not url.host or " " in url.host:
        raise ValueError("must be http://host:port")
    if url.query_string or url.fragment:
        raise ValueError("must be http://host:port, without a query and a fragment")
    return value.rstrip("/")
