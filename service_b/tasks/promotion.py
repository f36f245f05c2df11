"""Whose turn it is: the next task of a device that is free."""

from collections.abc import Sequence

from service_b.database import Connection

DUE = "task_due"
"""Notified when a task became due that no insert of the same process announces."""

ANNOUNCE = "SELECT pg_notify($1, '')"

PROMOTE = """
WITH next AS (
    SELECT (SELECT id FROM task
            WHERE task.equipment_id = freed.equipment_id AND status = 'pending' AND NOT active
            ORDER BY seq LIMIT 1 FOR UPDATE) AS id
    FROM unnest($1::text[]) AS freed (equipment_id)
), promoted AS (
    UPDATE task SET active = true, due_at = now() FROM next WHERE task.id = next.id RETURNING task.id
)
SELECT count(*) FROM promoted
"""

LOOK_FOR_STRANDED = """
WITH RECURSIVE device AS (
    SELECT min(equipment_id) AS equipment_id FROM task
    WHERE status = 'pending' AND NOT active AND equipment_id > $1
    UNION ALL
    SELECT (SELECT min(equipment_id) FROM task
            WHERE status = 'pending' AND NOT active AND equipment_id > device.equipment_id)
    FROM device WHERE device.equipment_id IS NOT NULL
)
SELECT equipment_id,
    EXISTS (SELECT FROM task WHERE task.equipment_id = device.equipment_id AND active) AS held
FROM device WHERE equipment_id IS NOT NULL LIMIT $2
"""


async def promote(connection: Connection, equipment_ids: Sequence[str]) -> int:
    """Make the next waiting task of each device due; return how many there were.

    A statement of its own, after the one that freed the devices: it must see what was committed while that one waited
    for its locks. It locks what it has found: a waiting task that expires meanwhile gives way to the one behind it.
    """
    promoted: int = await connection.fetchval(PROMOTE, equipment_ids)
    if promoted:
        await announce(connection)
    return promoted


async def announce(connection: Connection) -> None:
    """Wake the relays of all processes once this transaction has been committed."""
    await connection.execute(ANNOUNCE, DUE)


async def promote_stranded(connection: Connection, after: str, limit: int) -> tuple[str, int]:
    """Look at the next `limit` devices with waiting tasks; promote where nothing is active in front of them.

    Returns the device to go on from ("" after the last) and the number promoted. The locks that inserts take
    should leave nothing to find: this heals what an operator's own SQL may have done.
    """
    async with connection.transaction():
        rows = await connection.fetch(LOOK_FOR_STRANDED, after, limit)
        stranded = [row["equipment_id"] for row in rows if not row["held"]]
        promoted = await promote(connection, stranded) if stranded else 0
    return (rows[-1]["equipment_id"] if len(rows) == limit else "", promoted)
