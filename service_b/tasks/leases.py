"""Beginning calls of service A: one for each attempt, and nobody calls without."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from service_b.database import Queries
from service_b.tasks.states import LATELY, NOW, RUNNING

MARGIN_SECONDS = 10
"""So long after a call's time limit its outcome is still awaited."""

BEGUN = f"greatest({NOW}, coalesce($4::timestamptz, {LATELY}))"
"""Should the database's clock jump back, no call that begins just then seems to be late already."""

GRANT = f"""
WITH asked AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::integer[], $3::uuid[]) WITH ORDINALITY AS asked (id, attempt, lease, position)
), locked AS MATERIALIZED (
    SELECT asked.id, asked.lease, asked.position,
        CASE WHEN NOT mine.active THEN 'ended'
             WHEN mine.attempt <> asked.attempt THEN 'old'
             WHEN mine.running AND mine.lease = asked.lease THEN 'granted'
             WHEN mine.lease IS NOT NULL THEN 'taken'
             WHEN mine.expired THEN 'expired'
             ELSE 'free' END AS answer
    FROM asked CROSS JOIN LATERAL (
        SELECT attempt, lease, active, {RUNNING} AS running,
            cancel_requested OR deadline_at <= {BEGUN} AS expired
        FROM task WHERE task.id = asked.id OFFSET 0 FOR UPDATE SKIP LOCKED
    ) AS mine
), begun AS (
    -- Of two that ask for one attempt at once, one is first: nobody updates a row twice.
    UPDATE task SET due_at = NULL, begun_at = {BEGUN}, lease = locked.lease,
        overdue_at = {BEGUN} + make_interval(secs => time_limit_seconds + {MARGIN_SECONDS}),
        answers_before = (SELECT answers FROM service_a)
    FROM locked
    WHERE answer = 'free' AND task.id = locked.id AND task.id = ANY(ARRAY(SELECT id FROM locked))
    RETURNING task.id, task.lease, nextval('task_begun')  -- The relays see how fast calls begin.
)
SELECT CASE WHEN answer = 'free' THEN CASE WHEN begun.lease = asked.lease THEN 'granted' ELSE 'taken' END
            WHEN answer IS NOT NULL THEN answer
            WHEN (SELECT true FROM task WHERE task.id = asked.id LIMIT 1) THEN 'held'
            ELSE 'ended' END
FROM asked LEFT JOIN locked USING (position) LEFT JOIN begun ON begun.id = asked.id
ORDER BY asked.position
"""


class Answer(StrEnum):
    """What becomes of a wish to call service A for an attempt."""

    GRANTED = "granted"
    """Written down: it begins now, under this lease; or has begun under it."""
    HELD = "held"
    """Somebody else holds the task's row: ask again."""
    TAKEN = "taken"
    """Another lease has it, or had it."""
    OLD = "old"
    """It is not the task's current attempt."""
    EXPIRED = "expired"
    """The deadline has passed, or somebody has cancelled it."""
    ENDED = "ended"
    """No such task, or none that may configure its device now."""


async def grant(
    connection: Queries, asked: Sequence[tuple[UUID, int, UUID]], at_least: datetime | None = None
) -> list[Answer]:
    """Begin the calls of attempts (a task, which attempt at it, and the call's own lease); answer each, in order.

    Asked again with the same lease, it is granted again while the call is under way: an answer may have been lost. A
    task that is due again because its message seemed lost may begin all the same, as long as nobody has claimed it.
    Internal time is `at_least` so late (`Clock.at_least`).
    """
    rows = await connection.fetch(
        GRANT,
        [id_ for id_, _, _ in asked],
        [number for _, number, _ in asked],
        [lease for _, _, lease in asked],
        at_least,
    )
    return [Answer(row[0]) for row in rows]
