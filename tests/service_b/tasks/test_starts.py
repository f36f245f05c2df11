"""Tasks that begin at a time of their own, on a real PostgreSQL."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from service_b.tasks import clock, inserts, mending, starts
from service_b.tasks.clock import Clock
from service_b.tasks.inserts import Wishes
from tests.tasks import (
    A,
    B,
    C,
    accept,
    apply,
    claim,
    claimed_by_id,
    expire,
    finish,
    internal_time,
    let_time_pass,
    new_task,
    row,
    run_device_down,
    states,
    step_clock,
)

HOUR = 3600.0


def later(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def wishes_for(start_in: float | None, end_in: float | None = None) -> Wishes:
    return Wishes(
        not_before=None if start_in is None else later(start_in), not_after=None if end_in is None else later(end_in)
    )


async def start(pool: asyncpg.Pool, limit: int = 10) -> int:
    return await starts.start(pool, await internal_time(pool), limit)


async def test_it_begins_at_its_time_and_holds_nobody_up(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    [scheduled] = await accept(pool, A, wishes=Wishes(not_before=later(100)))
    [other] = await accept(pool, A)
    assert await states(sql, [scheduled, other]) == ["scheduled", "due"]
    assert await run_device_down(pool) == [other]
    await let_time_pass(sql, 90)
    assert await start(pool) == 0
    await let_time_pass(sql, 10)
    assert await start(pool) == 1
    assert await states(sql, [scheduled]) == ["due"]
    assert await run_device_down(pool) == [scheduled]
    assert await start(pool) == 0


async def test_a_time_that_has_passed_is_now(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    ids = await accept(pool, A, A, wishes=Wishes(not_before=later(-1)))
    assert await states(sql, ids) == ["due", "waiting"]
    assert (await row(sql, ids[0]))["not_before"] < datetime.now(UTC), "as it was asked"


async def test_whose_time_has_come_waits_its_turn_by_acceptance(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    [scheduled] = await accept(pool, A, wishes=Wishes(not_before=later(100)))
    active, waiting = await accept(pool, A, A)
    [dispatch] = await claim(pool, 9)
    await let_time_pass(sql, 101)
    assert await start(pool) == 1
    assert await states(sql, [scheduled, active, waiting]) == ["waiting", "running", "waiting"]
    await apply(pool, finish(dispatch))
    assert await run_device_down(pool) == [scheduled, waiting]


async def test_those_whose_time_came_first_start_first_and_what_is_held_later(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    ids = [
        (await accept(pool, device, wishes=Wishes(not_before=later(seconds))))[0]
        for device, seconds in ((A, 30), (B, 10), (C, 20))
    ]
    await let_time_pass(sql, 40)
    async with other.transaction(), asyncio.timeout(30):
        await other.execute("SELECT FROM task WHERE id = $1 FOR UPDATE", ids[2])
        assert await start(pool, 1) == 1
        assert await states(sql, ids) == ["scheduled", "due", "scheduled"]
        assert await start(pool) == 1
        assert await start(pool) == 0
    assert await start(pool) == 1
    assert await states(sql, ids) == ["due", "due", "due"]


async def test_a_thousand_of_few_devices_start_at_once(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    devices = [f"DEVICE{n % 10}" for n in range(1000)]
    wishes = Wishes(not_before=later(100))
    ids = await accept(pool, *devices, wishes=wishes)
    await let_time_pass(sql, 101)
    assert [await start(pool, 400) for _ in range(4)] == [400, 400, 200, 0]
    assert (await states(sql, ids)).count("due") == 10


@pytest.mark.parametrize(
    ("start_in", "end_in", "expected"), [(None, None, 600), (50, None, 650), (None, 70, 70), (50, 70, 70)]
)
async def test_its_deadline_is_what_was_asked_for_or_counts_from_its_start(
    pool: asyncpg.Pool, sql: asyncpg.Connection, start_in: float | None, end_in: float | None, expected: float
) -> None:
    wishes = wishes_for(start_in, end_in)
    [id_] = await accept(pool, A, deadline_seconds=600, wishes=wishes)
    assert expected - 20 < (await row(sql, id_))["deadline_in"] <= expected
    await let_time_pass(sql, expected + 1)
    assert await expire(pool, 9) == [id_]
    ended = await row(sql, id_)
    assert (ended["ended_by"], ended["code"], ended["not_before"]) == ("deadline", 500, wishes.not_before)


async def test_what_is_scheduled_counts_as_unfinished(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    async def store(*starts: float | None) -> list[bool]:
        new = [new_task(A, wishes=wishes_for(seconds)) for seconds in starts]
        refused = await inserts.insert(pool, new, grace_seconds=0, deadline_seconds=600, max_per_device=3)
        return [task.id in refused for task in new]

    assert await store(100, 100) == [False, False]
    assert await store(None, 100, None, 100) == [False, False, True, True]
    assert await store(None, 100) == [True, True]


# --- The clock


@pytest.mark.parametrize("by", [HOUR, -HOUR])
async def test_a_jump_of_the_clock_starts_nothing_too_soon_and_nothing_late(
    pool: asyncpg.Pool, sql: asyncpg.Connection, by: float
) -> None:
    internal = Clock(settle_seconds=0)
    assert await internal.look(sql) is None
    [before] = await accept(pool, A, wishes=Wishes(not_before=later(600)), now=internal.now())
    await step_clock(sql, by)
    [just_then] = await accept(pool, B, wishes=Wishes(not_before=later(600), not_after=later(700)), now=internal.now())
    assert await starts.start(pool, internal.now() or later(0), 9) == 0
    jump, now = await internal.look(sql), internal.now()
    assert jump
    assert now
    assert await clock.correct(sql, jump)
    await mending.mend(sql, now, jump.by)
    assert await starts.start(pool, now, 9) == 0
    await let_time_pass(sql, 590)
    assert await start(pool) == 0
    await let_time_pass(sql, 10)
    assert await start(pool) == 2
    assert await states(sql, [before, just_then]) == ["due", "due"]
    assert 0 < (await row(sql, just_then))["deadline_in"] < 101


async def test_what_starts_while_a_task_of_its_device_is_being_stored_is_not_forgotten(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    ids: list[UUID] = []

    async def store() -> None:
        for _ in range(30):
            ids.extend(await accept(pool, A))

    async def begin() -> None:
        for _ in range(30):
            ids.extend(await accept(pool, A, wishes=Wishes(not_before=later(0.001))))
            await start(pool)

    await asyncio.gather(store(), begin())
    while await sql.fetchval("SELECT count(*) FROM task WHERE start_at IS NOT NULL"):
        await start(pool)
    assert len(await run_device_down(pool)) == len(ids) == 60


async def test_starting_twice_at_once_starts_each_once(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    await accept(pool, *[f"DEVICE{n:03}" for n in range(100)], wishes=Wishes(not_before=later(100)))
    await let_time_pass(sql, 101)
    assert sum(await asyncio.gather(*(start(pool, 60) for _ in range(4)))) == 100
    assert len(await claimed_by_id(pool, 200)) == 100
