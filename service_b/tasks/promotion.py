"""Whose turn it is: the next task of a device that is free."""

from collections.abc import Sequence

import asyncpg

from service_b.database import Queries
from service_b.tasks import deployment
from service_b.tasks.states import NOW, WAITING

PROMOTE = f"""
WITH next AS MATERIALIZED (
    SELECT oldest.id
    FROM unnest($1::text[]) AS device (equipment_id)
    CROSS JOIN LATERAL (
        -- Whoever holds it: the one behind it must not overtake it.
        SELECT id FROM task WHERE task.equipment_id = device.equipment_id AND {WAITING} ORDER BY seq LIMIT 1
    ) AS oldest
    CROSS JOIN LATERAL (
        SELECT {WAITING} AS still FROM task WHERE task.id = oldest.id OFFSET 0 FOR UPDATE SKIP LOCKED
    ) AS mine
    WHERE still AND (SELECT true FROM task WHERE task.equipment_id = device.equipment_id AND active LIMIT 1) IS NULL
), promoted AS (
    UPDATE task SET active = true, due_at = {NOW} WHERE id = ANY(ARRAY(SELECT id FROM next)) RETURNING id
)
SELECT count(*) FROM promoted
"""

LOOK_FOR_STRANDED = f"""
WITH RECURSIVE device AS (
    (SELECT equipment_id FROM task WHERE {WAITING} AND equipment_id > $1 ORDER BY equipment_id LIMIT 1)
    UNION ALL
    SELECT (SELECT equipment_id FROM task WHERE {WAITING} AND equipment_id > device.equipment_id
            ORDER BY equipment_id LIMIT 1)
    FROM device WHERE device.equipment_id IS NOT NULL
)
SELECT equipment_id,
    (SELECT true FROM task WHERE task.equipment_id = device.equipment_id AND active LIMIT 1) IS NOT NULL AS held
FROM device WHERE equipment_id IS NOT NULL LIMIT $2
"""


async def promote(connection: Queries, equipment_ids: Sequence[str]) -> int:
    """Make the oldest waiting task due of each device that has no active one; return how many there were.

    To be asked after the commit of whatever stores a waiting task, and of whatever ends an active one (which asks
    within its transaction, too, so that a process that dies in between leaves nothing undone). Neither waits for the
    other, but the one that commits last sees here what the other has done.

    A device whose oldest waiting task somebody else holds is left out: `promote_stranded` comes back to it.
    """
    if not equipment_ids:
        return 0
    devices = sorted(set(equipment_ids))  # Always in the same order: so there is no deadlock.
    while True:
        try:
            promoted: int = await connection.fetchval(PROMOTE, devices)
            break
        except asyncpg.UniqueViolationError:
            continue  # A task that was stored meanwhile was quicker, and is seen now.
    if promoted:
        await deployment.announce(connection)
    return promoted


async def promote_stranded(connection: Queries, after: str, limit: int) -> tuple[str, int]:
    """Look at the next `limit` devices with waiting tasks; promote where nothing is active in front of them.

    Returns the device to go on from ("" after the last) and the number promoted. There is something to find where a
    process died between its commit and its promotion, where a waiting task was held by somebody, and where an
    operator's own SQL ended a task.
    """
    rows = await connection.fetch(LOOK_FOR_STRANDED, after, limit)
    promoted = await promote(connection, [row["equipment_id"] for row in rows if not row["held"]])
    return (rows[-1]["equipment_id"] if len(rows) == limit else "", promoted)
