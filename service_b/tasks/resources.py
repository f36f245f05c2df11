"""Tasks as their clients see them, with all that there is to tell."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from asyncpg import Record

from service_b.database import Queries
from service_b.tasks.states import CORRECTION, DUE, NOW, RUNNING, SCHEDULED, WAITING

State = Literal["waiting", "scheduled", "due", "dispatched", "running", "succeeded", "failed", "cancelled", "expired"]

MAX_AHEAD = 1000
"""No more are counted."""

COMMON = f"""
    id, equipment_id, submitted_by, external_id, timeout_seconds, attempt, cancel_requested, retry_of, created_at,
    not_before, deadline_at - {CORRECTION} AS not_after, begun_at - {CORRECTION} AS begun_at, reason, history
"""

UNFINISHED = f"""
    {COMMON}, NULL::timestamptz AS finished_at, NULL::smallint AS code,
    CASE WHEN {RUNNING} THEN 'running' WHEN {WAITING} THEN 'waiting' WHEN {SCHEDULED} OR due_at > {NOW} THEN 'scheduled'
         WHEN {DUE} THEN 'due' ELSE 'dispatched' END AS state,
    coalesce(start_at, CASE WHEN due_at > {NOW} THEN due_at END) - {CORRECTION} AS next_attempt_at, seq
"""
"""What is told of rows of `task`; see `LINE`."""

FINISHED = f"""
    {COMMON}, finished_at, code,
    CASE WHEN ended_by = 'cancel' THEN 'cancelled' WHEN ended_by = 'deadline' THEN 'expired'
         WHEN code = 200 THEN 'succeeded' ELSE 'failed' END AS state,
    NULL::timestamptz AS next_attempt_at, NULL::bigint AS ahead
"""
"""What is told of rows of `finished`."""

LINE = f"""
device AS MATERIALIZED (
    SELECT equipment_id, (SELECT count(*) FROM task WHERE task.equipment_id = waiting.equipment_id AND active) AS active
    FROM (SELECT DISTINCT equipment_id FROM found WHERE state = 'waiting') AS waiting
), line AS MATERIALIZED (
    SELECT place.seq, device.active + place.behind AS ahead FROM device CROSS JOIN LATERAL (
        SELECT seq, row_number() OVER (ORDER BY seq) - 1 AS behind
        FROM task WHERE task.equipment_id = device.equipment_id AND {WAITING} ORDER BY seq LIMIT {MAX_AHEAD} OFFSET 0
    ) AS place
)
"""
"""Parts of a statement's WITH, after one called `found`, some of the unfinished: what is in front of those that wait.

A device's line is read once, however many of its tasks are asked for.
"""

AHEAD = f"CASE state WHEN 'waiting' THEN coalesce(ahead, {MAX_AHEAD}) END"
"""How many are in front of a row of `found LEFT JOIN line USING (seq)`."""

FIND_UNFINISHED = f"""
WITH found AS MATERIALIZED (SELECT {UNFINISHED} FROM task WHERE id = ANY($1::uuid[])), {LINE}
SELECT found.*, {AHEAD} AS ahead FROM found LEFT JOIN line USING (seq)
"""

FIND_FINISHED = f"""
SELECT {FINISHED} FROM finished
-- Says the same twice, so that no partition is opened but those of the days between.
WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3
"""


@dataclass(frozen=True, slots=True)
class Task:
    """A task as its clients see it. All times are the plain clock's."""

    id: UUID
    equipment_id: str
    # The name of the token that it came with, if it came with one.
    submitted_by: str | None
    external_id: str | None
    timeout_seconds: int
    attempt: int
    cancel_requested: bool
    retry_of: UUID | None
    created_at: datetime
    not_before: datetime | None
    not_after: datetime
    # When its last call began; of an unfinished one only while that is under way.
    begun_at: datetime | None
    reason: str | None
    history: list[dict[str, Any]]
    finished_at: datetime | None
    # None until it is finished, then 200, 404 or 500.
    code: int | None
    state: State
    next_attempt_at: datetime | None
    # How many come before it, while it waits; at most `MAX_AHEAD`.
    ahead: int | None


async def find(connection: Queries, ids: Sequence[UUID]) -> list[Task | None]:
    """Find tasks; None for each that does not exist. As with `lookups`, the unfinished ones are asked for first."""
    found = {row["id"]: read(row) for row in await connection.fetch(FIND_UNFINISHED, ids)}
    if others := [id_ for id_ in ids if id_ not in found]:
        found |= {
            row["id"]: read(row) for row in await connection.fetch(FIND_FINISHED, others, min(others), max(others))
        }
    return [found.get(id_) for id_ in ids]


def read(row: Record) -> Task:
    """Make a task of what `UNFINISHED` or `FINISHED` tells."""
    told = {name: row[name] for name in Task.__slots__}
    return Task(**told | {"history": json.loads(row["history"] or "[]")})
