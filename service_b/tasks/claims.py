"""Claiming due tasks, and taking a claim back: the relay's side of a task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from service_b.database import Queries
from service_b.tasks.states import DISPATCHED

CLAIM = """
WITH due AS MATERIALIZED (
    SELECT id FROM task WHERE due_at <= now() AND deadline_at > now()
    ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE task SET due_at = NULL, dispatched_at = now(), attempt = attempt + 1
WHERE id = ANY(ARRAY(SELECT id FROM due))
RETURNING id, attempt, equipment_id, timeout_seconds, time_limit_seconds, parameters
"""

MAKE_DUE_AGAIN = f"""
WITH unsent AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::integer[]) AS unsent (id, attempt)
), locked AS MATERIALIZED (
    SELECT unsent.id, mine.dispatched AND mine.attempt = unsent.attempt AS counts
    FROM unsent CROSS JOIN LATERAL (
        SELECT attempt, {DISPATCHED} AS dispatched FROM task WHERE task.id = unsent.id OFFSET 0 FOR UPDATE SKIP LOCKED
    ) AS mine
), taken_back AS (
    UPDATE task SET due_at = now() WHERE id = ANY(ARRAY(SELECT id FROM locked WHERE counts))
)
SELECT unsent.id, unsent.attempt
FROM unsent CROSS JOIN LATERAL (SELECT FROM task WHERE task.id = unsent.id OFFSET 0) AS held
WHERE unsent.id NOT IN (SELECT id FROM locked)
"""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One attempt at a task, claimed by a relay. `parameters` is JSON text."""

    id: UUID
    attempt: int
    equipment_id: str
    timeout_seconds: int
    time_limit_seconds: float
    parameters: str = field(repr=False)


async def claim(connection: Queries, limit: int) -> list[Dispatch]:
    """Begin the next attempt of up to `limit` due tasks, the longest due first."""
    rows = await connection.fetch(CLAIM, limit)
    return [Dispatch(*row) for row in rows]


async def make_due_again(connection: Queries, attempts: Sequence[tuple[UUID, int]]) -> list[tuple[UUID, int]]:
    """Take back dispatches that certainly did not reach the broker; return those whose row somebody else holds."""
    held = await connection.fetch(
        MAKE_DUE_AGAIN,
        [id_ for id_, _ in attempts],
        [number for _, number in attempts],
    )
    return [(row["id"], row["attempt"]) for row in held]
