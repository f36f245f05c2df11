"""The finished tasks' partitions: made ahead of time, dropped when they are old."""

import asyncio
from collections.abc import Callable

import asyncpg
import structlog

from service_b.database import STORAGE_ERRORS, Queries
from service_b.tasks import partitions

log = structlog.stdlib.get_logger(__name__)

PERIOD_SECONDS = 3600.0
RETRY_SECONDS = 60.0
LEADING_CHECK_SECONDS = 1.0
BATCH = 1000


class Partitions:
    """Makes and drops partitions while `leads` says that it is this process's turn.

    Needs locks for some milliseconds that a dump, or a forgotten transaction, may keep for hours. It does not wait for
    them, since others would wait behind it: there is a week of time, and what it could not do it tries again.
    """

    def __init__(
        self,
        pool: Queries,
        retention_days: int,
        leads: Callable[[], bool],
        *,
        period_seconds: float = PERIOD_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._pool = pool
        self._retention_days = retention_days
        self._leads = leads
        self._period_seconds = period_seconds
        self._retry_seconds = retry_seconds

    async def run(self) -> None:
        """Look after them again and again, until cancelled."""
        while True:
            pause = LEADING_CHECK_SECONDS
            if self._leads():
                pause = self._period_seconds if await self.tend() else self._retry_seconds
            await asyncio.sleep(pause)

    async def tend(self) -> bool:
        """Do what there is to do, each step in a transaction of its own; tell whether that was possible."""
        try:
            while made := await partitions.make_next(self._pool):
                log.info("partitions.made", partition=made)
            while dropped := await partitions.drop_oldest(self._pool, self._retention_days):
                log.info("partitions.dropped", partition=dropped)
            while deleted := await partitions.delete_strays(self._pool, self._retention_days, BATCH):
                log.info("partitions.strays_deleted", tasks=deleted)
        except asyncpg.LockNotAvailableError:
            log.info("partitions.in_use", retry_in=self._retry_seconds)
            return False
        except STORAGE_ERRORS as error:
            log.warning("partitions.storage_unavailable", error=repr(error), retry_in=self._retry_seconds)
            return False
        return True
