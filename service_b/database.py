"""How both processes of service B reach PostgreSQL."""

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import structlog
from pydantic import Field, SecretStr, field_validator, model_validator

from runtime.settings import FrozenSettings, HostName, Port, without_parts

log = structlog.stdlib.get_logger(__name__)

CONNECT_TIMEOUT_SECONDS = 3.0
COMMAND_TIMEOUT_SECONDS = 10.0

REFUSED_ROW = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
"""The database does not accept a value, whoever sends it and however often."""

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

STORAGE_ERRORS = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # Among others: no host of the URL can be written to, as during a failover.
)
"""The database is away, too slow, not migrated yet, full, or read-only: the same request may succeed later."""


class DatabaseSettings(FrozenSettings):
    """The database block of the contract. `database_url` may name several hosts, and wins over `postgres_*`."""

    database_url: SecretStr | None = None
    postgres_user: str = "admin"
    postgres_password: SecretStr = SecretStr("admin")
    postgres_host: HostName = "localhost"
    postgres_port: Port = 5432
    postgres_db: str = "test"
    pool_size: int = Field(10, ge=1, le=1000)

    @model_validator(mode="before")
    @classmethod
    def _prefer_database_url(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return without_parts(values, url="database_url", parts="postgres_")

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr | None) -> SecretStr | None:
        try:
            if value:
                _check_url(value.get_secret_value())
        except ValueError:
            raise ValueError(
                "must be postgresql://user:password@host:port,host:port/database, the password percent-encoded"
            ) from None
        return value


def _check_url(text: str) -> None:
    """Refuse what asyncpg would refuse only when it connects, in an error that quotes the password."""
    url = urlsplit(text)
    login, _, hosts = url.netloc.rpartition("@")
    if url.scheme not in ("postgresql", "postgres") or "@" in login:
        raise ValueError
    for host in hosts.split(","):
        _ = urlsplit(f"//{host}").port
    if (modes := parse_qs(url.query).get("sslmode")) and modes[-1] not in SSL_MODES:
        raise ValueError


def _arguments(settings: DatabaseSettings) -> dict[str, Any]:
    if settings.database_url:
        where: dict[str, Any] = {"dsn": settings.database_url.get_secret_value()}
    else:
        where = {
            "user": settings.postgres_user,
            "password": settings.postgres_password.get_secret_value(),
            "host": settings.postgres_host,
            "port": settings.postgres_port,
            "database": settings.postgres_db,
        }
    return where | {
        "timeout": CONNECT_TIMEOUT_SECONDS,
        "command_timeout": COMMAND_TIMEOUT_SECONDS,
        # Of several hosts, the one that can be written to; after a failover that is another one.
        "target_session_attrs": "read-write",
        "server_settings": {
            "application_name": "service_b",
            "jit": "off",
            # A process that stands still, or a host that is gone, must not keep its locks from the others.
            "idle_in_transaction_session_timeout": "10s",
            "tcp_keepalives_idle": "10",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "3",
        },
    }


class Pool(asyncpg.Pool):
    """A pool that takes a connection back without its user waiting for that.

    It takes some turns of the event loop, each as long as all that hundreds of requests have to do meanwhile.
    """

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:  # type: ignore[explicit-override]
        """Begin to take a connection back; one that cannot be reset is closed, and another one opened when needed."""
        releasing = asyncio.create_task(super().release(connection, timeout=timeout))
        releasing.add_done_callback(_log_failure)


def _log_failure(releasing: asyncio.Task[None]) -> None:
    if not releasing.cancelled() and (error := releasing.exception()):
        log.warning("database.release_failed", error=repr(error))


async def _keep(connection: asyncpg.Connection) -> None:
    """Reset nothing when a connection goes back to the pool: our statements leave nothing behind in a session."""


def create_pool(settings: DatabaseSettings) -> Pool:
    """Make the pool. It connects when it is first used, so that a process may start before its database."""
    return Pool(
        min_size=0,
        max_size=settings.pool_size,
        max_queries=50_000,
        max_inactive_connection_lifetime=300.0,
        reset=_keep,
        loop=None,
        connection_class=asyncpg.Connection,
        record_class=asyncpg.Record,
        **_arguments(settings),
    )


async def connect(settings: DatabaseSettings) -> asyncpg.Connection:
    """Open one connection of its own, for a listener or a lock that lives as long as the connection."""
    return await asyncpg.connect(**_arguments(settings))
