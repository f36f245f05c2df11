"""What the reconciler asks about attempts that have no outcome yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from service_b.database import Queries
from service_b.tasks import states
from service_b.tasks.states import DISPATCHED, RUNNING

NOW = "SELECT clock_timestamp()"

NEWEST_DISPATCHED = f"""
SELECT id, attempt, dispatched_at, time_limit_seconds FROM task
WHERE {DISPATCHED} ORDER BY dispatched_at DESC LIMIT 1
"""

LATEST_ANSWERED = """
SELECT max(ended.dispatched_at)
FROM unnest($1::uuid[], $2::integer[], $3::timestamptz[]) AS ended (id, attempt, dispatched_at)
CROSS JOIN LATERAL (SELECT attempt, code FROM finished WHERE finished.id = ended.id OFFSET 0) AS task
WHERE task.attempt = ended.attempt AND task.code IN (200, 404)
"""

WITHOUT_OUTCOME = f"""
SELECT id, attempt, dispatched_at, time_limit_seconds FROM task
WHERE {DISPATCHED} AND dispatched_at < $1
  AND dispatched_at + make_interval(secs => time_limit_seconds + $2) < now()
ORDER BY dispatched_at LIMIT $3
"""

CALLS_WITHOUT_OUTCOME = f"""
SELECT id, attempt, dispatched_at, time_limit_seconds FROM task
WHERE {RUNNING} AND overdue_at < {states.NOW} ORDER BY overdue_at LIMIT $1
"""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A dispatched attempt without an outcome yet."""

    id: UUID
    number: int
    dispatched_at: datetime
    time_limit_seconds: float


async def now(connection: Queries) -> datetime:
    """Tell the database's time, the one clock of the table."""
    time: datetime = await connection.fetchval(NOW)
    return time


async def newest_dispatched(connection: Queries) -> Attempt | None:
    """Tell which attempt was dispatched last, of those without an outcome."""
    row = await connection.fetchrow(NEWEST_DISPATCHED)
    return Attempt(*row) if row else None


async def latest_answered(connection: Queries, attempts: Sequence[Attempt]) -> datetime | None:
    """Tell when the latest of these attempts was dispatched that has ended with an answer of service A's."""
    dispatched_at: datetime | None = await connection.fetchval(
        LATEST_ANSWERED,
        [attempt.id for attempt in attempts],
        [attempt.number for attempt in attempts],
        [attempt.dispatched_at for attempt in attempts],
    )
    return dispatched_at


async def without_outcome(connection: Queries, before: datetime, lateness_seconds: float, limit: int) -> list[Attempt]:
    """List attempts dispatched before a moment, and longer ago than their call may take; the oldest first."""
    rows = await connection.fetch(WITHOUT_OUTCOME, before, lateness_seconds, limit)
    return [Attempt(*row) for row in rows]


async def calls_without_outcome(connection: Queries, limit: int) -> list[Attempt]:
    """List calls that have begun and whose limit has passed; the oldest first."""
    return [Attempt(*row) for row in await connection.fetch(CALLS_WITHOUT_OUTCOME, limit)]
