"""Settings of the web process."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from messaging.sealing.keys import read_public_key
from messaging.settings import BrokerSettings
from runtime.settings import OwnHost, Port, ProcessSettings
from runtime.tls import Files, server_context
from service_b.database import DatabaseSettings
from service_b.tokens.file import TokensFileError, read


class Settings(BrokerSettings, DatabaseSettings, ProcessSettings):
    """`service_a_grace_seconds` is what service A needs besides the time that it waits for the device.

    Several processes share one port only with `reuse_port`, so that none does so by mistake. `max_connections` is by
    default, and at most, what the descriptors allow. `keep_parameters` says of which tasks they are kept when they end.
    `seal_public_key_file`: whom they are sealed for. `idempotency_secret`, the same in every process, tells requests
    under one `Idempotency-Key` apart; by default the database has one, which would make a seal worth less. Without
    `tokens_file` the API is open to everybody; `max_tasks_…` are of unfinished ones. With `tls_client_ca_file`, clients
    must show a certificate of that CA.
    """

    app_name: str = "SERVICE_B"
    app_host: OwnHost = "0.0.0.0"
    app_port: Port = 7776
    reuse_port: bool = False
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_client_ca_file: Path | None = None
    keepalive_seconds: float = Field(75, gt=0, le=86400, allow_inf_nan=False)
    max_connections: int | None = Field(None, ge=1)
    service_a_grace_seconds: float = Field(75, ge=0, le=86400, allow_inf_nan=False)
    task_deadline_seconds: float = Field(86400, gt=0, le=31_536_000, allow_inf_nan=False)
    retention_days: int = Field(90, ge=1, le=3650)
    keep_parameters: Literal["failed", "all", "none"] = "failed"
    tokens_file: Path | None = None
    max_tasks_per_device: int = Field(1000, ge=1, le=1_000_000)
    max_tasks_per_token: int | None = Field(None, ge=1, le=1_000_000_000)
    seal_public_key_file: Path | None = None
    idempotency_secret: SecretStr | None = None

    @field_validator("tokens_file")
    @classmethod
    def _check_tokens_file(cls, value: Path | None) -> Path | None:
        try:
            if value:
                read(value)
        except TokensFileError as error:
            raise ValueError(f"must be a file of tokens ({error})") from None
        return value

    @field_validator("seal_public_key_file")
    @classmethod
    def _check_seal_public_key_file(cls, value: Path | None) -> Path | None:
        if value:
            read_public_key(value)
        return value

    @field_validator("idempotency_secret")
    @classmethod
    def _check_idempotency_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value and len(value.get_secret_value()) < 16:
            raise ValueError("must be at least 16 characters long, and made at random")
        return value

    @model_validator(mode="after")
    def _check_secrets(self) -> Self:
        if self.seal_public_key_file and not self.idempotency_secret:
            raise ValueError("IDEMPOTENCY_SECRET: must be set where SEAL_PUBLIC_KEY_FILE is")
        return self

    @model_validator(mode="after")
    def _check_retention(self) -> Self:
        if self.retention_days * 86400 < self.task_deadline_seconds:
            raise ValueError("RETENTION_DAYS: must be as long as TASK_DEADLINE_SECONDS, at least (a day is 86400 s)")
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if self.tls_files:
            server_context(self.tls_files)
        return self

    @property
    def tls_files(self) -> Files | None:
        """The files by which the public port speaks TLS; None where it does not."""
        names = "TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE"
        files = Files(self.tls_cert_file, self.tls_key_file, self.tls_client_ca_file, names)
        return files if any(files) else None
