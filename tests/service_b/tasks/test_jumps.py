"""The moment between a jump of the database's clock and its correction, on a real PostgreSQL."""

from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from service_b.tasks import claims, clock, expiry, mending, outcomes, overdue
from service_b.tasks.clock import Clock, Jump
from service_b.tasks.leases import Answer, grant
from tests.tasks import (
    A,
    B,
    accept,
    apply,
    begin,
    claim,
    claimed_by_id,
    finish,
    give_back,
    lead,
    row,
    states,
    step_clock,
)

HOUR = 3600.0


@pytest.fixture
async def internal(sql: asyncpg.Connection) -> Clock:
    made = Clock(settle_seconds=0)
    assert await made.look(sql) is None
    return made


async def correct(internal: Clock, sql: asyncpg.Connection) -> Jump:
    """What the process that leads does."""
    jump, now = await internal.look(sql), internal.now()
    assert jump
    assert now
    assert await clock.correct(sql, jump)
    await mending.mend(sql, now, jump.by)
    return jump


async def test_what_became_due_while_the_clock_was_ahead_is_due_a_little_later(
    pool: asyncpg.Pool, sql: asyncpg.Connection, internal: Clock
) -> None:
    ids = await accept(pool, A, A, B, deadline_seconds=86400)
    claimed = await claimed_by_id(pool)
    await begin(pool, *claimed.values())
    await step_clock(sql, HOUR)
    await apply(pool, finish(claimed[ids[0]]), give_back(claimed[ids[2]], backoff_seconds=100))
    assert (await row(sql, ids[1]))["due_in"] > HOUR - 60
    await correct(internal, sql)
    assert (await row(sql, ids[1]))["due_in"] < 60
    assert 0 < (await row(sql, ids[2]))["due_in"] < 160


async def test_no_hold_of_before_the_jump_is_shortened(
    pool: asyncpg.Pool, sql: asyncpg.Connection, internal: Clock
) -> None:
    [short, long] = await accept(pool, A, B, timeout_seconds=3600, grace_seconds=3600)
    claimed = await claimed_by_id(pool)
    await begin(pool, *claimed.values())
    await apply(
        pool,
        give_back(claimed[short], hold_seconds=30, unknown=True),
        give_back(claimed[long], hold_seconds=7000, unknown=True),
    )
    await sql.execute("UPDATE task SET chances = 2")
    await step_clock(sql, HOUR)
    await correct(internal, sql)
    assert 0 < (await row(sql, short))["due_in"] <= 30
    assert 6900 < (await row(sql, long))["due_in"] <= 7000


@pytest.mark.parametrize("by", [HOUR, -HOUR])
async def test_a_call_that_begins_just_then_is_lost_in_time_and_not_sooner(
    pool: asyncpg.Pool, sql: asyncpg.Connection, internal: Clock, by: float
) -> None:
    [id_] = await accept(pool, A, timeout_seconds=100)
    [dispatch] = await claims.claim(pool, 1)
    await sql.execute("UPDATE task SET deadline_at = deadline_at + interval '1 day'")
    await step_clock(sql, by)
    lease = uuid4()
    assert await grant(pool, [(id_, dispatch.attempt, lease)], internal.at_least()) == [Answer.GRANTED]
    await correct(internal, sql)
    found = await row(sql, id_)
    now = internal.now()
    assert now
    assert abs(found["begun_at"] - now) < timedelta(seconds=60)
    assert timedelta(seconds=100) < found["overdue_at"] - now < timedelta(seconds=200)


async def test_no_call_begins_after_the_deadline_because_the_clock_was_set_back(
    pool: asyncpg.Pool, sql: asyncpg.Connection, internal: Clock
) -> None:
    [id_] = await accept(pool, A, deadline_seconds=100)
    await claims.claim(pool, 1)
    await sql.execute("UPDATE task SET deadline_at = deadline_at - interval '110 s'")
    await step_clock(sql, -HOUR)
    assert await grant(pool, [(id_, 1, uuid4())], internal.at_least()) == [Answer.EXPIRED]


@pytest.mark.parametrize("by", [HOUR, -HOUR])
async def test_a_task_that_is_stored_just_then_keeps_its_turn_and_its_deadline(
    pool: asyncpg.Pool, sql: asyncpg.Connection, internal: Clock, by: float
) -> None:
    await step_clock(sql, by)
    [id_] = await accept(pool, A, deadline_seconds=600, now=internal.now())
    await correct(internal, sql)
    found = await row(sql, id_)
    assert found["due_in"] < 60
    assert 500 < found["deadline_in"] <= 600


async def test_nothing_expires_because_the_clock_jumps(
    pool: asyncpg.Pool, sql: asyncpg.Connection, internal: Clock
) -> None:
    ids = await accept(pool, A, B, deadline_seconds=600)
    [dispatch] = await claims.claim(pool, 1)
    await begin(pool, dispatch)
    await step_clock(sql, HOUR)
    now = internal.now()
    assert now
    async with pool.acquire() as connection:
        assert await expiry.expire(connection, now, 9) == []
    assert await overdue.repeat_dispatches(pool, now, 9) == []
    assert await overdue.take_lost(pool, now, 9) == []
    assert await states(sql, ids) == ["running", "due"]


async def test_no_device_is_let_go_too_soon_while_the_clock_is_behind(
    pool: asyncpg.Pool, sql: asyncpg.Connection, internal: Clock
) -> None:
    [id_] = await accept(pool, A)
    [dispatch] = await claim(pool, 1)
    await step_clock(sql, -HOUR)
    async with pool.acquire() as connection:
        await outcomes.apply(
            connection, [give_back(dispatch, hold_seconds=60)], max_attempts=3, at_least=internal.at_least()
        )
    await correct(internal, sql)
    assert (await row(sql, id_))["due_in"] > 30


async def test_a_message_that_is_lost_just_then_is_missed_in_time(
    pool: asyncpg.Pool, sql: asyncpg.Connection, internal: Clock
) -> None:
    [id_] = await accept(pool, A, deadline_seconds=86400)
    await step_clock(sql, HOUR)
    assert await claims.claim(pool, 1, latest=internal.at_most())
    await correct(internal, sql)
    now = internal.now()
    assert now
    assert [row["id"] for row in await overdue.repeat_dispatches(pool, now + timedelta(seconds=12), 9)] == [id_]


async def test_who_has_just_started_misdates_nothing_after_a_clock_was_set_back(
    pool: asyncpg.Pool, sql: asyncpg.Connection, internal: Clock
) -> None:
    """It knows nothing but what the process that leads has written down."""
    await accept(pool, A, B)
    [held, running] = await claims.claim(pool, 2)
    await begin(pool, held)
    assert await lead(pool, uuid4())
    await step_clock(sql, -HOUR)
    [late] = await accept(pool, "DEVICE9", deadline_seconds=60)
    await begin(pool, running)
    await apply(pool, give_back(held, hold_seconds=30, unknown=True))
    jump, now = await internal.look(sql), internal.now()
    assert jump
    assert now
    assert await clock.correct(sql, jump)
    assert await expiry.expire(sql, now, 100) == []
    assert await overdue.take_lost(sql, now, 100) == []
    assert 25 < (await row(sql, held.id))["due_in"] <= 30
    assert (await states(sql, [running.id, late])) == ["running", "due"]
