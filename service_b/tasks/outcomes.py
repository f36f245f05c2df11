"""Writing down what came of attempts: the results process's side of a task."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from service_b.database import Connection
from service_b.tasks import promotion

APPLY = """
WITH change AS (
    SELECT * FROM unnest($1::uuid[], $2::integer[], $3::smallint[], $4::text[],
                         $5::interval[], $6::interval[], $7::boolean[])
    AS change (id, attempt, code, reason, hold, backoff, unknown)
), locked AS (
    SELECT task.id FROM task JOIN change ON task.id = change.id
    WHERE task.attempt = change.attempt AND task.status = 'pending'
    ORDER BY task.equipment_id FOR UPDATE OF task
)
UPDATE task SET
    status = CASE WHEN change.code IS NULL THEN 'pending'
                  WHEN change.code = 200 THEN 'success' ELSE 'error' END,
    code = change.code,
    reason = change.reason,
    active = change.code IS NULL,
    finished_at = CASE WHEN change.code IS NOT NULL THEN now() END,
    due_at = CASE WHEN change.code IS NULL
        THEN greatest(now() + change.hold, least(now() + change.backoff, deadline_at)) END,
    unknowns = unknowns + change.unknown::integer,
    deadline_at = CASE WHEN change.unknown AND unknowns + 1 >= $8
        THEN least(deadline_at, now() + change.hold) ELSE deadline_at END
FROM change, locked
WHERE task.id = change.id AND task.id = locked.id AND task.attempt = change.attempt
  AND task.status = 'pending' AND (change.code IS NOT NULL OR task.due_at IS NULL)
RETURNING task.id, task.attempt, task.equipment_id, task.created_at, task.active,
    task.due_at <= now() AS due
"""


@dataclass(frozen=True, slots=True)
class Change:
    """What an outcome does to its task: finish it (`code`) or make it due again."""

    id: UUID
    # Which one it came of: 1, 2, ...
    attempt: int
    # 200, 404 or 500 finish the task; None makes it due again.
    code: int | None
    # Service A's words or ours; the last one stays with the task.
    reason: str | None
    # The device must be left alone for that long.
    hold_seconds: float = 0
    # It is polite to wait for that long, but not beyond the task's deadline.
    backoff_seconds: float = 0
    # Counts as an attempt whose answer is not known.
    unknown: bool = False


async def apply(
    connection: Connection, changes: Sequence[Change], *, max_attempts: int
) -> dict[tuple[UUID, int], datetime]:
    """Write down what came of attempts, and promote the next task of each device that is free now.

    Returns the attempts whose outcome counted, and when their tasks were accepted. An outcome that is late (of an
    earlier attempt), repeated (the task is finished, or due already) or of an unknown task changes nothing. A task
    whose attempts are used up is not finished here: its deadline is drawn to the moment when service A has surely
    let go of the device, and the reconciler ends it then.
    """
    async with connection.transaction():
        rows = await connection.fetch(
            APPLY,
            [change.id for change in changes],
            [change.attempt for change in changes],
            [change.code for change in changes],
            [change.reason for change in changes],
            [timedelta(seconds=change.hold_seconds) for change in changes],
            [timedelta(seconds=change.backoff_seconds) for change in changes],
            [change.unknown for change in changes],
            max_attempts,
        )
        freed = [row["equipment_id"] for row in rows if not row["active"]]
        if freed:
            await promotion.promote(connection, freed)
        if any(row["due"] for row in rows):
            await promotion.announce(connection)
    return {(row["id"], row["attempt"]): row["created_at"] for row in rows}
