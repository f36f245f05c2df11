"""What nobody has answered for: dispatches that nobody begins, and calls that do not end.

Judged by what the asking process takes for internal time: should the database's clock jump, nothing seems late.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from service_b.database import Queries
from service_b.tasks import deployment
from service_b.tasks.leases import MARGIN_SECONDS
from service_b.tasks.states import DISPATCHED, RUNNING

REPEAT_DISPATCHES = f"""
WITH silent AS MATERIALIZED (
    SELECT id FROM task WHERE {DISPATCHED} AND dispatched_at < $1::timestamptz - interval '10 s'
    ORDER BY dispatched_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE task SET due_at = $1 WHERE id = ANY(ARRAY(SELECT id FROM silent))
RETURNING id, attempt
"""

TAKE_LOST = f"""
WITH lost AS MATERIALIZED (
    SELECT id, overdue_at > begun_at + make_interval(secs => time_limit_seconds + {MARGIN_SECONDS + 1}) AS told
    FROM task WHERE {RUNNING} AND overdue_at <= $1
    ORDER BY overdue_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE task SET overdue_at = $1::timestamptz + interval '30 s' FROM lost
WHERE task.id = lost.id AND task.id = ANY(ARRAY(SELECT id FROM lost))
RETURNING task.id, attempt, lease, told
"""

PUT_BACK = f"""
WITH mine AS MATERIALIZED (
    SELECT mine.id FROM unnest($1::uuid[]) AS untold (id) CROSS JOIN LATERAL (
        SELECT id, {RUNNING} AS running FROM task WHERE task.id = untold.id OFFSET 0 FOR UPDATE SKIP LOCKED
    ) AS mine WHERE running
)
UPDATE task SET overdue_at = begun_at + make_interval(secs => time_limit_seconds + {MARGIN_SECONDS})
WHERE id = ANY(ARRAY(SELECT id FROM mine))
"""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was given up for lost. `told`: a report of it may wait somewhere."""

    id: UUID
    attempt: int
    lease: UUID
    told: bool


async def repeat_dispatches(connection: Queries, now: datetime, limit: int) -> list[asyncpg.Record]:
    """Make tasks due again whose message nobody has begun for 10 s; return which attempts (id, attempt) these were.

    A message that merely waits may begin the task all the same, until it is claimed again.
    """
    rows = await connection.fetch(REPEAT_DISPATCHES, now, limit)
    if rows:
        await deployment.announce(connection)
    return rows


async def take_lost(connection: Queries, now: datetime, limit: int) -> Sequence[Call]:
    """List calls without an outcome in time, which are listed again only after 30 s."""
    return [Call(*row) for row in await connection.fetch(TAKE_LOST, now, limit)]


async def put_back(connection: Queries, calls: Sequence[Call]) -> None:
    """List these calls again at once: their reports have reached nobody for certain."""
    await connection.execute(PUT_BACK, [call.id for call in calls])
