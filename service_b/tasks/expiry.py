"""Ending tasks that are not tried any more: their deadline has passed, or their attempts are used up."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from service_b.database import Connection
from service_b.tasks import promotion
from service_b.tasks.endings import MOVE
from service_b.tasks.states import NOT_BEGUN, USED_UP

EXPIRE = f"""
WITH ending AS MATERIALIZED (
    SELECT id, 500 AS code,
        CASE WHEN cancel_requested THEN 'cancelled' ELSE coalesce(reason, 'deadline passed') END AS reason,
        CASE WHEN cancel_requested THEN 'cancel' ELSE 'deadline' END AS ended_by, NULL::jsonb AS event
    FROM task
    WHERE {NOT_BEGUN} AND deadline_at <= $1 AND (due_at IS NULL OR due_at <= $1)
    ORDER BY deadline_at LIMIT $2 FOR UPDATE SKIP LOCKED
), {MOVE}
SELECT id, equipment_id, ended_by FROM ended
"""

END_USED_UP = f"""
WITH ending AS MATERIALIZED (
    SELECT id, 500 AS code, reason, NULL AS ended_by, NULL::jsonb AS event FROM task WHERE {USED_UP} AND due_at <= $1
    ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
), {MOVE}
SELECT id, equipment_id, ended_by FROM ended
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """A task that has ended without an outcome; by `deadline` or `cancel`, or None: its attempts are used up."""

    id: UUID
    by: str | None


async def expire(connection: Connection, now: datetime, limit: int) -> list[Ended]:
    """End tasks whose deadline has passed, or is set to when they were cancelled, and whose device is free.

    That is when service A is surely not working on it for them. One that is dispatched ends, too: its message begins
    nothing any more. `now` is what the asking process takes for internal time: should the database's clock jump,
    nothing ends too soon.
    """
    async with connection.transaction():
        rows = await connection.fetch(EXPIRE, now, limit)
        await _promote(connection, rows)
    await _promote(connection, rows)
    return [Ended(row["id"], row["ended_by"]) for row in rows]


async def end_used_up(connection: Connection, now: datetime, limit: int) -> list[Ended]:
    """End tasks that have had their attempts, as soon as their device is free."""
    async with connection.transaction():
        rows = await connection.fetch(END_USED_UP, now, limit)
        await _promote(connection, rows)
    await _promote(connection, rows)
    return [Ended(row["id"], row["ended_by"]) for row in rows]


async def _promote(connection: Connection, ended: Sequence[Record]) -> None:
    """Promote those behind; asked again after the commit, for what was being stored meanwhile."""
    await promotion.promote(connection, [row["equipment_id"] for row in ended])
