"""Storing new tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypedDict
from uuid import UUID

from typing_extensions import Unpack

from service_b.database import Queries
from service_b.tasks import promotion
from service_b.tasks.states import LATELY, NOW, SCHEDULED, WAITING

# Should the database's clock jump just then, it moves neither the task's deadline nor its turn.
ACCEPTED = f"coalesce($8::timestamptz, greatest({NOW}, {LATELY}))"
DUE_AT_ONCE = f"least({NOW}, $8::timestamptz + interval '1 s')"

# A time of the client's is as far from the moment of acceptance as it is from the plain clock, whatever that shows.
START_AT = f"CASE WHEN not_before > now() THEN {ACCEPTED} + (not_before - now()) END"
DEADLINE = f"coalesce({ACCEPTED} + (not_after - now()), greatest({ACCEPTED}, start_at) + $6::interval)"
WISHES = "submitted_by, external_id, retry_of, sealed_for, not_before, bulk"
WISHED = "submitted_by, external_id, retry_of, sealed_for, not_before, coalesce(bulk, false)"

BEHIND = f"""
    (SELECT count(*) FROM (SELECT FROM task WHERE equipment_id = device.equipment_id AND {WAITING} LIMIT {{0}}) AS _) +
    (SELECT count(*) FROM (SELECT FROM task WHERE equipment_id = device.equipment_id AND {SCHEDULED} LIMIT {{0}}) AS _)
"""
"""How many unfinished tasks of a device are not active; no more are counted than so many of each kind."""

GIVEN = f"""(
    SELECT *, {START_AT} AS start_at
    FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::text[], $9::text[],
                -- Empty where nobody asks for more than the least: then these are null.
                $11::text[], $12::uuid[], $13::uuid[], $14::timestamptz[], $15::timestamptz[], $16::boolean[])
    WITH ORDINALITY AS new (id, equipment_id, timeout_seconds, parameters, submitted_by,
                            external_id, retry_of, sealed_for, not_before, not_after, bulk, position)
)"""
"""The tasks of a batch."""

STORE = f"""
first AS (
    -- Due at once: the first of its device, where nothing unfinished is in front of it.
    INSERT INTO task (id, equipment_id, timeout_seconds, parameters, time_limit_seconds, deadline_at, keep_parameters,
                      {WISHES}, active, due_at)
    SELECT DISTINCT ON (equipment_id COLLATE "C") id, equipment_id, timeout_seconds, parameters::json,
           timeout_seconds + $5, {DEADLINE}, $7, {WISHED}, true, {DUE_AT_ONCE}
    FROM new
    -- Scalar, so that each is looked up by its key, whatever the statistics say.
    WHERE start_at IS NULL
      AND (SELECT true FROM task WHERE task.equipment_id = new.equipment_id AND active LIMIT 1) IS NULL
      AND (SELECT true FROM task WHERE task.equipment_id = new.equipment_id AND {WAITING} LIMIT 1) IS NULL
    -- Always in the same order, so that two that are stored at once cannot deadlock.
    ORDER BY equipment_id COLLATE "C", position
    -- Of two that are stored at once, one waits.
    ON CONFLICT (equipment_id) WHERE active DO NOTHING
    RETURNING id
), others AS MATERIALIZED (
    SELECT *, row_number() OVER (PARTITION BY equipment_id ORDER BY position) AS place
    FROM new WHERE id NOT IN (SELECT id FROM first)
), crowd AS MATERIALIZED (
    SELECT equipment_id, {BEHIND.format("$10")} AS behind
    FROM (SELECT DISTINCT equipment_id FROM others) AS device
), waiting AS (
    INSERT INTO task (id, equipment_id, timeout_seconds, parameters, time_limit_seconds, deadline_at, keep_parameters,
                      {WISHES}, active, start_at)
    SELECT id, equipment_id, timeout_seconds, parameters::json,
           timeout_seconds + $5, {DEADLINE}, $7, {WISHED}, false, start_at
    -- As many as may wait behind the active one, which there need not be before a scheduled one.
    FROM others JOIN crowd USING (equipment_id) WHERE behind + place < $10 + (start_at IS NOT NULL)::integer
    ORDER BY position
    RETURNING id
)
"""
"""Parts of a statement's WITH, after one called `new`, those of a batch that are to be stored."""

INSERT = f"""
WITH new AS MATERIALIZED {GIVEN}, {STORE}
SELECT position, waiting.id IS NULL AS refused FROM others LEFT JOIN waiting USING (id)
"""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a client may ask for beside the least. Times are the plain clock's."""

    external_id: str | None = None
    not_before: datetime | None = None
    not_after: datetime | None = None
    # The task that this one tries again, and what its parameters are sealed for where that is not itself.
    retry_of: UUID | None = None
    sealed_for: UUID | None = None
    # It came with many others: single ones go first.
    bulk: bool = False


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to store. `parameters` is JSON text, `submitted_by` the name of the token that it came with."""

    id: UUID
    equipment_id: str
    timeout_seconds: int
    parameters: str = field(repr=False)
    submitted_by: str | None = None
    wishes: Wishes | None = None


async def insert(
    connection: Queries,
    tasks: Sequence[NewTask],
    *,
    grace_seconds: float,
    deadline_seconds: float,
    keep_parameters: str = "failed",
    max_per_device: int = 1000,
    now: datetime | None = None,
) -> set[UUID]:
    """Store new tasks: the first of each device becomes due, unless one is active already; the others wait.
    One that is wished for later than now is scheduled: it takes its place in the line of its device then (`starts`).

    Not stored, and returned, are those whose device has `max_per_device` unfinished ones already. Two processes that
    store tasks of one device at the same moment may not see each other's: then it gets a batch more, at most.

    `keep_parameters` (failed, all, none) says whose are kept when they end; `now` is what the asking process takes for
    internal time.

    Waits for no row that somebody else holds. So the active task may end, and find nothing waiting, while one that
    has to wait for it is being stored: who commits last sees the other, and promotes (see `promotion.promote`).
    """
    rows = await connection.fetch(
        INSERT,
        *arguments(
            tasks,
            grace_seconds=grace_seconds,
            deadline_seconds=deadline_seconds,
            keep_parameters=keep_parameters,
            max_per_device=max_per_device,
            now=now,
        ),
    )
    others = [(tasks[row["position"] - 1], row["refused"]) for row in rows]
    await promotion.promote(connection, [task.equipment_id for task, refused in others if not refused])
    return {task.id for task, refused in others if refused}


class Terms(TypedDict):
    """How tasks are stored; see `insert`."""

    grace_seconds: float
    deadline_seconds: float
    keep_parameters: str
    max_per_device: int
    now: datetime | None


def arguments(tasks: Sequence[NewTask], **terms: Unpack[Terms]) -> list[Any]:
    """Return what `GIVEN` and `STORE` ask for."""
    return [
        [task.id for task in tasks],
        [task.equipment_id for task in tasks],
        [task.timeout_seconds for task in tasks],
        [task.parameters for task in tasks],
        terms["grace_seconds"],
        timedelta(seconds=terms["deadline_seconds"]),
        terms["keep_parameters"],
        terms["now"],
        [task.submitted_by for task in tasks],
        terms["max_per_device"],
        *_columns(tasks),
    ]


def _columns(tasks: Sequence[NewTask]) -> list[list[Any]]:
    """Return the wishes by column; empty columns where there are none, which cost nothing."""
    if not any(task.wishes for task in tasks):
        return [[] for _ in range(6)]
    wishes = [task.wishes or Wishes() for task in tasks]
    return [
        [wish.external_id for wish in wishes],
        [wish.retry_of for wish in wishes],
        [wish.sealed_for for wish in wishes],
        [wish.not_before for wish in wishes],
        [wish.not_after for wish in wishes],
        [wish.bulk for wish in wishes],
    ]
