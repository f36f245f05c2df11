"""What each statement reads, on a real PostgreSQL."""

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from service_b.database import DatabaseSettings, create_pool
from service_b.tasks import cancels, claims, lookups, overdue, promotion, starts
from tests.tasks import (
    A,
    accept,
    apply,
    claim,
    expire,
    finish,
    internal_time,
    promote_stranded,
    rows_read,
)

WAITING_BEHIND = (
    "SELECT id FROM task WHERE equipment_id = 'DEVICE1' AND NOT active AND start_at IS NULL ORDER BY seq LIMIT $1"
)
"""By an index: what this reads may be counted with the statement that comes next."""


@pytest.fixture
async def one_connection(database: DatabaseSettings) -> AsyncIterator[asyncpg.Pool]:
    """A pool of one: what it read can be counted, and its statements' generic plans come into play."""
    async with create_pool(database.model_copy(update={"pool_size": 1})) as pool:
        yield pool


async def cancel(pool: asyncpg.Pool, ids: Sequence[UUID]) -> list[cancels.Answer]:
    async with pool.acquire() as connection:
        return await cancels.cancel(connection, [(id_, None) for id_ in ids])


async def ask_everything(pool: asyncpg.Pool) -> None:
    """So that every statement has been planned."""
    await claim(pool, 1)
    await claims.make_due_again(pool, [])
    await apply(pool)
    await expire(pool, 1)
    await cancel(pool, [])
    await starts.start(pool, await internal_time(pool), 1)
    await promotion.promote(pool, [A])
    await promote_stranded(pool, "", 1)
    await overdue.repeat_dispatches(pool, await internal_time(pool), 1)
    await overdue.take_lost(pool, await internal_time(pool), 1)
    await lookups.look_up(pool, [])
    await accept(pool, A)


@pytest.mark.parametrize("planned", ["for this table", "for an empty one"])
async def test_no_statement_of_the_busy_path_reads_the_backlog(
    one_connection: asyncpg.Pool, sql: asyncpg.Connection, planned: str
) -> None:
    """100,000 due, 10,000 waiting for one device, 5,000 finished: each statement reads a few times what it returns."""
    await sql.execute("ANALYZE task, finished")
    await ask_everything(one_connection)
    await sql.execute(
        """
        INSERT INTO task (id, equipment_id, timeout_seconds, parameters, time_limit_seconds, deadline_at, active,
                          due_at)
        SELECT gen_random_uuid(), CASE WHEN n <= 100000 THEN 'DEVICE' || n ELSE 'DEVICE1' END,
               1, '{"username": "admin", "password": "admin"}', 1, now() + interval '1 day', n <= 100000,
               CASE WHEN n <= 100000 THEN now() - interval '1 hour' + n * interval '1 ms' END
        FROM generate_series(1, 110000) AS n
        """
    )
    await sql.execute(
        """
        INSERT INTO finished (id, seq, created_at, finished_at, timeout_seconds, attempt, code, status, equipment_id)
        SELECT gen_random_uuid(), n, now(), now(), 1, 1, 200, 'success', 'DEVICE' || n
        FROM generate_series(1, 5000) AS n
        """
    )
    if planned == "for this table":
        await sql.execute("VACUUM ANALYZE task, finished")
    pool = one_connection
    batch = 20

    async def cost(awaitable: Awaitable[Any]) -> tuple[Any, int]:
        before = await rows_read(one_connection, sql)
        return await awaitable, await rows_read(one_connection, sql) - before

    costs: defaultdict[str, list[int]] = defaultdict(list)
    for round_ in range(8):  # From the sixth on PostgreSQL may choose a generic plan.
        dispatches, costs["claim"][round_:] = await _listed(cost(claim(pool, batch)))
        assert len(dispatches) == batch
        attempts = [(dispatch.id, dispatch.attempt) for dispatch in dispatches]
        late = await internal_time(pool) + timedelta(minutes=1)
        _, costs["repeat_dispatches"][round_:] = await _listed(cost(overdue.repeat_dispatches(pool, late, 3)))
        _, costs["take_lost"][round_:] = await _listed(cost(overdue.take_lost(pool, late, batch)))
        _, costs["make_due_again"][round_:] = await _listed(cost(claims.make_due_again(pool, attempts[:3])))
        # In the first round DEVICE1 is among them, with ten thousand tasks behind it.
        _, costs["apply"][round_:] = await _listed(cost(apply(pool, *(finish(dispatch) for dispatch in dispatches))))
        await sql.execute(
            "UPDATE task SET deadline_at = now() WHERE equipment_id = $1 AND active", f"DEVICE{9000 + round_}"
        )
        expired, costs["expire"][round_:] = await _listed(cost(expire(pool, batch)))
        assert len(expired) == 1
        waiting = await sql.fetch(WAITING_BEHIND, 3)
        answers, costs["cancel"][round_:] = await _listed(cost(cancel(pool, [row["id"] for row in waiting])))
        assert answers == ["cancelled"] * 3
        await sql.execute(f"UPDATE task SET start_at = now() WHERE id = ANY(ARRAY({WAITING_BEHIND}))", 3)
        started, costs["start"][round_:] = await _listed(cost(starts.start(pool, await internal_time(pool), batch)))
        assert started == 3
        _, costs["promote_stranded"][round_:] = await _listed(cost(promote_stranded(pool, "", batch)))
        _, costs["insert"][round_:] = await _listed(
            cost(accept(pool, "DEVICE1", *(f"DEVICE{n}" for n in range(5000, 5019)), max_per_device=100))
        )
        _, costs["statuses"][round_:] = await _listed(
            cost(lookups.look_up(pool, [dispatch.id for dispatch in dispatches]))
        )
    assert {name: max(reads) for name, reads in costs.items() if max(reads) > 30 * batch} == {}


async def _listed(awaitable: Awaitable[tuple[Any, int]]) -> tuple[Any, list[int]]:
    result, reads = await awaitable
    return result, [reads]
