"""Writing down what came of attempts: the results process's side of a task."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from service_b.database import Connection
from service_b.tasks import deployment, promotion
from service_b.tasks.endings import MOVE
from service_b.tasks.states import NOW

APPLY = f"""
WITH change AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::integer[], $3::smallint[], $4::text[],
                         $5::interval[], $6::interval[], $7::boolean[])
    AS change (id, attempt, code, reason, hold, backoff, unknown)
), locked AS MATERIALIZED (
    -- It counts if its task is active (not waiting) and at this very attempt. A final answer counts though the task is
    -- due again.
    SELECT change.*,
        mine.active AND mine.attempt = change.attempt AND (change.code IS NOT NULL OR mine.due_at IS NULL) AS counts
    FROM change CROSS JOIN LATERAL (
        SELECT attempt, due_at, active FROM task WHERE task.id = change.id OFFSET 0 FOR UPDATE SKIP LOCKED
    ) AS mine
), again AS (
    UPDATE task SET
        reason = locked.reason,
        -- Not before the device is free; else politely late, but not too late for another attempt.
        due_at = greatest({NOW} + locked.hold, least({NOW} + locked.backoff, deadline_at)),
        begun_at = NULL,
        overdue_at = NULL,
        unknowns = unknowns + locked.unknown::integer,
        -- All attempts are used up: it ends as soon as the device is free.
        deadline_at = CASE WHEN locked.unknown AND unknowns + 1 >= $8
            THEN least(deadline_at, {NOW} + locked.hold) ELSE deadline_at END
    FROM locked
    WHERE counts AND locked.code IS NULL AND task.id = locked.id
      -- Says the same once more: so the table is never read but by its key, whatever the statistics say.
      AND task.id = ANY(ARRAY(SELECT id FROM locked))
    RETURNING task.id, task.attempt, task.created_at, task.due_at <= {NOW} AS due
), ending AS (
    SELECT id, code, reason FROM locked WHERE counts AND code IS NOT NULL
), {MOVE}
SELECT false AS held, id, attempt, created_at, due, NULL AS freed FROM again
UNION ALL
SELECT false, id, attempt, created_at, false, equipment_id FROM ended
UNION ALL
SELECT true, change.id, change.attempt, NULL, NULL, NULL
FROM change CROSS JOIN LATERAL (SELECT FROM task WHERE task.id = change.id OFFSET 0) AS found
WHERE change.id NOT IN (SELECT id FROM locked)
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


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a batch of changes, by task and attempt."""

    accepted: dict[tuple[UUID, int], datetime]
    """Those that counted, and when their tasks were accepted."""
    held: set[tuple[UUID, int]]
    """Those whose row somebody else holds: to be tried again."""


async def apply(connection: Connection, changes: Sequence[Change], *, max_attempts: int) -> Applied:
    """Write down what came of attempts, and promote the next task of each device that is free now.

    An outcome that is late (of an earlier attempt), repeated (the task is finished, or due already) or of an unknown
    task changes nothing. A task whose attempts are used up is not finished here: its deadline is drawn to the moment
    when service A has surely let go of the device, and the reconciler ends it then. Waits for no row that somebody
    else holds. Begins and commits a transaction of its own.
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
        applied = [row for row in rows if not row["held"]]
        freed = [row["freed"] for row in applied if row["freed"]]
        await promotion.promote(connection, freed)
        if any(row["due"] for row in applied):
            await deployment.announce(connection)
    # Once more, for what was being stored while this committed.
    await promotion.promote(connection, freed)
    return Applied(
        {(row["id"], row["attempt"]): row["created_at"] for row in applied},
        {(row["id"], row["attempt"]) for row in rows if row["held"]},
    )
