"""What nobody has answered for, on a real PostgreSQL."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from service_b.tasks import claims, deployment, overdue
from service_b.tasks.overdue import Call
from tests.tasks import (
    A,
    B,
    C,
    accept,
    apply,
    begin,
    claimed_by_id,
    finish,
    internal_time,
    lease_of,
    let_time_pass,
    row,
    states,
)


async def repeat(pool: asyncpg.Pool, limit: int = 10) -> set[tuple[UUID, int]]:
    return {(id_, attempt) for id_, attempt in await overdue.repeat_dispatches(pool, await internal_time(pool), limit)}


async def take(pool: asyncpg.Pool, limit: int = 10) -> Sequence[Call]:
    return await overdue.take_lost(pool, await internal_time(pool), limit)


async def test_what_nobody_begins_for_ten_seconds_is_due_again_and_announced(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    heard: list[object] = []
    await sql.add_listener(await deployment.name_due(sql), lambda *_: heard.append(True))
    begun, not_begun, due = await accept(pool, A, B, C)
    dispatches = await claims.claim(pool, 2)
    await begin(pool, dispatches[0])
    await let_time_pass(sql, 8)
    assert await repeat(pool) == set()
    await let_time_pass(sql, 2.1)
    assert await repeat(pool) == {(not_begun, 1)}
    assert await repeat(pool) == set()
    assert await states(sql, [begun, not_begun, due]) == ["running", "due", "due"]
    await sql.execute("SELECT 1")  # What was sent before comes with the answer, at the latest.
    assert len(heard) == 1
    assert (await claimed_by_id(pool))[not_begun].attempt == 2


async def test_an_old_message_may_begin_its_task_until_it_is_claimed_again(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    """A queue that merely stands still costs nothing."""
    [id_] = await accept(pool, A)
    [dispatch] = await claims.claim(pool, 1)
    await let_time_pass(sql, 11)
    assert await repeat(pool) == {(id_, 1)}
    await begin(pool, dispatch)
    assert await claims.claim(pool, 1) == []
    assert await states(sql, [id_]) == ["running"]


async def test_a_call_is_lost_when_limit_and_margin_have_passed_and_listed_once_in_a_while(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    short, long = await accept(pool, A, timeout_seconds=10), (await accept(pool, B, timeout_seconds=100))
    dispatches = await claims.claim(pool, 2)
    await begin(pool, *dispatches)
    await let_time_pass(sql, 19)
    assert await take(pool) == []
    await let_time_pass(sql, 1.1)
    assert await take(pool) == [Call(short[0], 1, lease_of(dispatches[0]), told=False)]
    for _ in range(2):
        assert await take(pool) == []
        await let_time_pass(sql, 28)
        assert await take(pool) == []
        await let_time_pass(sql, 2.1)
        assert await take(pool) == [Call(short[0], 1, lease_of(dispatches[0]), told=True)]
    assert await states(sql, [*short, *long]) == ["running", "running"], "the results process decides"


async def test_a_call_that_was_put_back_is_listed_again_at_once_as_before(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    await accept(pool, A, B)
    dispatches = await claims.claim(pool, 2)
    await begin(pool, *dispatches)
    await let_time_pass(sql, 20)
    listed = await take(pool)
    await overdue.put_back(pool, listed)
    assert await take(pool) == listed
    await apply(pool, finish(dispatches[0]))
    await overdue.put_back(pool, listed)
    assert len(await take(pool)) == 1


async def test_neither_waits_for_a_row_that_somebody_holds(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    ids = await accept(pool, A, B, C, "DEVICE0D", timeout_seconds=1)
    dispatches = await claims.claim(pool, 4)
    await begin(pool, *dispatches[2:])
    await let_time_pass(sql, 20)
    async with other.transaction():
        await other.execute("SELECT FROM task WHERE id = ANY($1::uuid[]) FOR UPDATE", [ids[0], ids[2]])
        assert await repeat(pool) == {(ids[1], 1)}
        assert [call.id for call in await take(pool)] == [ids[3]]
    assert await repeat(pool) == {(ids[0], 1)}
    assert [call.id for call in await take(pool)] == [ids[2]]


async def test_no_more_are_taken_than_asked_for(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    await accept(pool, A, B, C, "DEVICE0D")
    dispatches = await claims.claim(pool, 4)
    await begin(pool, *dispatches[2:])
    await let_time_pass(sql, 20)
    assert [len(await repeat(pool, 1)) for _ in range(3)] == [1, 1, 0]
    assert [len(await take(pool, 1)) for _ in range(3)] == [1, 1, 0]
    assert (await row(sql, dispatches[2].id))["overdue_at"] > await internal_time(pool)
