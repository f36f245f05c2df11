"""The finished tasks' partitions: made ahead of time, dropped when they are old."""

import asyncpg
import structlog

from service_b.database import Queries
from service_b.tasks import partitions

log = structlog.stdlib.get_logger(__name__)

PERIOD_SECONDS = 3600.0
RETRY_SECONDS = 60.0
BATCH = 1000


async def tend(pool: Queries, retention_days: int) -> float:
    """Do what there is to do, each step in a transaction of its own; return after how many seconds to look again.

    It needs locks for some milliseconds that a dump, or a forgotten transaction, may keep for hours. It does not wait
    for them, since others would wait behind it: there is a week of time, and what it could not do it tries again.
    """
    try:
        while made := await partitions.make_next(pool):
            log.info("partitions.made", partition=made)
        while dropped := await partitions.drop_oldest(pool, retention_days):
            log.info("partitions.dropped", partition=dropped)
        while deleted := await partitions.delete_strays(pool, retention_days, BATCH):
            log.info("partitions.strays_deleted", tasks=deleted)
    except asyncpg.LockNotAvailableError:
        log.info("partitions.in_use", retry_in=RETRY_SECONDS)
        return RETRY_SECONDS
    return PERIOD_SECONDS
