"""Ending tasks at their deadline."""

from uuid import UUID

from service_b.database import Connection
from service_b.tasks import promotion

EXPIRE = """
WITH expired AS (
    SELECT id, active FROM task
    WHERE status = 'pending' AND (due_at IS NOT NULL OR NOT active)
      AND deadline_at <= now() AND (due_at IS NULL OR due_at <= now())
    ORDER BY deadline_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE task SET status = 'error', code = 500, reason = coalesce(reason, 'deadline passed'),
    active = false, due_at = NULL, finished_at = now()
FROM expired WHERE task.id = expired.id
RETURNING task.id, task.equipment_id, expired.active AS was_active
"""


async def expire(connection: Connection, limit: int) -> list[UUID]:
    """End tasks whose deadline has passed and whose device service A is surely not working on for them."""
    async with connection.transaction():
        rows = await connection.fetch(EXPIRE, limit)
        freed = [row["equipment_id"] for row in rows if row["was_active"]]
        if freed:
            await promotion.promote(connection, freed)
    return [row["id"] for row in rows]
