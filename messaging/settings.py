"""Where the broker is and what our exchange and queues are called."""

from functools import cached_property
from typing import Annotated, Self

from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from yarl import URL

Name = Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=r"^[a-zA-Z0-9_.:@#,/+ -]+$")]
"""What aiormq takes as the name of an exchange or a queue; a dead-letter queue's is a little longer."""

HEARTBEAT_SECONDS = 10


class BrokerSettings(BaseSettings):
    """The broker block of the contract. `amqp_url` wins over `rmq_*`; it may list several nodes, with commas."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, hide_input_in_errors=True)

    amqp_url: SecretStr | None = None
    rmq_host: str = "localhost"
    rmq_port: int = Field(5672, ge=1, le=65535)
    rmq_user: str = "guest"
    rmq_password: SecretStr = SecretStr("guest")
    exchange: Name = "exchange"
    to_configure_queue: Name = "to_configure"
    configured_queue: Name = "configured"
    to_configure_key: Name = "to_configure_key"
    configured_key: Name = "configured_key"

    @field_validator("rmq_host")
    @classmethod
    def _check_rmq_host(cls, value: str) -> str:
        try:
            URL.build(scheme="amqp", host=value)
            value.encode("idna")
        except ValueError:
            raise ValueError("not a host") from None
        return value

    @field_validator("amqp_url")
    @classmethod
    def _check_amqp_url(cls, value: SecretStr | None) -> SecretStr | None:
        for part in value.get_secret_value().split(",") if value else ():
            try:
                url = URL(part.strip())
                heartbeat = int(url.query.get("heartbeat", HEARTBEAT_SECONDS))
                (url.host or "").encode("idna")
            except ValueError:
                raise ValueError("not a URL") from None
            if url.scheme not in ("amqp", "amqps") or not url.host:
                raise ValueError("each part must be amqp://user:password@host:port/vhost")
            if not 1 <= heartbeat <= 600:
                raise ValueError("heartbeat must be 1 to 600 seconds")
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
    def heartbeat_seconds(self) -> int:
        """The heartbeat interval asked of the broker."""
        return max(int(url.query["heartbeat"]) for url in self.nodes)

    @property
    def lateness_seconds(self) -> float:
        """How late a message may still reach its reader, or a publish the broker, after the other side gave it up.

        aiormq closes a silent connection after 3 x (heartbeat + 1) seconds, looked at every half heartbeat; the
        broker after two heartbeats; and a channel whose process stood still for a heartbeat is given up.
        """
        return 4 * self.heartbeat_seconds + 3
