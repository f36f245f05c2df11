"""Counting the backlog, on a real PostgreSQL."""

import asyncpg

from service_b.tasks import claims, counts
from tests.tasks import (
    A,
    B,
    C,
    accept,
    let_time_pass,
)


async def test_the_backlog_is_counted_by_state(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    empty = await counts.count(pool)
    assert (empty.waiting, empty.due, empty.dispatched, empty.oldest_seconds) == (0, 0, 0, 0)
    await accept(pool, A, A, A, B, C)
    await claims.claim(pool, 1)
    await let_time_pass(sql, 100)
    backlog = await counts.count(pool)
    assert (backlog.waiting, backlog.due, backlog.dispatched) == (2, 2, 1)
    assert 100 <= backlog.oldest_seconds < 160
    await accept(pool, "DEVICE0D")
    assert (await counts.count(pool)).oldest_seconds >= 100
