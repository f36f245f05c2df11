"""Counting the backlog, on a real PostgreSQL."""

import asyncpg

from service_b.tasks import claims, counts
from tests.tasks import (
    A,
    B,
    C,
    accept,
    begin,
    let_time_pass,
)


async def test_the_backlog_is_counted_by_state(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    assert await counts.count(pool) == counts.Backlog(0, 0, 0, 0, None, None, None)
    await accept(pool, A, A, A, B, C, "DEVICE0D")
    [first, *_] = await claims.claim(pool, 3)
    await let_time_pass(sql, 100)
    await begin(pool, first)
    await let_time_pass(sql, 200)
    backlog = await counts.count(pool)
    assert (backlog.waiting, backlog.due, backlog.dispatched, backlog.running) == (2, 1, 2, 1)
    assert backlog.oldest_seconds
    assert backlog.dispatched_seconds
    assert backlog.running_seconds
    assert 200 <= backlog.running_seconds < 300 <= backlog.dispatched_seconds <= backlog.oldest_seconds
    await accept(pool, "DEVICE0E")
    assert ((await counts.count(pool)).oldest_seconds or 0) >= 300
