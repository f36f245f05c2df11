"""Claiming due tasks, and taking a claim back: the relay's side of a task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from service_b.database import Queries

CLAIM = """
WITH due AS (
    SELECT id FROM task WHERE due_at <= now() AND deadline_at > now()
    ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE task SET due_at = NULL, dispatched_at = now(), attempt = attempt + 1
FROM due WHERE task.id = due.id
RETURNING task.id, attempt, equipment_id, timeout_seconds, time_limit_seconds, parameters
"""

MAKE_DUE_AGAIN = """
WITH locked AS (
    SELECT task.id FROM task JOIN unnest($1::uuid[], $2::integer[]) AS unsent (id, attempt)
        ON task.id = unsent.id AND task.attempt = unsent.attempt
    WHERE active AND due_at IS NULL ORDER BY equipment_id FOR UPDATE OF task
)
UPDATE task SET due_at = now() FROM locked WHERE task.id = locked.id
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


async def make_due_again(connection: Queries, attempts: Sequence[tuple[UUID, int]]) -> None:
    """Take back dispatches that certainly did not reach the broker."""
    await connection.execute(
        MAKE_DUE_AGAIN,
        [id_ for id_, _ in attempts],
        [number for _, number in attempts],
    )
