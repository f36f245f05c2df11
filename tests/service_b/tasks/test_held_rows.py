"""Rows that somebody else holds (an open psql, a backfill) delay their own device alone, on a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import pytest

from service_b.tasks import claims, outcomes
from service_b.tasks.claims import Dispatch
from tests.tasks import (
    A,
    B,
    C,
    accept,
    apply,
    claim,
    expire,
    finish,
    give_back,
    let_time_pass,
    promote_stranded,
    run_device_down,
    states,
)

LOCKED = "SELECT FROM task WHERE id = $1 FOR UPDATE"
CHANGED = "UPDATE task SET reason = 'backfill' WHERE id = $1"
ENDED = "DELETE FROM task WHERE id = $1"


@asynccontextmanager
async def held(other: asyncpg.Connection, id_: UUID, how: str = LOCKED) -> AsyncIterator[None]:
    """Somebody has begun a transaction and gone for coffee. All that happens meanwhile must not wait for it."""
    async with asyncio.timeout(60):
        transaction = other.transaction()
        await transaction.start()
        await other.execute(how, id_)
        yield
        await transaction.rollback()


@pytest.fixture
async def dispatches(pool: asyncpg.Pool) -> list[Dispatch]:
    """Two tasks for each of three devices; the first ones are dispatched."""
    await accept(pool, A, B, C, A, B, C)
    return sorted(await claim(pool, 3), key=lambda dispatch: dispatch.equipment_id)


@pytest.mark.parametrize("how", [LOCKED, CHANGED, ENDED])
async def test_new_tasks_are_stored_those_of_the_device_itself_too(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection, dispatches: list[Dispatch], how: str
) -> None:
    async with held(other, dispatches[0].id, how):
        ids = await accept(pool, C, B, A, "DEVICE0D")
        assert await states(sql, ids) == ["waiting", "waiting", "waiting", "due"]


@pytest.mark.parametrize("how", [LOCKED, CHANGED, ENDED])
async def test_the_outcomes_of_other_devices_are_recorded_and_the_held_one_is_told(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection, dispatches: list[Dispatch], how: str
) -> None:
    mine, *others = dispatches
    async with held(other, mine.id, how), pool.acquire() as connection:
        changes = [finish(dispatch) for dispatch in reversed(dispatches)]
        applied = await outcomes.apply(connection, changes, max_attempts=3)
        assert applied.held == {finish(mine).key}
        assert set(applied.counted) == {finish(dispatch).key for dispatch in others}
        late = give_back(mine)
        assert (await outcomes.apply(connection, [late], max_attempts=3)).held == {late.key}
    assert await states(sql, [dispatch.id for dispatch in dispatches]) == ["running", "success", "success"]
    assert {dispatch.equipment_id for dispatch in await claim(pool, 9)} == {B, C}
    assert set(await apply(pool, finish(mine))) == {(mine.id, 1)}
    assert [dispatch.equipment_id for dispatch in await claim(pool, 9)] == [A]


async def test_a_device_whose_next_task_is_held_waits_for_that_and_no_other_device_does(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    ids = await accept(pool, A, A, A, B, B)
    dispatches = await claim(pool, 9)
    async with held(other, ids[1]):
        await apply(pool, *(finish(dispatch) for dispatch in dispatches))
        assert await states(sql, ids) == ["success", "waiting", "waiting", "success", "due"]
        assert await promote_stranded(pool, "", 10) == ("", 0)
        await accept(pool, A)
        assert await states(sql, ids[1:3]) == ["waiting"] * 2, "none overtakes it"
    assert await promote_stranded(pool, "", 10) == ("", 1)
    assert await states(sql, ids[1:3]) == ["due", "waiting"]


async def test_a_dispatch_that_was_not_sent_is_told_if_it_is_held(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await accept(pool, A, B, C)
    unsent = [(dispatch.id, 1) for dispatch in await claims.claim(pool, 3)]
    async with held(other, unsent[0][0]):
        assert await claims.make_due_again(pool, unsent) == unsent[:1]
        assert await states(sql, [id_ for id_, _ in unsent]) == ["dispatched", "due", "due"]
    assert await claims.make_due_again(pool, unsent) == []
    assert await states(sql, [id_ for id_, _ in unsent]) == ["due"] * 3


async def test_deadlines_of_other_devices_are_kept(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection, dispatches: list[Dispatch]
) -> None:
    await apply(pool, *(give_back(dispatch) for dispatch in dispatches))
    await let_time_pass(sql, 5000)
    async with held(other, dispatches[0].id):
        assert len(await expire(pool, 10)) == 5
    assert await expire(pool, 10) == [dispatches[0].id]


async def test_a_hundred_devices_are_served_in_order_beside_one_that_is_held(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    """Stored, claimed, ended and promoted, three tasks each; then the held one goes on."""
    devices = [f"DEVICE{number:03}" for number in range(100)]
    mine = await accept(pool, A)
    [dispatch] = await claim(pool, 1)
    async with held(other, dispatch.id):
        ids = [id_ for _ in range(3) for id_ in await accept(pool, *devices, A)]
        others = [id_ for position, id_ in enumerate(ids) if position % 101 < 100]
        mine += [id_ for id_ in ids if id_ not in others]
        assert sorted(await run_device_down(pool)) == sorted(others)
        assert await states(sql, mine) == ["running"] + ["waiting"] * 3
    await apply(pool, finish(dispatch))
    assert [dispatch.id, *await run_device_down(pool)] == mine
