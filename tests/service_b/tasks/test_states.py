"""The theory of operation: which transition there is from which state, on a real PostgreSQL."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from service_b.tasks import cancels, claims, leases, overdue, starts
from service_b.tasks.claims import Dispatch
from service_b.tasks.states import DISPATCHED, DUE, NOT_BEGUN, RUNNING, SCHEDULED, WAITING
from tests.tasks import (
    apply,
    expire,
    finish,
    give_back,
    internal_time,
    let_time_pass,
    one_of_each,
    promote_stranded,
    states,
)

STATES = ["scheduled", "waiting", "due", "dispatched", "running", "success", "error"]


async def test_each_condition_holds_for_the_states_that_it_names(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    named = {dispatch.id: state for state, dispatch in (await one_of_each(pool)).items()}
    assert await states(sql, list(named)) == list(named.values()) == STATES
    for condition, expected in {
        SCHEDULED: {"scheduled"},
        WAITING: {"waiting"},
        DUE: {"due"},
        DISPATCHED: {"dispatched"},
        RUNNING: {"running"},
        NOT_BEGUN: {"scheduled", "waiting", "due", "dispatched"},
        "active": {"due", "dispatched", "running"},
    }.items():
        assert {named[row["id"]] for row in await sql.fetch(f"SELECT id FROM task WHERE {condition}")} == expected


async def claim(pool: asyncpg.Pool, _: Dispatch) -> object:
    return await claims.claim(pool, 9)


async def take_back(pool: asyncpg.Pool, dispatch: Dispatch) -> object:
    return await claims.make_due_again(pool, [(dispatch.id, dispatch.attempt)])


async def begin(pool: asyncpg.Pool, dispatch: Dispatch) -> object:
    return await leases.grant(pool, [(dispatch.id, dispatch.attempt, uuid4())])


async def end(pool: asyncpg.Pool, dispatch: Dispatch) -> object:
    return await apply(pool, finish(dispatch))


async def end_an_earlier_attempt(pool: asyncpg.Pool, dispatch: Dispatch) -> object:
    return await apply(pool, finish(Dispatch(dispatch.id, dispatch.attempt + 7, "", 1, 1, "")))


async def try_again(pool: asyncpg.Pool, dispatch: Dispatch) -> object:
    return await apply(pool, give_back(dispatch))


async def meet_the_deadline(pool: asyncpg.Pool, _: Dispatch) -> object:
    async with pool.acquire() as connection:
        await let_time_pass(connection, 5000)  # type: ignore[arg-type]
    return await expire(pool, 9)


async def wait_for_its_call(pool: asyncpg.Pool, _: Dispatch) -> object:
    return await overdue.repeat_dispatches(pool, await internal_time(pool) + timedelta(hours=1), 9)


async def cancel_it(pool: asyncpg.Pool, dispatch: Dispatch) -> object:
    async with pool.acquire() as connection:
        return await cancels.cancel(connection, [(dispatch.id, None)])


async def start(pool: asyncpg.Pool, _: Dispatch) -> object:
    await pool.execute("UPDATE task SET start_at = now() WHERE start_at IS NOT NULL")
    return await starts.start(pool, await internal_time(pool), 9)


async def take_lost(pool: asyncpg.Pool, _: Dispatch) -> object:
    return await overdue.take_lost(pool, await internal_time(pool) + timedelta(hours=1), 9)


async def look_for_stranded(pool: asyncpg.Pool, _: Dispatch) -> object:
    return await promote_stranded(pool, "", 9)


TRANSITIONS: dict[Callable[[asyncpg.Pool, Dispatch], Awaitable[Any]], dict[str, str]] = {
    claim: {"due": "dispatched"},
    take_back: {"dispatched": "due"},
    begin: {"dispatched": "running"},
    end: {"running": "success", "due": "success"},
    end_an_earlier_attempt: {},
    try_again: {"running": "due"},
    meet_the_deadline: {"waiting": "error", "due": "error", "dispatched": "error"},
    wait_for_its_call: {"dispatched": "due"},
    # What has had a lease ends later.
    cancel_it: {"scheduled": "error", "waiting": "error", "dispatched": "error"},
    start: {"scheduled": "due"},
    take_lost: {},
    look_for_stranded: {},
}


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("state", STATES)
async def test_there_are_these_transitions_and_no_others(
    pool: asyncpg.Pool, sql: asyncpg.Connection, state: str, transition: Callable[[Any, Any], Awaitable[Any]]
) -> None:
    dispatch = (await one_of_each(pool))[state]
    await transition(pool, dispatch)
    assert await states(sql, [dispatch.id]) == [TRANSITIONS[transition].get(state, state)]
