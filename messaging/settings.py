"""Where the broker is and what our exchange and queues are called."""

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, SecretStr, field_validator, model_validator
from yarl import URL

from runtime.settings import FrozenSettings, Port, without_parts
from runtime.tls import Files, client_context


def _check_name(value: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9_.:@#,/+ -]{1,120}", value):
        raise ValueError("must be 1 to 120 ASCII letters, digits, spaces or any of _.:@#,/+-")
    return value


Name = Annotated[str, AfterValidator(_check_name)]
"""What aiormq takes as the name of an exchange or a queue; a dead-letter queue's is a little longer."""

HEARTBEAT_SECONDS = 10
NODE = "each node must be amqp://user:password@host:port/vhost, what is special percent-encoded"


class BrokerSettings(FrozenSettings):
    """The broker block of the contract. `amqp_url` wins over `rmq_*`; it may list several nodes, with commas."""

    amqp_url: SecretStr | None = None
    rmq_host: str = "localhost"
    rmq_port: Port = 5672
    rmq_user: str = "guest"
    rmq_password: SecretStr = SecretStr("guest")
    exchange: Name = "exchange"
    to_configure_queue: Name = "to_configure"
    configured_queue: Name = "configured"
    to_configure_key: Name = "to_configure_key"
    configured_key: Name = "configured_key"

    @model_validator(mode="before")
    @classmethod
    def _prefer_amqp_url(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return without_parts(values, url="amqp_url", parts="rmq_")

    @field_validator("rmq_host")
    @classmethod
    def _check_rmq_host(cls, value: str) -> str:
        try:
            URL.build(scheme="amqp", host=value)
            value.encode("idna")
        except ValueError:
            raise ValueError("must be a host's name or address") from None
        return value

    @field_validator("amqp_url")
    @classmethod
    def _check_amqp_url(cls, value: SecretStr | None) -> SecretStr | None:
        for part in value.get_secret_value().split(",") if value else ():
            try:
                url = URL(part.strip())
                (url.host or "").encode("idna")
            except ValueError:
                raise ValueError(NODE) from None
            if url.scheme not in ("amqp", "amqps") or not url.host:
                raise ValueError(NODE)
            heartbeat = url.query.get("heartbeat", str(HEARTBEAT_SECONDS))
            if not re.fullmatch(r"[0-9]{1,3}", heartbeat) or not 1 <= int(heartbeat) <= 600:
                raise ValueError("each heartbeat must be 1 to 600 seconds")
            _check_tls(url)
        return value

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        queues = {self.to_configure_queue, self.configured_queue}
        if len(queues) < 2 or f"{self.to_configure_queue}.dead" in queues or f"{self.configured_queue}.dead" in queues:
            raise ValueError("TO_CONFIGURE_QUEUE and CONFIGURED_QUEUE must differ, from each other's .dead too")
        if self.to_configure_key == self.configured_key:
            raise ValueError("TO_CONFIGURE_KEY and CONFIGURED_KEY must differ")
        return self

    @cached_property
    def nodes(self) -> tuple[URL, ...]:
        """One URL per node of the broker, each with a heartbeat."""
        if self.amqp_url:
            urls = [URL(part.strip()) for part in self.amqp_url.get_secret_value().split(",")]
        else:
            password = self.rmq_password.get_secret_value()
            urls = [
                URL.build(
                    scheme="amqp",
                    host=self.rmq_host,
                    port=self.rmq_port,
                    user=self.rmq_user,
                    password=password,
                    path="/",
                )
            ]
        return tuple(url.update_query({"heartbeat": HEARTBEAT_SECONDS} | dict(url.query)) for url in urls)

    @property
    def silence_seconds(self) -> float:
        """How long a connection may be silent before aiormq closes it, and a confirm be late before we abort it."""
        return 3 * (max(int(url.query["heartbeat"]) for url in self.nodes) + 1)


def _check_tls(url: URL) -> None:
    """Take no URL by which less would be verified than it seems."""
    if "no_verify_ssl" in url.query:
        raise ValueError("each node must be without no_verify_ssl: who answers amqps:// is always verified")
    files = {name: Path(url.query[name]) for name in ("certfile", "keyfile", "cafile") if name in url.query}
    if files and url.scheme != "amqps":
        raise ValueError("each node must be amqps:// if it has a cafile, a certfile or a keyfile")
    if files:  # Otherwise the system's CAs are believed.
        names = "each certfile", "each keyfile", "each cafile"
        client_context(Files(files.get("certfile"), files.get("keyfile"), files.get("cafile"), names))
