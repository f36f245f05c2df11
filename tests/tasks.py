"""Tasks for tests: accepting them, and looking at their rows."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from service_b.database import DatabaseSettings, create_pool
from service_b.tasks.table import Change, Dispatch, NewTask, TaskTable

STATE = """
    CASE WHEN status <> 'pending' THEN status WHEN NOT active THEN 'waiting'
         WHEN due_at IS NOT NULL THEN 'due' ELSE 'dispatched' END
"""


@asynccontextmanager
async def opened_table(settings: DatabaseSettings) -> AsyncIterator[TaskTable]:
    """The table over a pool of its own."""
    async with create_pool(settings) as pool:
        yield TaskTable(pool)


def new_task(equipment_id: str, *, timeout_seconds: int = 1, parameters: str = "{}") -> NewTask:
    """A task to store."""
    return NewTask(uuid7(), equipment_id, timeout_seconds, parameters)


async def accept(
    tasks: TaskTable,
    *equipment_ids: str,
    timeout_seconds: int = 1,
    grace_seconds: float = 0,
    deadline_seconds: float = 3600,
) -> list[UUID]:
    """Store one task for each device, in one batch; return their ids."""
    new = [new_task(equipment_id, timeout_seconds=timeout_seconds) for equipment_id in equipment_ids]
    await tasks.insert(new, grace_seconds=grace_seconds, deadline_seconds=deadline_seconds)
    return [task.id for task in new]


def finish(dispatch: Dispatch, code: int = 200) -> Change:
    """The attempt has ended the task."""
    return Change(dispatch.id, dispatch.attempt, code, None)


def give_back(
    dispatch: Dispatch, *, hold_seconds: float = 0, backoff_seconds: float = 0, unknown: bool = False
) -> Change:
    """The attempt has not ended the task."""
    return Change(dispatch.id, dispatch.attempt, None, "given back", hold_seconds, backoff_seconds, unknown)


async def states(sql: asyncpg.Connection, ids: Sequence[UUID]) -> list[str]:
    """In which state each of these tasks is."""
    rows = await sql.fetch(f"SELECT id, {STATE} AS state FROM task WHERE id = ANY($1::uuid[])", ids)
    found = {row["id"]: row["state"] for row in rows}
    return [found[id_] for id_ in ids]


async def row(sql: asyncpg.Connection, id_: UUID) -> asyncpg.Record:
    """A task's row, with its times as seconds from now."""
    found = await sql.fetchrow(
        f"""
        SELECT *, {STATE} AS state, extract(epoch FROM due_at - clock_timestamp())::float AS due_in,
               extract(epoch FROM deadline_at - clock_timestamp())::float AS deadline_in
        FROM task WHERE id = $1
        """,
        id_,
    )
    assert found
    return found


async def let_time_pass(sql: asyncpg.Connection, seconds: float) -> None:
    """Move all that the table remembers into the past."""
    await sql.execute(
        """
        UPDATE task SET due_at = due_at - span, deadline_at = deadline_at - span, created_at = created_at - span,
               dispatched_at = dispatched_at - span, finished_at = finished_at - span
        FROM make_interval(secs => $1) AS span
        """,
        seconds,
    )
