"""What the reconciler asks, on a real PostgreSQL."""

from dataclasses import replace
from uuid import UUID

import asyncpg

from service_b.tasks import claims, overdue
from service_b.tasks.claims import Dispatch
from service_b.tasks.outcomes import Change
from service_b.tasks.overdue import Attempt
from tests.tasks import (
    A,
    B,
    C,
    accept,
    apply,
    let_time_pass,
    row,
)
from tests.tasks import (
    finish as finish_begun,
)
from tests.tasks import (
    give_back as give_back_begun,
)


def finish(dispatch: Dispatch, code: int = 200) -> Change:
    """By a configurator that asks for no lease."""
    return replace(finish_begun(dispatch, code), lease=None)


def give_back(dispatch: Dispatch) -> Change:
    return replace(give_back_begun(dispatch), lease=None)


async def test_the_newest_dispatched_is_the_one_claimed_last_without_an_outcome(pool: asyncpg.Pool) -> None:
    assert await overdue.newest_dispatched(pool) is None
    await accept(pool, A, B)
    [first] = await claims.claim(pool, 1)
    [second] = await claims.claim(pool, 1)
    newest = await overdue.newest_dispatched(pool)
    assert newest
    assert (newest.id, newest.number, newest.time_limit_seconds) == (second.id, 1, 1)
    await apply(pool, give_back(second))
    newest = await overdue.newest_dispatched(pool)
    assert newest
    assert newest.id == first.id


async def test_only_an_answer_of_service_a_shows_that_an_attempt_was_taken(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    await accept(pool, A, B, C, "DEVICE0D")
    dispatches: list[Dispatch] = []
    attempts: list[Attempt] = []
    for _ in range(4):
        dispatches += await claims.claim(pool, 1)
        newest = await overdue.newest_dispatched(pool)
        assert newest
        attempts.append(newest)
    assert await overdue.latest_answered(pool, attempts) is None
    await apply(pool, finish(dispatches[3], 500), give_back(dispatches[2]))
    assert await overdue.latest_answered(pool, attempts) is None
    await apply(pool, finish(dispatches[0]))
    assert await overdue.latest_answered(pool, attempts) == attempts[0].dispatched_at
    await apply(pool, finish(dispatches[1], 404))
    assert await overdue.latest_answered(pool, attempts) == attempts[1].dispatched_at
    assert await overdue.latest_answered(pool, attempts[2:]) is None
    stale = [Attempt(attempts[1].id, 2, attempts[1].dispatched_at, 1)]
    assert await overdue.latest_answered(pool, stale) is None
    assert await overdue.latest_answered(pool, []) is None


async def test_attempts_without_outcome_are_listed_after_their_time(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    [short] = await accept(pool, A, timeout_seconds=10, grace_seconds=5)
    [first] = await claims.claim(pool, 1)
    [long] = await accept(pool, B, timeout_seconds=100, grace_seconds=5)
    await claims.claim(pool, 1)
    now = await overdue.now(pool)

    async def listed(lateness: float = 0, limit: int = 10) -> list[UUID]:
        return [attempt.id for attempt in await overdue.without_outcome(pool, await overdue.now(pool), lateness, limit)]

    assert await listed() == []
    await let_time_pass(sql, 16)
    assert await listed() == [short]
    assert await listed(lateness=60) == []
    await let_time_pass(sql, 100)
    assert await listed() == [short, long]
    assert await listed(limit=1) == [short]
    dispatched_at = (await row(sql, long))["dispatched_at"]
    assert [attempt.id for attempt in await overdue.without_outcome(pool, dispatched_at, 0, 10)] == [short]
    assert abs((now - dispatched_at).total_seconds() - 116) < 60
    await apply(pool, give_back(first))
    assert await listed() == [long]
