"""Writing down what came of attempts: the results process's side of a task."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias
from uuid import UUID

from service_b.database import Connection
from service_b.tasks import deployment, promotion
from service_b.tasks.endings import MOVE
from service_b.tasks.history import event, grown
from service_b.tasks.states import LATELY, NOW, RUNNING

MAX_LOSTS = 5
"""A task that has taken so many processes with it is not tried again."""

ENDED = f"greatest({NOW}, coalesce($11::timestamptz, {LATELY}))"
"""Should the database's clock jump back, no device is let go too soon."""

ENDED_OTHERWISE = event("attempt ended", attempt="change.attempt", outcome="outcome", reason="reason")

APPLY = f"""
WITH change AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::integer[], $3::uuid[], $4::smallint[], $5::text[],
                         $6::interval[], $7::interval[], $8::boolean[], $9::boolean[], $12::text[]) WITH ORDINALITY
    AS change (id, attempt, lease, code, reason, hold, backoff, unknown, lost, outcome, position)
), locked AS MATERIALIZED (
    -- It counts if it names its task's attempt and lease, whose call is under way. A final answer counts though its
    -- task is due again.
    SELECT change.id, reason, hold, unknown, lost, position,
        CASE WHEN outcome IS NOT NULL THEN {ENDED_OTHERWISE} END AS event,
        backoff * CASE WHEN lost THEN 2 ^ mine.losts ELSE 1 END AS backoff,
        CASE WHEN lost AND mine.losts + 1 >= {MAX_LOSTS} THEN 500 ELSE code END AS code,
        mine.attempt = change.attempt AND mine.lease = change.lease AND (code IS NOT NULL OR mine.running) AS counts
    FROM change CROSS JOIN LATERAL (
        SELECT attempt, lease, losts, {RUNNING} AS running FROM task WHERE task.id = change.id
        OFFSET 0 FOR UPDATE SKIP LOCKED
    ) AS mine
), again AS (
    UPDATE task SET
        reason = locked.reason,
        -- Not before the device is free; else politely late, but not too late for another attempt.
        due_at = greatest({ENDED} + locked.hold, least({ENDED} + locked.backoff, deadline_at)),
        begun_at = NULL,
        overdue_at = NULL,
        chances = CASE WHEN locked.unknown THEN greatest($10 - unknowns - 1, 0) END,
        losts = losts + locked.lost::integer,
        history = {grown("locked.event")}
    FROM locked
    WHERE counts AND locked.code IS NULL AND task.id = locked.id
      -- Says the same once more: so the table is never read but by its key, whatever the statistics say.
      AND task.id = ANY(ARRAY(SELECT id FROM locked))
    RETURNING task.id, task.created_at, task.due_at <= {NOW} AS due
), ending AS (
    SELECT id, code, reason, NULL AS ended_by, event FROM locked WHERE counts AND code IS NOT NULL
), {MOVE}, done AS (
    SELECT id, created_at, due, NULL AS freed FROM again
    UNION ALL
    SELECT id, created_at, false, equipment_id FROM ended
)
SELECT position, code, created_at, due, freed FROM locked JOIN done USING (id) WHERE counts
UNION ALL
SELECT position, NULL, NULL, NULL, NULL
FROM change CROSS JOIN LATERAL (SELECT FROM task WHERE task.id = change.id OFFSET 0) AS found
WHERE position NOT IN (SELECT position FROM locked)
"""


Key: TypeAlias = tuple[UUID, int, UUID | None]
"""A call of service A: a task, which attempt at it, and its lease."""


@dataclass(frozen=True, slots=True)
class Change:
    """What an outcome does to its task: finish it (`code`) or make it due again."""

    id: UUID
    # Which one it came of: 1, 2, ...
    attempt: int
    # What its call was begun under.
    lease: UUID | None
    # 200, 404 or 500 finish the task; None makes it due again.
    code: int | None
    # Service A's words or ours; the last one stays with the task.
    reason: str | None
    # The device must be left alone for that long.
    hold_seconds: float = 0
    # It is polite to wait for that long, but not beyond the task's deadline; twice as long for each call lost before.
    backoff_seconds: float = 0
    # Ended without an answer of service A's.
    unknown: bool = False
    # Ended with the process that made it.
    lost: bool = False
    # How it ended, for the task's history; None: as all hope.
    outcome: str | None = None

    @property
    def key(self) -> Key:
        """Which call it came of."""
        return self.id, self.attempt, self.lease


@dataclass(frozen=True, slots=True)
class Counted:
    """An outcome that counted."""

    # When its task was accepted.
    accepted_at: datetime
    # None: the task is due again. A lost call may have finished it.
    code: int | None


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a batch of changes."""

    counted: dict[Key, Counted]
    held: set[Key]
    """Those whose row somebody else holds: to be tried again."""


async def apply(
    connection: Connection, changes: Sequence[Change], *, max_attempts: int, at_least: datetime | None = None
) -> Applied:
    """Write down what came of attempts, and promote the next task of each device that is free now.

    `changes` hold no call twice. An outcome that is late (of an earlier attempt), repeated (the task is finished, or
    due already), of another lease or of an unknown task changes nothing. Whether an unknown end uses up one of
    `max_attempts` is not decided here, but when the next attempt is due: see `states.COUNTS`. Waits for no row that
    somebody else holds. Begins and commits a transaction of its own. Internal time is `at_least` so late
    (`Clock.at_least`).
    """
    async with connection.transaction():
        rows = await connection.fetch(
            APPLY,
            [change.id for change in changes],
            [change.attempt for change in changes],
            [change.lease for change in changes],
            [change.code for change in changes],
            [change.reason for change in changes],
            [timedelta(seconds=change.hold_seconds) for change in changes],
            [timedelta(seconds=change.backoff_seconds) for change in changes],
            [change.unknown for change in changes],
            [change.lost for change in changes],
            max_attempts,
            at_least,
            [change.outcome for change in changes],
        )
        freed = [row["freed"] for row in rows if row["freed"]]
        await promotion.promote(connection, freed)
        if any(row["due"] for row in rows):
            await deployment.announce(connection)
    # Once more, for what was being stored while this committed.
    await promotion.promote(connection, freed)
    by_key = [(changes[row["position"] - 1].key, row) for row in rows]
    return Applied(
        {key: Counted(row["created_at"], row["code"]) for key, row in by_key if row["created_at"]},
        {key for key, row in by_key if not row["created_at"]},
    )
