"""The task table: all of its SQL.

A pending task is *waiting* (another task of its device is active), *due* (`due_at` says when it may be dispatched) or
*dispatched* (`due_at` is null: an attempt is on its way, and its outcome is awaited).

Statements that wait for row locks take them in the order of the equipment id, so that they cannot deadlock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from service_b.database import STORAGE_ERRORS, describe

CHANNEL = "task_due"
"""Notified when a task became due that no insert of the same process announces."""


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to store. `parameters` is JSON text."""

    id: UUID
    equipment_id: str
    timeout_seconds: int
    parameters: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Status:
    """What a client may know of a task. `code` is None until it is finished, then 200, 404 or 500."""

    equipment_id: str
    code: int | None


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One attempt at a task, claimed by a relay. `parameters` is JSON text."""

    id: UUID
    attempt: int
    equipment_id: str
    timeout_seconds: int
    time_limit_seconds: float
    parameters: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """What an outcome does to its task: finish it (`code`) or make it due again.

    `hold_seconds`: the device must be left alone that long. `backoff_seconds`: it is polite to wait that long, but not
    beyond the task's deadline. `unknown`: counts as an attempt whose answer is not known.
    """

    id: UUID
    attempt: int
    code: int | None
    reason: str | None
    hold_seconds: float = 0
    backoff_seconds: float = 0
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """A dispatched attempt without an outcome yet."""

    id: UUID
    attempt: int
    dispatched_at: datetime
    time_limit_seconds: float


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many unfinished tasks there are in each state, and the age of the oldest in seconds."""

    waiting: int
    due: int
    dispatched: int
    oldest_seconds: float


class TaskTable:
    """The task table."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def missing(self) -> str | None:
        """A readiness check: None while the table can be read."""
        try:
            await self._pool.execute("SELECT FROM task LIMIT 0")
        except asyncpg.UndefinedTableError:
            return "database: not migrated"
        except STORAGE_ERRORS as error:
            return f"database: {describe(error)}"
        return None

    async def insert(self, tasks: Sequence[NewTask], *, grace_seconds: float, deadline_seconds: float) -> None:
        """Store new tasks: the first of each device becomes due, unless one is active already; the others wait.

        The conflict's `DO UPDATE ... WHERE false` writes nothing but locks the active row until this commits: it
        cannot finish, and find nothing waiting, while a task that has to wait for it is being stored.
        """
        await self._pool.execute(
            """
            WITH new AS (
                SELECT * FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::text[])
                WITH ORDINALITY AS new (id, equipment_id, timeout_seconds, parameters, position)
            ), first AS (
                INSERT INTO task (id, equipment_id, timeout_seconds, parameters, time_limit_seconds, deadline_at,
                                  active, due_at)
                SELECT DISTINCT ON (equipment_id COLLATE "C") id, equipment_id, timeout_seconds, parameters::json,
                       timeout_seconds + $5, now() + $6::interval, true, now()
                FROM new ORDER BY equipment_id COLLATE "C", position
                ON CONFLICT (equipment_id) WHERE active DO UPDATE SET active = true WHERE false
                RETURNING id
            )
            INSERT INTO task (id, equipment_id, timeout_seconds, parameters, time_limit_seconds, deadline_at, active)
            SELECT id, equipment_id, timeout_seconds, parameters::json,
                   timeout_seconds + $5, now() + $6::interval, false
            FROM new WHERE id NOT IN (SELECT id FROM first) ORDER BY position
            """,
            [task.id for task in tasks],
            [task.equipment_id for task in tasks],
            [task.timeout_seconds for task in tasks],
            [task.parameters for task in tasks],
            grace_seconds,
            timedelta(seconds=deadline_seconds),
        )

    async def statuses(self, ids: Sequence[UUID]) -> list[Status | None]:
        """Look tasks up; None for each that does not exist."""
        rows = await self._pool.fetch("SELECT id, equipment_id, code FROM task WHERE id = ANY($1::uuid[])", ids)
        found = {row["id"]: Status(row["equipment_id"], row["code"]) for row in rows}
        return [found.get(id_) for id_ in ids]

    async def claim(self, limit: int) -> list[Dispatch]:
        """Begin the next attempt of up to `limit` due tasks, the longest due first."""
        rows = await self._pool.fetch(
            """
            WITH due AS (
                SELECT id FROM task WHERE due_at <= now() AND deadline_at > now()
                ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
            )
            UPDATE task SET due_at = NULL, dispatched_at = now(), attempt = attempt + 1
            FROM due WHERE task.id = due.id
            RETURNING task.id, attempt, equipment_id, timeout_seconds, time_limit_seconds, parameters
            """,
            limit,
        )
        return [Dispatch(*row) for row in rows]

    async def make_due_again(self, attempts: Sequence[tuple[UUID, int]]) -> None:
        """Take back dispatches that certainly did not reach the broker."""
        await self._pool.execute(
            """
            WITH locked AS (
                SELECT task.id FROM task JOIN unnest($1::uuid[], $2::integer[]) AS unsent (id, attempt)
                    ON task.id = unsent.id AND task.attempt = unsent.attempt
                WHERE active AND due_at IS NULL ORDER BY equipment_id FOR UPDATE OF task
            )
            UPDATE task SET due_at = now() FROM locked WHERE task.id = locked.id
            """,
            [id_ for id_, _ in attempts],
            [attempt for _, attempt in attempts],
        )

    async def apply(self, changes: Sequence[Change], *, max_attempts: int) -> dict[tuple[UUID, int], datetime]:
        """Write down what came of attempts, and promote the next task of each device that is free now.

        Returns the attempts whose outcome counted, and when their tasks were accepted. An outcome that is late (of an
        earlier attempt), repeated (the task is finished, or due already) or of an unknown task changes nothing. A task
        whose attempts are used up is not finished here: its deadline is drawn to the moment when service A has surely
        let go of the device, and the reconciler ends it then.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(
                """
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
                """,
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
                await _promote(connection, freed)
            if any(row["due"] for row in rows):
                await connection.execute("SELECT pg_notify($1, '')", CHANNEL)
        return {(row["id"], row["attempt"]): row["created_at"] for row in rows}

    async def expire(self, limit: int) -> list[UUID]:
        """End tasks whose deadline has passed and whose device service A is surely not working on for them."""
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(
                """
                WITH expired AS (
                    SELECT id, active FROM task
                    WHERE status = 'pending' AND (due_at IS NOT NULL OR NOT active)
                      AND deadline_at <= now() AND (due_at IS NULL OR due_at <= now())
                    ORDER BY deadline_at LIMIT $1 FOR UPDATE SKIP LOCKED
                )
                UPDATE task SET status = 'error', code = 500, reason = coalesce(reason, 'deadline passed'),
                    active = false, due_at = NULL, finished_at = now()
                FROM expired WHERE task.id = expired.id
                RETURNING task.id, task.equipment_id, expired.active AS was_active
                """,
                limit,
            )
            freed = [row["equipment_id"] for row in rows if row["was_active"]]
            if freed:
                await _promote(connection, freed)
        return [row["id"] for row in rows]

    async def promote_stranded(self, after: str, limit: int) -> tuple[str, int]:
        """Look at the next `limit` devices with waiting tasks; promote where nothing is active in front of them.

        Returns the device to go on from ("" after the last) and the number promoted. The locks that inserts take
        should leave nothing to find: this heals what an operator's own SQL may have done.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(
                """
                WITH RECURSIVE device AS (
                    SELECT min(equipment_id) AS equipment_id FROM task
                    WHERE status = 'pending' AND NOT active AND equipment_id > $1
                    UNION ALL
                    SELECT (SELECT min(equipment_id) FROM task
                            WHERE status = 'pending' AND NOT active AND equipment_id > device.equipment_id)
                    FROM device WHERE device.equipment_id IS NOT NULL
                )
                SELECT equipment_id,
                    EXISTS (SELECT FROM task WHERE task.equipment_id = device.equipment_id AND active) AS held
                FROM device WHERE equipment_id IS NOT NULL LIMIT $2
                """,
                after,
                limit,
            )
            stranded = [row["equipment_id"] for row in rows if not row["held"]]
            promoted = await _promote(connection, stranded) if stranded else 0
        return (rows[-1]["equipment_id"] if len(rows) == limit else "", promoted)

    async def now(self) -> datetime:
        """Tell the database's time, the one clock of the table."""
        now: datetime = await self._pool.fetchval("SELECT clock_timestamp()")
        return now

    async def newest_dispatched(self) -> Attempt | None:
        """Tell which attempt was dispatched last, of those without an outcome."""
        row = await self._pool.fetchrow(
            """
            SELECT id, attempt, dispatched_at, time_limit_seconds FROM task
            WHERE active AND due_at IS NULL ORDER BY dispatched_at DESC LIMIT 1
            """
        )
        return Attempt(*row) if row else None

    async def answered(self, attempts: Sequence[Attempt]) -> datetime | None:
        """Tell when the latest of these attempts was dispatched that has ended with an answer of service A's."""
        dispatched_at: datetime | None = await self._pool.fetchval(
            """
            SELECT max(task.dispatched_at)
            FROM task JOIN unnest($1::uuid[], $2::integer[]) AS ended (id, attempt)
                ON task.id = ended.id AND task.attempt = ended.attempt
            WHERE task.code IN (200, 404)
            """,
            [attempt.id for attempt in attempts],
            [attempt.attempt for attempt in attempts],
        )
        return dispatched_at

    async def without_outcome(self, before: datetime, lateness_seconds: float, limit: int) -> list[Attempt]:
        """List attempts dispatched before a moment, and longer ago than their call may take; the oldest first."""
        rows = await self._pool.fetch(
            """
            SELECT id, attempt, dispatched_at, time_limit_seconds FROM task
            WHERE active AND due_at IS NULL AND dispatched_at < $1
              AND dispatched_at + make_interval(secs => time_limit_seconds + $2) < now()
            ORDER BY dispatched_at LIMIT $3
            """,
            before,
            lateness_seconds,
            limit,
        )
        return [Attempt(*row) for row in rows]

    async def backlog(self) -> Backlog:
        """Count the unfinished tasks. Reads each of them: costs about a second for a million."""
        rows = await self._pool.fetch(
            """
            SELECT waiting.count, due.count, dispatched.count, coalesce(extract(epoch FROM
                now() - least(waiting.oldest, due.oldest, dispatched.oldest)), 0)::double precision
            FROM (SELECT count(*), min(created_at) AS oldest FROM task WHERE status = 'pending' AND NOT active) waiting,
                 (SELECT count(*), min(created_at) AS oldest FROM task WHERE due_at IS NOT NULL) due,
                 (SELECT count(*), min(created_at) AS oldest FROM task WHERE active AND due_at IS NULL) dispatched
            """
        )
        return Backlog(*rows[0])


async def _promote(connection: Any, equipment_ids: Sequence[str]) -> int:
    """Make the next waiting task of each device due.

    A statement of its own, after the one that freed the devices: it must see what was committed while that one waited
    for its locks. It locks what it has found: a waiting task that expires meanwhile gives way to the one behind it.
    """
    promoted: int = await connection.fetchval(
        """
        WITH next AS (
            SELECT (SELECT id FROM task
                    WHERE task.equipment_id = freed.equipment_id AND status = 'pending' AND NOT active
                    ORDER BY seq LIMIT 1 FOR UPDATE) AS id
            FROM unnest($1::text[]) AS freed (equipment_id)
        ), promoted AS (
            UPDATE task SET active = true, due_at = now() FROM next WHERE task.id = next.id RETURNING task.id
        )
        SELECT count(*) FROM promoted
        """,
        equipment_ids,
    )
    if promoted:
        await connection.execute("SELECT pg_notify($1, '')", CHANNEL)
    return promoted
