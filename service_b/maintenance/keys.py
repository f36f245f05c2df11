"""The keys of tasks that are kept no longer."""

import structlog

from service_b.database import Queries
from service_b.tasks import keys

log = structlog.stdlib.get_logger(__name__)

PERIOD_SECONDS = 3600.0
BATCH = 1000


async def forget(pool: Queries, retention_days: int, *, batch: int = BATCH) -> float:
    """Delete what is old, some at a time; return after how many seconds to look again."""
    while deleted := await keys.delete_old(pool, retention_days, batch):
        log.info("keys.deleted", keys=deleted)
    return PERIOD_SECONDS
