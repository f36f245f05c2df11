"""Claiming due tasks, and taking a claim back: the relay's side of a task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from runtime import clock
from service_b.database import Queries
from service_b.tasks.states import COUNTS, DISPATCHED, NOW, USED_UP

DISPATCH = f"""
SET due_at = NULL, dispatched_at = least({NOW}, $3), attempt = attempt + 1, lease = NULL,
    unknowns = unknowns + ({COUNTS})::integer, chances = NULL
WHERE id = ANY(ARRAY(SELECT id FROM due))
RETURNING id, attempt, equipment_id, timeout_seconds, time_limit_seconds, parameters,
    (SELECT max(due_at) FROM due) AS reached
"""
"""The end of a statement that updates the tasks in `due`; $3 is how late it can be at most."""

CLAIM = f"""
WITH due AS MATERIALIZED (
    SELECT id, due_at FROM task WHERE due_at >= coalesce($2::timestamptz, '-infinity')
      AND due_at <= least({NOW}, $3::timestamptz) AND deadline_at > {NOW} AND ({USED_UP}) IS NOT TRUE
    ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE task {DISPATCH}
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
    UPDATE task SET due_at = {NOW} WHERE id = ANY(ARRAY(SELECT id FROM locked WHERE counts))
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


class Floor:
    """From where on a claim looks: what was due before has been claimed.

    While an old snapshot lives (a dump, a forgotten transaction) the index keeps an entry for every claim since then,
    and a claim from the beginning would read them all. A task may become due below the floor all the same: its commit
    came late, somebody held its row, the clock was put back. So a claim begins a little below, and now and then it
    looks at everything.
    """

    def __init__(self, *, margin_seconds: float = 2.0, everything_seconds: float = 10.0) -> None:
        self._margin = timedelta(seconds=margin_seconds)
        self._everything_seconds = everything_seconds
        self._everything_at = 0.0
        self._reached: datetime | None = None

    def since(self) -> datetime | None:
        """Tell from which due time on to look now; None: look at everything."""
        if self._reached is None or clock.now() >= self._everything_at:
            self._everything_at = clock.now() + self._everything_seconds
            return None
        return self._reached - self._margin

    def move(self, reached: datetime, *, is_last: bool) -> None:
        """Note up to which due time tasks have been claimed; `is_last` if nothing was left behind them."""
        if is_last and self._reached is not None:
            reached = max(reached, self._reached)
        self._reached = reached

    def forget(self) -> None:
        """Look at everything until nothing is left behind."""
        self._reached = None


async def claim(
    connection: Queries, limit: int, floor: Floor | None = None, *, latest: datetime | None = None
) -> list[Dispatch]:
    """Begin the next attempt of up to `limit` due tasks, the longest due first.

    `latest` is how late it can be at most: the database's clock is not believed beyond that.
    """
    rows = await connection.fetch(CLAIM, limit, floor.since() if floor else None, latest)
    if rows and floor:
        floor.move(rows[0]["reached"], is_last=len(rows) < limit)
    return [Dispatch(*tuple(row)[:-1]) for row in rows]


async def make_due_again(connection: Queries, attempts: Sequence[tuple[UUID, int]]) -> list[tuple[UUID, int]]:
    """Take back dispatches that the broker may not have, unless their calls have begun; return those that are held."""
    held = await connection.fetch(
        MAKE_DUE_AGAIN,
        [id_ for id_, _ in attempts],
        [number for _, number in attempts],
    )
    return [(row["id"], row["attempt"]) for row in held]
