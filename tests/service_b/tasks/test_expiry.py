"""Ending tasks at their deadline, on a real PostgreSQL."""

import asyncio
from uuid import UUID, uuid4

import asyncpg

from service_b.tasks import claims
from service_b.tasks.leases import Answer, grant
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
    ids = await accept(pool, A, A, B, C, "DEVICE0D", "DEVICE0E", deadline_seconds=60)
    running, waiting, held, due, taken_back, dispatched = ids
    claimed = {dispatch.id: dispatch for dispatch in await claims.claim(pool, 9)}
    await begin(pool, claimed[running], claimed[held], claimed[due])
    await apply(pool, give_back(claimed[held], hold_seconds=300), give_back(claimed[due]))
    [young] = await accept(pool, C, deadline_seconds=3600)
    await claims.make_due_again(pool, [(taken_back, 1)])
    assert await expire(pool, 10) == []
    await let_time_pass(sql, 100)
    assert set(await expire(pool, 10)) == {waiting, due, taken_back, dispatched}
    assert await states(sql, [*ids, young]) == ["running", "error", "due", "error", "error", "error", "due"]
    reasons = [(await row(sql, id_))["reason"] for id_ in (waiting, due, taken_back, dispatched)]
    assert reasons == ["deadline passed", "given back", "deadline passed", "deadline passed"]
    assert (await row(sql, waiting))["code"] == 500
    assert await grant(pool, [(dispatched, 1, uuid4())]) == [Answer.ENDED], "its message begins nothing"
    assert await expire(pool, 10) == []
    assert list(await claimed_by_id(pool)) == [young], "the one behind is next"
    await let_time_pass(sql, 201)
    assert await expire(pool, 10) == [held]
    assert set(await apply(pool, finish(claimed[running]))) == {(running, 1)}, "an answer past the deadline counts"


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
