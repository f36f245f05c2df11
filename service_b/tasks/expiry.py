"""Ending tasks at their deadline."""

from uuid import UUID

from service_b.database import Connection
from service_b.tasks import promotion
from service_b.tasks.endings import MOVE
from service_b.tasks.states import AT_HOME, NOW

EXPIRE = f"""
WITH ending AS MATERIALIZED (
    SELECT id, 500 AS code, coalesce(reason, 'deadline passed') AS reason FROM task
    WHERE {AT_HOME} AND deadline_at <= {NOW} AND (due_at IS NULL OR due_at <= {NOW})
    ORDER BY deadline_at LIMIT $1 FOR UPDATE SKIP LOCKED
), {MOVE}
SELECT id, equipment_id FROM ended
"""


async def expire(connection: Connection, limit: int) -> list[UUID]:
    """End tasks whose deadline has passed and whose device service A is surely not working on for them."""
    async with connection.transaction():
        rows = await connection.fetch(EXPIRE, limit)
        ended = [row["equipment_id"] for row in rows]
        await promotion.promote(connection, ended)
    # Once more, for what was being stored while this committed.
    await promotion.promote(connection, ended)
    return [row["id"] for row in rows]
