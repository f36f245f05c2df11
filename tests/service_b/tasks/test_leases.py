"""Beginning calls of service A, on a real PostgreSQL: one for each attempt."""

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest

from service_b.tasks import claims
from service_b.tasks.leases import Answer, grant
from tests.tasks import (
    A,
    B,
    C,
    accept,
    apply,
    begin,
    claim,
    expire,
    finish,
    give_back,
    lease_of,
    let_time_pass,
    one_of_each,
    row,
    states,
)

LEASE, OTHER = uuid4(), uuid4()


async def test_the_first_lease_begins_the_call_and_the_same_one_is_granted_again(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    [id_] = await accept(pool, A, timeout_seconds=14, grace_seconds=75)
    await sql.execute("UPDATE service_a SET answers = 7")
    await claims.claim(pool, 1)
    assert await grant(pool, [(id_, 1, LEASE)]) == [Answer.GRANTED]
    begun = await row(sql, id_)
    assert (begun["state"], begun["lease"], begun["due_at"], begun["answers_before"]) == ("running", LEASE, None, 7)
    assert (begun["overdue_at"] - begun["begun_at"]).total_seconds() == 14 + 75 + 10
    assert await grant(pool, [(id_, 1, OTHER)]) == [Answer.TAKEN]
    assert await grant(pool, [(id_, 1, LEASE), (id_, 1, OTHER), (id_, 1, LEASE)]) == ["granted", "taken", "granted"]
    assert (await row(sql, id_))["begun_at"] == begun["begun_at"]


async def test_of_different_leases_in_one_batch_exactly_one_is_granted(pool: asyncpg.Pool) -> None:
    ids = await accept(pool, A, B)
    await claims.claim(pool, 2)
    wishes = [(id_, 1, uuid4()) for _ in range(5) for id_ in ids]
    answers = await grant(pool, wishes)
    for id_ in ids:
        assert sorted(answer for wish, answer in zip(wishes, answers, strict=True) if wish[0] == id_) == [
            "granted",
            *["taken"] * 4,
        ]
    assert await grant(pool, wishes) == answers


async def test_of_a_thousand_that_race_exactly_one_is_granted_for_each_attempt(pool: asyncpg.Pool) -> None:
    ids = await accept(pool, *(f"DEVICE{number}" for number in range(100)))
    await claims.claim(pool, 100)
    waiting = [(id_, 1, uuid4()) for _ in range(10) for id_ in ids]
    granted: list[UUID] = []

    async def ask(wishes: list[tuple[UUID, int, UUID]]) -> None:
        while wishes:
            answers = await grant(pool, wishes)
            granted.extend(wish[0] for wish, answer in zip(wishes, answers, strict=True) if answer is Answer.GRANTED)
            wishes = [wish for wish, answer in zip(wishes, answers, strict=True) if answer is Answer.HELD]

    async with asyncio.timeout(60):
        await asyncio.gather(*(ask(waiting[number::20]) for number in range(20)))
    assert sorted(granted) == sorted(ids)


async def test_nothing_begins_but_the_current_attempt_of_the_active_task(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    tasks = await one_of_each(pool)
    before = await sql.fetch("SELECT * FROM task WHERE id <> $1 ORDER BY seq", tasks["dispatched"].id)
    asked = {
        "waiting": (tasks["waiting"].id, 1),
        "an attempt to come": (tasks["dispatched"].id, 2),
        "running": (tasks["running"].id, 1),
        "success": (tasks["success"].id, 1),
        "error": (tasks["error"].id, 1),
        "nobody": (uuid4(), 1),
        "dispatched": (tasks["dispatched"].id, 1),
    }
    answers = await grant(pool, [(*attempt, LEASE) for attempt in asked.values()])
    assert dict(zip(asked, answers, strict=True)) == {
        "waiting": "ended",
        "an attempt to come": "old",
        "running": "taken",
        "success": "ended",
        "error": "ended",
        "nobody": "ended",
        "dispatched": "granted",
    }
    assert await sql.fetch("SELECT * FROM task WHERE id <> $1 ORDER BY seq", tasks["dispatched"].id) == before


async def test_an_old_attempt_is_refused(pool: asyncpg.Pool) -> None:
    [id_] = await accept(pool, A)
    [dispatch] = await claim(pool, 1)
    await apply(pool, give_back(dispatch))
    await claims.claim(pool, 1)
    assert await grant(pool, [(id_, 1, LEASE), (id_, 2, OTHER)]) == [Answer.OLD, Answer.GRANTED]


async def test_a_copy_of_an_attempt_that_has_been_called_is_refused_while_its_task_waits_for_the_next(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    [id_] = await accept(pool, A)
    [dispatch] = await claims.claim(pool, 1)
    await begin(pool, dispatch)
    lease = lease_of(dispatch)
    await apply(pool, give_back(dispatch, hold_seconds=60))
    held = await row(sql, id_)
    assert (held["state"], held["lease"], held["begun_at"], held["overdue_at"]) == ("due", lease, None, None)
    assert await grant(pool, [(id_, 1, lease), (id_, 1, OTHER)]) == [Answer.TAKEN, Answer.TAKEN]
    await let_time_pass(sql, 61)
    await claims.claim(pool, 1)
    assert await grant(pool, [(id_, 1, lease), (id_, 2, lease)]) == [Answer.OLD, Answer.GRANTED]


async def test_a_message_that_seemed_lost_may_begin_until_its_task_is_claimed_again(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    ids = await accept(pool, A, B)
    await claims.claim(pool, 2)
    await claims.make_due_again(pool, [(id_, 1) for id_ in ids])
    assert await grant(pool, [(ids[0], 1, LEASE)]) == [Answer.GRANTED]
    assert await states(sql, ids) == ["running", "due"]
    assert [dispatch.id for dispatch in await claims.claim(pool, 2)] == [ids[1]]
    assert await grant(pool, [(ids[1], 1, LEASE)]) == [Answer.OLD]


async def test_no_call_begins_after_the_deadline_and_none_is_cut_off_by_it(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    late, running = await accept(pool, A, B, deadline_seconds=100)
    dispatches = {dispatch.id: dispatch for dispatch in await claims.claim(pool, 2)}
    await begin(pool, dispatches[running])
    lease = lease_of(dispatches[running])
    await let_time_pass(sql, 101)
    assert await grant(pool, [(late, 1, LEASE), (running, 1, lease)]) == [Answer.EXPIRED, Answer.GRANTED]
    assert await states(sql, [late, running]) == ["dispatched", "running"]
    assert await expire(pool, 10) == [late], "nobody has begun it"
    assert set(await apply(pool, finish(dispatches[running]))) == {(running, 1)}


@pytest.mark.parametrize("how", ["FOR UPDATE", "FOR SHARE"])
async def test_a_row_that_somebody_holds_is_undecided_and_no_other_waits(
    pool: asyncpg.Pool, other: asyncpg.Connection, how: str
) -> None:
    ids = await accept(pool, A, B, C)
    await claims.claim(pool, 3)
    wishes = [(id_, 1, uuid4()) for id_ in ids]
    async with asyncio.timeout(60), other.transaction():
        await other.fetch(f"SELECT FROM task WHERE id = $1 {how}", ids[1])
        assert await grant(pool, wishes) == [Answer.GRANTED, Answer.HELD, Answer.GRANTED]
    assert await grant(pool, wishes) == [Answer.GRANTED] * 3
