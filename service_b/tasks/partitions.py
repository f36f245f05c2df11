"""The partitions of the finished tasks, by functions of the migrations: a service's role need not own its tables."""

from datetime import UTC, datetime

from service_b.database import Queries

MAKE_NEXT = "SELECT finished_make_next()"

DROP_OLDEST = "SELECT finished_drop_oldest($1, $2)"

DELETE_STRAYS = "SELECT finished_delete_strays($1, $2, $3)"


async def make_next(connection: Queries) -> str | None:
    """Make the first partition that is missing of today and a week ahead; return its name.

    Here and below `asyncpg.LockNotAvailableError` says that somebody else has what is needed: try again later.
    """
    name: str | None = await connection.fetchval(MAKE_NEXT)
    return name


async def drop_oldest(connection: Queries, retention_days: int) -> str | None:
    """Drop the oldest partition, if all in it was accepted more than `retention_days` ago; return its name."""
    name: str | None = await connection.fetchval(DROP_OLDEST, retention_days, datetime.now(UTC))
    return name


async def delete_strays(connection: Queries, retention_days: int, limit: int) -> int:
    """Delete tasks that ended that long ago and are in no day's partition; return how many."""
    deleted: int = await connection.fetchval(DELETE_STRAYS, retention_days, datetime.now(UTC), limit)
    return deleted
