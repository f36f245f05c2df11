"""Tasks for tests: accepting them, and looking at their rows."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from service_b.database import Connection, Queries
from service_b.tasks import claims, expiry, inserts, leadership, leases, outcomes, promotion
from service_b.tasks.claims import Dispatch
from service_b.tasks.endings import MOVE
from service_b.tasks.inserts import NewTask, Wishes
from service_b.tasks.outcomes import Change
from service_b.tasks.states import DISPATCHED, DUE, NOW, RUNNING, SCHEDULED, WAITING

A, B, C = "DEVICE0A", "DEVICE0B", "DEVICE0C"

STATE = f"""
    CASE WHEN {SCHEDULED} THEN 'scheduled' WHEN {WAITING} THEN 'waiting' WHEN {DUE} THEN 'due'
         WHEN {DISPATCHED} THEN 'dispatched' WHEN {RUNNING} THEN 'running' END
"""

EVERY_TASK = f"""(
    SELECT id, seq, equipment_id, attempt, active, due_at, {STATE} AS state, NULL AS code FROM task
    UNION ALL
    SELECT id, seq, equipment_id, attempt, false, NULL, status, code FROM finished
)"""
"""Unfinished and finished ones, with what they have in common; to be read as a table."""


def new_task(
    equipment_id: str,
    *,
    timeout_seconds: int = 1,
    parameters: str = "{}",
    submitted_by: str | None = None,
    wishes: Wishes | None = None,
) -> NewTask:
    """A task to store."""
    return NewTask(uuid7(), equipment_id, timeout_seconds, parameters, submitted_by, wishes)


async def accept(
    pool: Queries,
    *equipment_ids: str,
    timeout_seconds: int = 1,
    grace_seconds: float = 0,
    deadline_seconds: float = 3600,
    submitted_by: str | None = None,
    wishes: Wishes | None = None,
    max_per_device: int = 1000,
    now: datetime | None = None,
) -> list[UUID]:
    """Store one task for each device, in one batch; return their ids."""
    new = [
        new_task(each, timeout_seconds=timeout_seconds, submitted_by=submitted_by, wishes=wishes)
        for each in equipment_ids
    ]
    await inserts.insert(
        pool,
        new,
        grace_seconds=grace_seconds,
        deadline_seconds=deadline_seconds,
        max_per_device=max_per_device,
        now=now,
    )
    return [task.id for task in new]


def call_lease(id_: UUID, attempt: int) -> UUID:
    """The lease that a test begins an attempt under."""
    return UUID(int=id_.int ^ attempt)


def lease_of(dispatch: Dispatch) -> UUID:
    """The lease of an attempt that was claimed."""
    return call_lease(dispatch.id, dispatch.attempt)


async def begin(pool: Queries, *dispatches: Dispatch) -> list[UUID]:
    """Begin the calls of attempts; return their leases."""
    asked = [(dispatch.id, dispatch.attempt, lease_of(dispatch)) for dispatch in dispatches]
    assert await leases.grant(pool, asked) == ["granted"] * len(asked)
    return [lease for _, _, lease in asked]


async def claim(pool: Queries, limit: int) -> list[Dispatch]:
    """Claim what is due, and begin it."""
    dispatches = await claims.claim(pool, limit)
    await begin(pool, *dispatches)
    return dispatches


def finish(dispatch: Dispatch, code: int = 200, *, outcome: str | None = None) -> Change:
    """The attempt has ended the task."""
    return Change(dispatch.id, dispatch.attempt, lease_of(dispatch), code, None, outcome=outcome)


def give_back(
    dispatch: Dispatch,
    *,
    hold_seconds: float = 0,
    backoff_seconds: float = 0,
    unknown: bool = False,
    lost: bool = False,
    outcome: str = "unavailable",
) -> Change:
    """The attempt has not ended the task."""
    lease = lease_of(dispatch)
    return Change(
        dispatch.id, dispatch.attempt, lease, None, "given back", hold_seconds, backoff_seconds, unknown, lost, outcome
    )


@asynccontextmanager
async def connected(pool: Queries) -> AsyncIterator[Connection]:
    """A connection of the pool; or what is one already."""
    if isinstance(pool, asyncpg.Pool):
        async with pool.acquire() as connection:
            yield connection
    else:
        yield pool


async def apply(pool: Queries, *changes: Change, max_attempts: int = 3) -> dict[tuple[UUID, int], datetime]:
    """Write down what came of attempts; return those that counted, and when their tasks were accepted."""
    async with connected(pool) as connection:
        applied = await outcomes.apply(connection, changes, max_attempts=max_attempts)
    assert not applied.held
    return {(id_, attempt): counted.accepted_at for (id_, attempt, _), counted in applied.counted.items()}


async def one_of_each(pool: Queries) -> dict[str, Dispatch]:
    """Bring a task into each state, by the way that tasks go; by the name of the state, with its latest attempt."""
    ids = await accept(pool, A, A, B, C, "DEVICE0D", "DEVICE0E")
    dispatched, waiting, due, success, error, running = ids
    claimed = {dispatch.id: dispatch for dispatch in await claims.claim(pool, 9)}
    await begin(pool, *(claimed[id_] for id_ in (due, success, error, running)))
    await apply(pool, give_back(claimed[due]), finish(claimed[success]), finish(claimed[error], 404))
    tomorrow = Wishes(not_before=datetime.now(UTC) + timedelta(days=1))
    [scheduled] = await accept(pool, "DEVICE0F", wishes=tomorrow)
    return {
        "scheduled": Dispatch(scheduled, 0, "DEVICE0F", 1, 1, "{}"),
        "waiting": Dispatch(waiting, 0, A, 1, 1, "{}"),
        "due": claimed[due],
        "dispatched": claimed[dispatched],
        "running": claimed[running],
        "success": claimed[success],
        "error": claimed[error],
    }


async def internal_time(pool: Queries) -> datetime:
    """Internal time, as a process that has just looked takes it to be."""
    now: datetime = await pool.fetchval(f"SELECT {NOW}")
    return now


async def expire(pool: Queries, limit: int) -> list[UUID]:
    """End tasks past their deadline."""
    async with connected(pool) as connection:
        return [ended.id for ended in await expiry.expire(connection, await internal_time(connection), limit)]


async def end_used_up(pool: Queries, limit: int) -> list[UUID]:
    """End tasks that have had their attempts."""
    async with connected(pool) as connection:
        return [ended.id for ended in await expiry.end_used_up(connection, await internal_time(connection), limit)]


async def promote_stranded(pool: Queries, after: str, limit: int) -> tuple[str, int]:
    """Look for waiting tasks with nothing in front of them."""
    async with connected(pool) as connection:
        return await promotion.promote_stranded(connection, after, limit)


async def states(sql: asyncpg.Connection, ids: Sequence[UUID]) -> list[str]:
    """In which state each of these tasks is."""
    rows = await sql.fetch(f"SELECT id, state FROM {EVERY_TASK} AS every WHERE id = ANY($1::uuid[])", ids)
    assert len(rows) == len(set(ids)), "each is in one table"
    found = {row["id"]: row["state"] for row in rows}
    return [found[id_] for id_ in ids]


async def row(sql: asyncpg.Connection, id_: UUID) -> asyncpg.Record:
    """A task's row, with its times as seconds from now; of a finished one, what there is left of it."""
    found = await sql.fetchrow(
        f"""
        SELECT *, {STATE} AS state, NULL AS code, extract(epoch FROM due_at - clock_timestamp())::float AS due_in,
               extract(epoch FROM deadline_at - clock_timestamp())::float AS deadline_in
        FROM task WHERE id = $1
        """,
        id_,
    ) or await sql.fetchrow("SELECT *, status AS state FROM finished WHERE id = $1", id_)
    assert found
    return found


async def end_by_hand(sql: Queries, condition: str, *arguments: object, code: int = 500) -> None:
    """What an operator's own SQL may do: end the tasks that meet a condition, and promote nothing."""
    await sql.execute(
        f"""
        WITH ending AS MATERIALIZED (
            SELECT id, {code} AS code, 'by hand' AS reason, NULL AS ended_by,
                NULL::jsonb AS event
            FROM task WHERE {condition}
        ), {MOVE}
        SELECT FROM ended
        """,
        *arguments,
    )


async def let_time_pass(sql: asyncpg.Connection, seconds: float) -> None:
    """Move all that the table remembers into the past."""
    await sql.execute(
        """
        UPDATE task SET due_at = due_at - span, deadline_at = deadline_at - span, created_at = created_at - span,
               dispatched_at = dispatched_at - span, begun_at = begun_at - span, overdue_at = overdue_at - span,
               start_at = start_at - span
        FROM make_interval(secs => $1) AS span
        """,
        seconds,
    )


async def lead(pool: Queries, process: UUID) -> bool:
    """Ask whether it is a process's turn to do the maintenance."""
    return await leadership.lead(pool, process, await internal_time(pool))


async def step_clock(sql: asyncpg.Connection, seconds: float) -> None:
    """For who asks for internal time, the same as setting the database's clock."""
    await sql.execute("UPDATE task_clock SET correction = correction + make_interval(secs => $1)", seconds)


async def claimed_by_id(pool: Queries, limit: int = 100) -> dict[UUID, Dispatch]:
    """Claim what is due, and begin it."""
    return {dispatch.id: dispatch for dispatch in await claim(pool, limit)}


async def run_device_down(pool: Queries) -> list[UUID]:
    """Claim and finish until nothing is due; return the ids in the order in which they were dispatched."""
    order: list[UUID] = []
    while claimed := await claim(pool, 100):
        order += [dispatch.id for dispatch in claimed]
        await apply(pool, *(finish(dispatch) for dispatch in claimed))
    return order


async def is_blocked(sql: asyncpg.Connection, what: asyncio.Task[Any]) -> bool:
    """Whether some statement waits for a lock; fails when the task is over instead."""
    assert not what.done(), f"not blocked: {what!r}"
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return bool(await sql.fetchval(waiting))


async def rows_read(pool: asyncpg.Pool, sql: asyncpg.Connection) -> int:
    """How many rows of the tables were read so far, by whatever plan."""
    await pool.execute("SELECT pg_stat_force_next_flush()")
    await pool.execute("SELECT 1")
    read: int = await sql.fetchval(
        """
        SELECT (SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables
                WHERE relname ~ '^(task$|finished)')
             + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname ~ '^(task$|finished)')
        """
    )
    return read
