"""Ending tasks at their deadline, on a real PostgreSQL."""

import asyncio
from uuid import UUID

import asyncpg

from service_b.tasks import claims
from tests.tasks import (
    A,
    B,
    C,
    accept,
    apply,
    begin,
    claimed_by_id,
    expire,
    finish,
    give_back,
    let_time_pass,
    row,
    states,
)


async def test_tasks_past_their_deadline_end_unless_service_a_may_be_at_work(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    ids = await accept(pool, A, A, B, C, "DEVICE0D", deadline_seconds=60)
    claimed = {dispatch.id: dispatch for dispatch in await claims.claim(pool, 9)}
    await begin(pool, *(claimed[id_] for id_ in (ids[0], ids[2], ids[3])))
    await apply(pool, give_back(claimed[ids[2]], hold_seconds=300), give_back(claimed[ids[3]]))
    [young] = await accept(pool, C, deadline_seconds=3600)
    await claims.make_due_again(pool, [(ids[4], 1)])
    assert await expire(pool, 10) == []
    await let_time_pass(sql, 100)
    # Dispatched, waiting, held, due, taken back; and the one behind the fourth.
    assert set(await expire(pool, 10)) == {ids[1], ids[3], ids[4]}
    assert await states(sql, [*ids, young]) == ["running", "error", "due", "error", "error", "due"]
    reasons = [(await row(sql, id_))["reason"] for id_ in (ids[1], ids[3], ids[4])]
    assert reasons == ["deadline passed", "given back", "deadline passed"]
    assert (await row(sql, ids[1]))["code"] == 500
    assert await expire(pool, 10) == []
    assert list(await claimed_by_id(pool)) == [young]
    await let_time_pass(sql, 201)
    assert await expire(pool, 10) == [ids[2]]
    assert set(await apply(pool, finish(claimed[ids[0]]))) == {(ids[0], 1)}, "an answer past the deadline counts"


async def test_expiry_takes_the_oldest_first_and_no_more_than_asked(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    ids = [
        (await accept(pool, device, deadline_seconds=deadline))[0] for device, deadline in ((A, 30), (B, 10), (C, 20))
    ]
    await let_time_pass(sql, 40)
    assert [await expire(pool, 1) for _ in range(4)] == [[ids[1]], [ids[2]], [ids[0]], []]


async def test_a_whole_expired_queue_ends(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    ids = await accept(pool, *[A] * 20, deadline_seconds=10)
    await let_time_pass(sql, 11)
    ended: list[UUID] = []
    while expired := await expire(pool, 3):
        ended += expired
    assert sorted(ended) == sorted(ids)


async def test_expiry_leaves_alone_what_somebody_else_is_changing(
    pool: asyncpg.Pool, other: asyncpg.Connection, sql: asyncpg.Connection
) -> None:
    ids = await accept(pool, A, B, deadline_seconds=10)
    await let_time_pass(sql, 11)
    async with other.transaction(), asyncio.timeout(30):
        await other.execute("SELECT FROM task WHERE id = $1 FOR UPDATE", ids[0])
        assert await expire(pool, 10) == [ids[1]]
    assert await expire(pool, 10) == [ids[0]]
