"""What keeps the relays from claiming everything, on a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from service_b.database import DatabaseSettings, create_pool
from service_b.tasks import claims, leases, restraint
from tests.tasks import A, accept, apply, begin, finish, let_time_pass, one_of_each, rows_read

MARGIN = timedelta(seconds=2)
"""So much further back than needed a look begins."""


async def test_only_what_is_under_way_to_a_call_counts_as_dispatched(pool: asyncpg.Pool) -> None:
    await one_of_each(pool)
    assert (await restraint.look(pool)).dispatched == 1


async def test_each_call_that_begins_is_counted_once(pool: asyncpg.Pool) -> None:
    await accept(pool, *(f"DEVICE{number}" for number in range(5)))
    dispatches = await claims.claim(pool, 5)
    before = (await restraint.look(pool)).begun
    [lease, *_] = await begin(pool, *dispatches[:3])
    assert (await restraint.look(pool)).begun == before + 3
    # Asked again, a copy, and nobody's.
    again = [(dispatches[0].id, 1, lease), (dispatches[1].id, 1, uuid4()), (uuid4(), 1, uuid4())]
    await leases.grant(pool, again)
    assert (await restraint.look(pool)).begun == before + 3


async def test_a_look_begins_where_the_last_one_found_something(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    [id_] = await accept(pool, A)
    await claims.claim(pool, 1)
    since = (await restraint.look(pool)).since
    await accept(pool, "DEVICE1")
    await claims.claim(pool, 1)
    assert (await restraint.look(pool, since)).dispatched == 2
    await sql.execute("UPDATE task SET dispatched_at = $1 WHERE id = $2", since, id_)
    assert (await restraint.look(pool, since)).dispatched == 1
    assert (await restraint.look(pool)).dispatched == 2


async def test_what_the_maintenance_makes_due_again_is_not_looked_for(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    await accept(pool, A)
    await claims.claim(pool, 1)
    await let_time_pass(sql, 20)
    assert (await restraint.look(pool)).dispatched == 0


async def test_a_look_does_not_read_what_an_old_snapshot_keeps(
    database: DatabaseSettings, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    devices = [f"DEVICE{number:02}" for number in range(50)]
    async with (
        create_pool(database.model_copy(update={"pool_size": 1})) as pool,
        other.transaction(isolation="repeatable_read"),
    ):
        await other.fetch("SELECT FROM task")
        since, reads = None, []
        for _ in range(20):
            await accept(pool, *devices)
            dispatches = await claims.claim(pool, 100)
            await begin(pool, *dispatches)
            await apply(pool, *(finish(dispatch) for dispatch in dispatches))
            before = await rows_read(pool, sql)
            since = (await restraint.look(pool, since)).since + MARGIN
            reads.append(await rows_read(pool, sql) - before)
        assert max(reads) < 3 * len(devices)
        before = await rows_read(pool, sql)
        await restraint.look(pool)
        assert await rows_read(pool, sql) - before >= 20 * len(devices), "there is nothing to be spared"


@pytest.fixture
async def spared(sql: asyncpg.Connection) -> AsyncIterator[None]:
    """Nobody has been let through yet."""
    await sql.execute("UPDATE service_a SET let_through_at = NULL")
    yield
    await sql.execute("UPDATE service_a SET let_through_at = NULL")


@pytest.mark.usefixtures("spared")
async def test_one_is_let_through_at_a_time(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    assert sorted(await asyncio.gather(*(restraint.let_through(pool, 5) for _ in range(5)))) == [False] * 4 + [True]
    await sql.execute("UPDATE service_a SET let_through_at = let_through_at - interval '4 s'")
    assert not await restraint.let_through(pool, 5)
    await sql.execute("UPDATE service_a SET let_through_at = let_through_at - interval '2 s'")
    async with other.transaction():
        await other.execute("SELECT FROM service_a FOR UPDATE")
        assert not await restraint.let_through(pool, 5), "it does not wait"
    assert await restraint.let_through(pool, 5)
    await sql.execute("UPDATE service_a SET let_through_at = now() + interval '1 hour'")
    assert await restraint.let_through(pool, 5), "the clock was set back"
