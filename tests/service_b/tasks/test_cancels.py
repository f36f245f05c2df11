"""Cancelling, with the lease as the line, on a real PostgreSQL."""

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from service_b.tasks import claims, clock, leases, mending
from service_b.tasks.cancels import Answer, cancel
from service_b.tasks.clock import Clock
from tests.tasks import (
    A,
    B,
    C,
    accept,
    apply,
    begin,
    claim,
    connected,
    expire,
    finish,
    give_back,
    let_time_pass,
    one_of_each,
    row,
    states,
    step_clock,
)


async def ask(pool: asyncpg.Pool, *ids: UUID, by: str | None = None) -> list[Answer]:
    async with connected(pool) as connection:
        return await cancel(connection, [(id_, by) for id_ in ids])


async def history(sql: asyncpg.Connection, id_: UUID) -> list[dict[str, Any]]:
    """What a task's row tells of it, without the times."""
    return [event for event in json.loads((await row(sql, id_))["history"] or "[]") if event.pop("at")]


async def test_what_becomes_of_a_wish_depends_on_the_state(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    tasks = await one_of_each(pool)
    ids = [task.id for task in tasks.values()]
    answers = await ask(pool, *ids, uuid4())
    assert dict(zip(tasks, answers, strict=False)) == {
        "scheduled": "cancelled",
        "waiting": "cancelled",
        "due": "requested",
        "dispatched": "cancelled",
        "running": "requested",
        "success": "ended",
        "error": "ended",
    }
    assert answers[-1] is Answer.ENDED
    assert await states(sql, ids) == ["error", "error", "due", "error", "running", "success", "error"]
    for state in ("scheduled", "waiting", "dispatched"):
        ended = await row(sql, tasks[state].id)
        assert (ended["code"], ended["reason"], ended["ended_by"]) == (500, "cancelled", "cancel")
    for state in ("due", "running"):
        assert (await row(sql, tasks[state].id))["cancel_requested"]
    message = tasks["dispatched"]
    assert await leases.grant(pool, [(message.id, message.attempt, uuid4())]) == [leases.Answer.ENDED]


async def test_the_one_behind_is_next(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    ids = await accept(pool, A, A, A, B)
    assert await ask(pool, ids[1], ids[0], ids[0]) == ["cancelled"] * 3
    assert await states(sql, ids) == ["error", "error", "due", "due"]


async def test_the_answer_of_a_call_that_is_under_way_counts(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    ids = await accept(pool, A, B)
    for code, dispatch in zip((200, 404), await claim(pool, 9), strict=True):
        assert await ask(pool, dispatch.id) == await ask(pool, dispatch.id) == ["requested"]
        assert await expire(pool, 9) == []
        assert await apply(pool, finish(dispatch, code))
        ended = await row(sql, dispatch.id)
        assert (ended["code"], ended["ended_by"], ended["cancel_requested"]) == (code, None, True)
    assert sorted(await states(sql, ids)) == ["error", "success"]


@pytest.mark.parametrize("when", ["during its call", "between two calls"])
async def test_it_is_not_tried_again_and_ends_when_its_device_is_free(
    pool: asyncpg.Pool, sql: asyncpg.Connection, when: str
) -> None:
    first, second = await accept(pool, A, A)
    [dispatch] = await claim(pool, 9)
    end = give_back(dispatch, hold_seconds=100, backoff_seconds=300, unknown=True)
    if when == "during its call":
        assert await ask(pool, first) == ["requested"]
        assert await apply(pool, end)
    else:
        assert await apply(pool, end)
        assert await ask(pool, first) == ["requested"]
    assert await expire(pool, 9) == []
    await let_time_pass(sql, 101 if when == "during its call" else 301)
    assert await claims.claim(pool, 9) == []
    assert await leases.grant(pool, [(first, 1, uuid4()), (first, 2, uuid4())]) == ["taken", "old"]
    assert await expire(pool, 9) == [first]
    ended = await row(sql, first)
    assert (ended["code"], ended["reason"], ended["ended_by"]) == (500, "cancelled", "cancel")
    assert await states(sql, [second]) == ["due"]


async def test_a_late_answer_counts_as_long_as_the_task_is_not_ended(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    [id_] = await accept(pool, A)
    [dispatch] = await claim(pool, 9)
    await apply(pool, give_back(dispatch, hold_seconds=100, lost=True))
    assert await ask(pool, id_) == ["requested"]
    assert await apply(pool, finish(dispatch))
    assert await states(sql, [id_]) == ["success"]


async def test_one_whose_next_attempt_is_announced_ends_at_once(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    """Its device is free, and the answer of the attempt before counts no more."""
    [id_] = await accept(pool, A)
    [dispatch] = await claim(pool, 9)
    await apply(pool, give_back(dispatch))
    [again] = await claims.claim(pool, 9)
    assert await ask(pool, id_) == ["cancelled"]
    assert await leases.grant(pool, [(id_, again.attempt, uuid4())]) == ["ended"]
    assert await apply(pool, finish(dispatch)) == {}
    assert [event["event"] for event in await history(sql, id_)] == ["attempt ended", "cancelled"]


async def test_what_somebody_else_holds_is_told_and_nobody_waits(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    ids = await accept(pool, A, B, C)
    async with other.transaction(), asyncio.timeout(30):
        await other.execute("UPDATE task SET reason = 'backfill' WHERE id = $1", ids[1])
        assert await ask(pool, *ids) == ["cancelled", "held", "cancelled"]
    assert await ask(pool, *ids) == ["ended", "cancelled", "ended"]


async def test_a_cancel_and_a_lease_that_race_a_thousand_times_have_one_winner(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    """Never both: a call that begins after it was told that it never does; never neither: a task that is nobody's."""
    devices = [f"DEVICE{number:04}" for number in range(1000)]
    await accept(pool, *devices)
    dispatches = await claims.claim(pool, 1000)
    leases_won = cancels_won = 0

    async def begin_it(dispatch: claims.Dispatch) -> leases.Answer:
        while (answers := await leases.grant(pool, [(dispatch.id, 1, uuid4())])) == ["held"]:
            pass
        return answers[0]

    async def cancel_it(dispatch: claims.Dispatch) -> Answer:
        while (answers := await ask(pool, dispatch.id)) == ["held"]:
            pass
        return answers[0]

    for number, dispatch in enumerate(dispatches):
        both = begin_it(dispatch), cancel_it(dispatch)
        # Whichever is asked first has some way ahead.
        leased, cancelled = await asyncio.gather(*both) if number % 2 else (await asyncio.gather(*both[::-1]))[::-1]
        assert (leased, cancelled) in [("granted", "requested"), ("ended", "cancelled")]
        leases_won += leased == "granted"
        cancels_won += cancelled == "cancelled"
    assert leases_won + cancels_won == 1000
    assert leases_won
    assert cancels_won
    running = await sql.fetchval("SELECT count(*) FROM task WHERE begun_at IS NOT NULL AND cancel_requested")
    assert running == leases_won
    assert await sql.fetchval("SELECT count(*) FROM finished WHERE ended_by = 'cancel'") == cancels_won


# --- The clock


@pytest.fixture
async def internal(sql: asyncpg.Connection) -> Clock:
    made = Clock(settle_seconds=0)
    assert await made.look(sql) is None
    return made


async def test_a_jump_ahead_does_not_have_it_tried_again(
    pool: asyncpg.Pool, sql: asyncpg.Connection, internal: Clock
) -> None:
    [id_] = await accept(pool, A, deadline_seconds=86400)
    [dispatch] = await claim(pool, 9)
    await step_clock(sql, 3600)
    async with pool.acquire() as connection:
        await cancel(connection, [(id_, None)], internal.at_least())
    jump, now = await internal.look(sql), internal.now()
    assert jump
    assert now
    assert await clock.correct(sql, jump)
    await mending.mend(sql, now, jump.by)
    await apply(pool, give_back(dispatch))
    assert await claims.claim(pool, 9) == []
    assert await expire(pool, 9) == [id_]


async def test_what_is_claimed_though_while_the_clock_is_behind_does_not_begin(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    [id_] = await accept(pool, A)
    [dispatch] = await claim(pool, 9)
    await apply(pool, give_back(dispatch))
    assert await ask(pool, id_) == ["requested"]
    await sql.execute("UPDATE task SET due_at = due_at - interval '2 h'")
    await step_clock(sql, -3600)
    [again] = await claims.claim(pool, 9)
    assert await leases.grant(pool, [(id_, again.attempt, uuid4())]) == ["expired"]


# --- The history


async def test_the_history_tells_what_differs_from_the_straight_way(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    ids = await accept(pool, A, B, C)
    dispatches = {dispatch.id: dispatch for dispatch in await claims.claim(pool, 9)}
    straight, failed, cancelled = (dispatches[id_] for id_ in ids)
    await begin(pool, *dispatches.values())
    otherwise = {"event": "attempt ended", "attempt": 1, "reason": "given back"}
    again, unknown = ({**otherwise, "outcome": outcome} for outcome in ("unavailable", "unknown"))
    await apply(
        pool,
        finish(straight),
        give_back(failed),
        give_back(cancelled, outcome="unknown", hold_seconds=60),
    )
    assert await ask(pool, cancelled.id, by="oss") == await ask(pool, cancelled.id, by="bss") == ["requested"]
    [second] = await claim(pool, 9)
    await apply(pool, finish(second, 500, outcome="failed"))
    assert (await row(sql, straight.id))["history"] is None
    assert await history(sql, failed.id) == [again, {"event": "attempt ended", "attempt": 2, "outcome": "failed"}]
    wish = {"event": "cancel requested", "attempt": 1, "by": "oss"}
    assert await history(sql, cancelled.id) == [unknown, wish]
    await let_time_pass(sql, 61)
    assert await expire(pool, 9) == [cancelled.id]
    assert await history(sql, cancelled.id) == [unknown, wish]
    [waiting] = await accept(pool, A)
    await ask(pool, waiting, by="oss")
    assert await history(sql, waiting) == [{"event": "cancelled", "by": "oss"}]


async def test_of_the_history_the_newest_fifty_are_kept(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    [id_] = await accept(pool, A)
    for _ in range(53):
        [dispatch] = await claim(pool, 9)
        await apply(pool, give_back(dispatch))
    assert [event["attempt"] for event in await history(sql, id_)] == list(range(4, 54))
