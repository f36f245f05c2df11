"""How both processes of service B reach PostgreSQL."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy
from pydantic import Field, SecretStr, field_validator, model_validator

from runtime.settings import FrozenSettings, HostName, Port, without_parts
from service_b.database_session import (
    DEFAULT_SEARCH_PATH,
    KEEPALIVE,
    POOLER,
    SESSION,
    UnfitDatabaseError,
    check_session,
)
from service_b.database_url import driver_url, names_search_path

log = structlog.stdlib.get_logger(__name__)

Connection: TypeAlias = asyncpg.Connection | PoolConnectionProxy
Queries: TypeAlias = Connection | asyncpg.Pool
"""What a single statement needs: a pool will do."""

CONNECT_TIMEOUT_SECONDS = 3.0
COMMAND_TIMEOUT_SECONDS = 10.0
CLOSE_SECONDS = 1.0
"""For the database's farewell. Nothing is under way then that anybody waits for."""

REFUSED_ROW = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
"""The database does not accept a value, whoever sends it and however often."""


STORAGE_ERRORS = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # Among others: no host of the URL can be written to, as during a failover.
    UnfitDatabaseError,
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
        if value:
            driver_url(value.get_secret_value())
        return value


def _session(settings: DatabaseSettings) -> dict[str, str]:
    """Give the settings that our sessions start with and keep."""
    url = settings.database_url
    elsewhere = url and names_search_path(url.get_secret_value())
    return SESSION if elsewhere else SESSION | {"search_path": DEFAULT_SEARCH_PATH}


def _arguments(settings: DatabaseSettings) -> dict[str, Any]:
    if settings.database_url:
        where: dict[str, Any] = {"dsn": driver_url(settings.database_url.get_secret_value())}
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
        "server_settings": _session(settings) | KEEPALIVE,
    }


def describe(error: BaseException) -> str:
    """Say in one line what one of `STORAGE_ERRORS` means for an operator."""
    words = str(error).partition("\n")[0]
    if isinstance(error, asyncpg.ProtocolViolationError) and "startup parameter" in words:
        return POOLER.format(words)
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "no host takes writes"
    return words or type(error).__name__


class Pool(asyncpg.Pool):
    """A pool that takes a connection back without its user waiting for that, and closes in no time.

    Giving back awaits the pool several times; on a busy loop each await resumes only after hundreds of other requests,
    and the caller already has its rows.
    """

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:  # type: ignore[explicit-override]
        """Begin to take a connection back; one that cannot be reset is closed, and another one opened when needed."""
        releasing = asyncio.create_task(super().release(connection, timeout=timeout))
        releasing.add_done_callback(_log_failure)

    async def close(self) -> None:  # type: ignore[explicit-override]
        """Close all connections, without a farewell where the database does not answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await super().close()  # It terminates what is left when it is cancelled.


def _log_failure(releasing: asyncio.Task[None]) -> None:
    if not releasing.cancelled() and (error := releasing.exception()):
        log.warning("database.release_failed", error=repr(error))


async def _keep(connection: asyncpg.Connection) -> None:
    """Reset nothing when a connection goes back to the pool: our statements leave nothing behind in a session."""


def create_pool(settings: DatabaseSettings) -> Pool:
    """Make the pool. It connects when it is first used, so that a process may start before its database."""
    expected, told = _session(settings), set[str]()

    async def check(connection: Any) -> None:
        try:
            await _check(connection, expected)
        except UnfitDatabaseError as error:
            if str(error) not in told:  # It is tried again and again.
                told.add(str(error))
                log.error("database.unfit", reason=str(error))
            raise

    return Pool(
        min_size=0,
        max_size=settings.pool_size,
        max_queries=50_000,
        max_inactive_connection_lifetime=300.0,
        init=check,
        reset=_keep,
        loop=None,
        connection_class=asyncpg.Connection,
        record_class=asyncpg.Record,
        **_arguments(settings),
    )


async def connect(settings: DatabaseSettings) -> asyncpg.Connection:
    """Open one connection of its own, for a listener or a lock that lives as long as the connection."""
    connection: asyncpg.Connection = await asyncpg.connect(**_arguments(settings))
    await _check(connection, _session(settings))
    return connection


async def _check(connection: Any, expected: Mapping[str, str]) -> None:
    """Check a new connection, and end it at once where it is not fit or the check is cut off.

    The pool would close it as well, but wait for the database meanwhile, and then forget that it was cancelled.
    """
    try:
        await check_session(connection, expected)
    except BaseException:
        connection.terminate()
        raise
