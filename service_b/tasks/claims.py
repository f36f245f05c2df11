"""Claiming due tasks, and taking a claim back: the relay's side of a task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from service_b.database import Queries
from service_b.tasks.lanes import Lanes, by_lane
from service_b.tasks.states import COUNTS, DISPATCHED, NOW, USED_UP

CLAIMABLE = f"due_at <= least({NOW}, $3::timestamptz) AND deadline_at > {NOW} AND ({USED_UP}) IS NOT TRUE"
SINGLE = f"NOT bulk AND due_at >= coalesce($2::timestamptz, '-infinity') AND {CLAIMABLE}"
BULK = f"bulk AND due_at >= coalesce($4::timestamptz, '-infinity') AND {CLAIMABLE}"
"""What may be claimed in each lane; $2 and $4 are from when on each is looked at, $3 is how late it can be at most."""

ROOM_FOR_SINGLE = (
    f"$1 - (SELECT count(*) FROM (SELECT FROM task WHERE {BULK} ORDER BY due_at LIMIT $5) AS left_to_bulk)"
)
"""$1 is how many are claimed, $5 how many of them the single ones leave to the bulk, where there are as many."""

DISPATCH = f"""
SET due_at = NULL, dispatched_at = least({NOW}, $3), attempt = attempt + 1, lease = NULL,
    unknowns = unknowns + ({COUNTS})::integer, chances = NULL
WHERE id = ANY(ARRAY(SELECT id FROM single UNION ALL SELECT id FROM bulk))
RETURNING id, attempt, equipment_id, timeout_seconds, time_limit_seconds, parameters, sealed_for, bulk,
    CASE WHEN bulk THEN (SELECT max(due_at) FROM bulk) ELSE (SELECT max(due_at) FROM single) END AS reached
"""
"""The end of a statement that updates the tasks in `single` and `bulk`."""

CLAIM = f"""
WITH single AS MATERIALIZED (
    SELECT id, due_at FROM task WHERE {SINGLE}
    ORDER BY due_at LIMIT {ROOM_FOR_SINGLE} FOR UPDATE SKIP LOCKED
), bulk AS MATERIALIZED (
    SELECT id, due_at FROM task WHERE {BULK}
    ORDER BY due_at LIMIT $1 - (SELECT count(*) FROM single) FOR UPDATE SKIP LOCKED
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
    # Which task they are sealed for, where that is another one: this one tries it again.
    sealed_for: UUID | None = None
    bulk: bool = False


async def claim(
    connection: Queries,
    limit: int,
    lanes: Lanes | None = None,
    *,
    latest: datetime | None = None,
    only_single: bool = False,
) -> list[Dispatch]:
    """Begin the next attempt of up to `limit` due tasks: of each lane the longest due first.

    `latest` is how late it can be at most: the database's clock is not believed beyond that.
    """
    lanes = lanes or Lanes()
    since_single, since_bulk, share = lanes.ask(limit, only_single=only_single)
    rows = await connection.fetch(CLAIM, limit, since_single, latest, since_bulk, share)
    singles, bulks = by_lane(rows)
    if singles:
        lanes.single.floor.move(singles[0]["reached"], is_last=len(singles) < limit - share)
    if bulks:
        lanes.bulk.floor.move(bulks[0]["reached"], is_last=len(rows) < limit)
    return [Dispatch(*tuple(row)[:-1]) for row in singles + bulks]


async def make_due_again(connection: Queries, attempts: Sequence[tuple[UUID, int]]) -> list[tuple[UUID, int]]:
    """Take back dispatches that the broker may not have, unless their calls have begun; return those that are held."""
    held = await connection.fetch(
        MAKE_DUE_AGAIN,
        [id_ for id_, _ in attempts],
        [number for _, number in attempts],
    )
    return [(row["id"], row["attempt"]) for row in held]
