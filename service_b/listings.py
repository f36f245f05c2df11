"""Lists of tasks as the new routes show them."""

import asyncio
from uuid import UUID

import asyncpg
import structlog

from service_b.database import STORAGE_ERRORS
from service_b.storage import TIMEOUT_SECONDS, StorageUnavailableError
from service_b.tasks.listings import Filters, Page, Sight, read_page
from service_b.tasks.resources import State

__all__ = ["Filters", "Listings", "Page", "Sight", "State"]

log = structlog.stdlib.get_logger(__name__)

AT_ONCE = 2
"""So many connections of the pool's, at most: who lists does not hold up who submits."""


class Listings:
    """Reads pages, a few at a time."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def page(self, filters: Filters, sight: Sight, before: UUID | None, limit: int) -> Page:
        """Read a page. Raises, and logs, `StorageUnavailableError` within 5 s, also when too many wait for theirs."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS), self._turn, self._pool.acquire() as connection:
                return await read_page(connection, filters, sight, before=before, limit=limit)
        except STORAGE_ERRORS as error:
            reason = error.sqlstate if isinstance(error, asyncpg.PostgresError) else ""
            log.warning("storage.unavailable", error=type(error).__name__, sqlstate=reason)
            raise StorageUnavailableError from None
