"""Whose turn the maintenance is, on a real PostgreSQL."""

import asyncio
from uuid import uuid4

import asyncpg

from tests.tasks import lead

FIRST, SECOND = uuid4(), uuid4()


async def let_pass(sql: asyncpg.Connection, seconds: float) -> None:
    await sql.execute("UPDATE maintenance SET until = until - make_interval(secs => $1)", seconds)


async def test_who_leads_goes_on_until_it_does_not_ask_for_too_long(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    assert await lead(pool, FIRST)
    for _ in range(3):
        await let_pass(sql, 14)
        assert not await lead(pool, SECOND)
        assert await lead(pool, FIRST)
    await let_pass(sql, 16)
    assert await lead(pool, SECOND)
    assert not await lead(pool, FIRST)


async def test_of_many_that_ask_at_once_one_leads(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    await sql.execute("UPDATE maintenance SET until = now()")  # Not so long ago that nobody minds who holds the row.
    turns = await asyncio.gather(*(lead(pool, uuid4()) for _ in range(20)))
    assert sum(turns) == 1


async def test_a_clock_that_was_set_back_keeps_nobody_from_leading(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    assert await lead(pool, FIRST)
    await let_pass(sql, -3600)
    assert await lead(pool, SECOND)


async def test_who_only_holds_the_row_stops_nobody(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    """The one that led goes on, nobody waits; and when that one is gone, another does it in its place."""
    assert await lead(pool, FIRST)
    await let_pass(sql, 16)
    async with other.transaction(), asyncio.timeout(30):
        await other.execute("SELECT FROM maintenance FOR UPDATE")
        assert await lead(pool, FIRST)
        assert not await lead(pool, SECOND)
    await let_pass(sql, 16)
    async with other.transaction(), asyncio.timeout(30):
        await other.execute("SELECT FROM maintenance FOR UPDATE")
        assert await lead(pool, SECOND)
