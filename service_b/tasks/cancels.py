"""Cancelling: a task whose attempt has no lease ends at once; one that has had it is not tried again."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from service_b.database import Connection
from service_b.tasks import promotion
from service_b.tasks.endings import MOVE
from service_b.tasks.history import event, grown
from service_b.tasks.states import NOW

CANCELLED = event("cancelled", by="asked.by")
REQUESTED = event("cancel requested", attempt="task.attempt", by="locked.by")

# A claim forgets the lease of the attempt before: by then the device is free, and no answer of that attempt counts.
CANCEL = f"""
WITH asked AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS asked (id, by, position)
), locked AS MATERIALIZED (
    SELECT asked.id, by, position, has_begun, {CANCELLED} AS event FROM asked CROSS JOIN LATERAL (
        SELECT lease IS NOT NULL AS has_begun FROM task WHERE task.id = asked.id OFFSET 0 FOR UPDATE SKIP LOCKED
    ) AS mine
), requested AS (
    -- Nothing is tried after its deadline, and the maintenance ends it as soon as its device is free.
    UPDATE task SET cancel_requested = true, deadline_at = least(deadline_at, {NOW}, $3::timestamptz),
        history = {grown(REQUESTED)}
    FROM locked
    WHERE has_begun AND NOT cancel_requested AND task.id = locked.id AND task.id = ANY(ARRAY(SELECT id FROM locked))
), ending AS (
    SELECT id, 500 AS code, 'cancelled' AS reason, 'cancel' AS ended_by, event FROM locked WHERE NOT has_begun
), {MOVE}
SELECT CASE WHEN NOT has_begun THEN 'cancelled'
            WHEN has_begun THEN 'requested'
            WHEN (SELECT true FROM task WHERE task.id = asked.id LIMIT 1) THEN 'held'
            ELSE 'ended' END AS answer, ended.equipment_id AS freed
FROM asked LEFT JOIN locked USING (position) LEFT JOIN ended ON ended.id = asked.id
ORDER BY asked.position
"""


class Answer(StrEnum):
    """What becomes of a wish to cancel a task."""

    CANCELLED = "cancelled"
    """It has ended, and never begins any more."""
    REQUESTED = "requested"
    """A call of it has begun: its answer counts, but it is not tried again."""
    HELD = "held"
    """Somebody else holds the task's row: ask again."""
    ENDED = "ended"
    """It has ended already; or there never was such a task."""


async def cancel(
    connection: Connection, asked: Sequence[tuple[UUID, str | None]], at_least: datetime | None = None
) -> list[Answer]:
    """Cancel tasks, each by whom (the name of a token, if there is one); answer each, in order.

    The lease is the line: whichever of a lease and this is first locks the row, and the other one sees it. Asked
    again, nothing changes. Internal time is `at_least` so late (`Clock.at_least`): should the database's clock jump
    ahead, a task that is not to be tried again is not tried again.
    """
    async with connection.transaction():
        rows = await connection.fetch(CANCEL, [id_ for id_, _ in asked], [by for _, by in asked], at_least)
        freed = [row["freed"] for row in rows if row["freed"]]
        await promotion.promote(connection, freed)
    # Once more, for what was being stored while this committed.
    await promotion.promote(connection, freed)
    return [Answer(row["answer"]) for row in rows]
