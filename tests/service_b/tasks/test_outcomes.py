"""Writing down what came of attempts, on a real PostgreSQL."""

from dataclasses import replace
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from service_b.database import REFUSED_ROW
from service_b.tasks import claims, outcomes, sparing
from service_b.tasks.claims import Dispatch
from service_b.tasks.outcomes import Change
from tests.tasks import (
    A,
    B,
    C,
    accept,
    apply,
    claim,
    claimed_by_id,
    end_used_up,
    expire,
    finish,
    give_back,
    let_time_pass,
    row,
    states,
)


@pytest.mark.parametrize(("code", "status"), [(200, "success"), (404, "error"), (500, "error")])
async def test_a_final_outcome_ends_the_task_and_promotes_the_next(
    pool: asyncpg.Pool, sql: asyncpg.Connection, code: int, status: str
) -> None:
    ids = await accept(pool, A, A, A)
    [dispatch] = await claim(pool, 10)
    accepted = await apply(pool, replace(finish(dispatch, code), reason="why"))
    ended = await row(sql, ids[0])
    assert accepted == {(ids[0], 1): ended["created_at"]}
    assert (ended["status"], ended["code"], ended["reason"], ended["attempt"]) == (status, code, "why", 1)
    assert (ended["equipment_id"], ended["timeout_seconds"], ended["seq"]) == (A, 1, 1)
    assert ended["finished_at"] >= ended["created_at"]
    assert await states(sql, ids) == [status, "due", "waiting"]
    assert list(await claimed_by_id(pool)) == [ids[1]]


async def test_a_batch_may_hold_all_kinds_of_outcomes(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    ids = await accept(pool, A, B, C, C)
    claimed = await claimed_by_id(pool)
    accepted = await apply(
        pool,
        finish(claimed[ids[2]], 404),
        give_back(claimed[ids[0]], hold_seconds=60),
        Change(uuid4(), 1, uuid4(), 200, None),
        finish(claimed[ids[1]]),
    )
    assert set(accepted) == {(id_, 1) for id_ in ids[:3]}
    assert await states(sql, ids) == ["due", "success", "error", "due"]
    assert await apply(pool) == {}


@pytest.mark.parametrize(
    ("hold", "backoff", "due_in"),
    [
        (0, 0, 0),
        (0, 100, 100),
        (100, 0, 100),
        (100, 200, 200),
        (200, 100, 200),
        (0, 900, 600),  # Patience ends at the deadline,
        (900, 0, 900),  # but a device is never taken away from service A.
        (900, 950, 900),
    ],
)
async def test_a_retry_waits_for_the_device_and_is_polite_up_to_the_deadline(
    pool: asyncpg.Pool, sql: asyncpg.Connection, hold: float, backoff: float, due_in: float
) -> None:
    [first, second] = await accept(pool, A, A, deadline_seconds=600)
    [dispatch] = await claim(pool, 1)
    await apply(pool, give_back(dispatch, hold_seconds=hold, backoff_seconds=backoff))
    held = await row(sql, first)
    assert (held["state"], held["attempt"], held["unknowns"], held["reason"]) == ("due", 1, 0, "given back")
    assert due_in - 30 < held["due_in"] <= due_in
    assert await states(sql, [second]) == ["waiting"]


async def test_a_retry_is_claimed_when_its_time_has_come(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    [id_] = await accept(pool, A)
    [dispatch] = await claim(pool, 1)
    await apply(pool, give_back(dispatch, hold_seconds=100, backoff_seconds=50))
    await let_time_pass(sql, 60)
    assert await claim(pool, 1) == []
    await let_time_pass(sql, 41)
    assert [(dispatch.id, dispatch.attempt) for dispatch in await claim(pool, 1)] == [(id_, 2)]


async def end_unknown(pool: asyncpg.Pool, sql: asyncpg.Connection, *, answered: bool) -> Dispatch:
    """One more attempt ends without an answer, and its device is free again; did service A answer others meanwhile?"""
    [dispatch] = await claim(pool, 1)
    await apply(pool, give_back(dispatch, hold_seconds=100, unknown=True))
    if answered:
        await sparing.note(pool, answered=True, silent_ends=0)
    await let_time_pass(sql, 101)
    return dispatch


async def test_a_task_ends_when_its_attempts_have_ended_without_an_answer_while_others_were_answered(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    first, second = await accept(pool, A, A, deadline_seconds=9000)
    for attempt, unknowns in ((1, 0), (2, 1), (3, 2)):
        assert await end_used_up(pool, 10) == []
        assert (await end_unknown(pool, sql, answered=True)).attempt == attempt
        held = await row(sql, first)
        assert (held["state"], held["unknowns"], held["chances"]) == ("due", unknowns, 3 - attempt)
    assert await claim(pool, 1) == []
    assert await end_used_up(pool, 10) == [first]
    ended = await row(sql, first)
    assert (ended["status"], ended["code"], ended["reason"], ended["attempt"]) == ("error", 500, "given back", 3)
    assert await states(sql, [second]) == ["due"]


async def test_the_device_of_a_task_whose_attempts_are_used_up_is_left_alone_as_long_as_after_any(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    [id_] = await accept(pool, A, deadline_seconds=50)
    [dispatch] = await claim(pool, 1)
    await apply(pool, give_back(dispatch, hold_seconds=500, unknown=True), max_attempts=1)
    await sparing.note(pool, answered=True, silent_ends=0)
    await let_time_pass(sql, 450)
    assert await end_used_up(pool, 10) == await expire(pool, 10) == [], "service A may still be at work"
    await let_time_pass(sql, 51)
    assert await end_used_up(pool, 10) == [id_]


async def test_an_outage_uses_nothing_up(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    [id_] = await accept(pool, A, deadline_seconds=90_000)
    await sparing.note(pool, answered=True, silent_ends=0)
    for attempt in range(1, 9):
        assert (await end_unknown(pool, sql, answered=False)).attempt == attempt
        assert await end_used_up(pool, 10) == []
    assert ((await row(sql, id_))["unknowns"], (await row(sql, id_))["chances"]) == (0, 2)
    # It ends: the last end may count, but two are left.
    await sparing.note(pool, answered=True, silent_ends=0)
    [dispatch] = await claim(pool, 1)
    assert (await row(sql, id_))["unknowns"] == 1
    assert set(await apply(pool, finish(dispatch))) == {(id_, 9)}


async def test_a_retry_of_another_kind_uses_no_attempt_up(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    [id_] = await accept(pool, A)
    for _ in range(5):
        [dispatch] = await claim(pool, 1)
        await apply(pool, give_back(dispatch))
        await sparing.note(pool, answered=True, silent_ends=0)
    assert ((await row(sql, id_))["unknowns"], (await row(sql, id_))["chances"]) == (0, None)


async def test_a_task_whose_calls_are_lost_is_given_more_and_more_time_and_ends_with_the_fifth(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    first, second = await accept(pool, A, A)
    for lost in range(1, 6):
        [dispatch] = await claim(pool, 1)
        change = give_back(dispatch, backoff_seconds=100, lost=True)
        assert set(await apply(pool, change)) == {(first, lost)}
        if lost < 5:
            held = await row(sql, first)
            assert (held["state"], held["losts"], held["unknowns"]) == ("due", lost, 0)
            wait = 100 * 2 ** (lost - 1)
            assert wait - 30 < held["due_in"] <= wait
            await let_time_pass(sql, wait)
    ended = await row(sql, first)
    assert (ended["status"], ended["code"], ended["reason"]) == ("error", 500, "given back")
    assert await states(sql, [second]) == ["due"]


async def test_a_call_that_seemed_lost_may_be_answered_until_its_task_is_claimed_again(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    ids = await accept(pool, A, B)
    dispatches = {dispatch.id: dispatch for dispatch in await claim(pool, 2)}
    await apply(pool, *(give_back(dispatch, lost=True) for dispatch in dispatches.values()))
    assert await apply(pool, give_back(dispatches[ids[0]], lost=True)) == {}, "lost once"
    assert set(await apply(pool, finish(dispatches[ids[0]]))) == {(ids[0], 1)}
    assert [dispatch.id for dispatch in await claims.claim(pool, 2)] == [ids[1]]
    assert await apply(pool, finish(dispatches[ids[1]])) == {}
    assert await states(sql, ids) == ["success", "dispatched"]


async def test_an_attempt_that_nobody_has_begun_has_no_outcome_and_uses_nothing_up(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    """Messages that seemed lost, or were uncertain, and whatever somebody says came of them."""
    [id_] = await accept(pool, A)
    for attempt in range(1, 9):
        [dispatch] = await claims.claim(pool, 1)
        for change in (finish(dispatch), give_back(dispatch, unknown=True), give_back(dispatch, lost=True)):
            assert await apply(pool, change) == {}
            assert await apply(pool, replace(change, lease=None)) == {}
        await claims.make_due_again(pool, [(id_, attempt)])
        assert await apply(pool, replace(finish(dispatch), lease=None)) == {}
        await sparing.note(pool, answered=True, silent_ends=0)
    held = await row(sql, id_)
    assert (held["state"], held["unknowns"], held["losts"], held["chances"]) == ("due", 0, 0, None)
    assert await end_used_up(pool, 10) == []


async def test_an_outcome_of_another_lease_changes_nothing_in_one_batch_with_the_true_one_either(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    [id_] = await accept(pool, A)
    [dispatch] = await claim(pool, 1)
    forged = [replace(finish(dispatch), lease=lease) for lease in (uuid4(), None)]
    assert await apply(pool, *forged) == {}
    async with pool.acquire() as connection:
        changes = [forged[0], finish(dispatch, 404), forged[1]]
        applied = await outcomes.apply(connection, changes, max_attempts=3)
    assert {key: counted.code for key, counted in applied.counted.items()} == {changes[1].key: 404}
    assert (await row(sql, id_))["code"] == 404


async def test_other_retries_use_no_attempts_up(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    [id_] = await accept(pool, A)
    for attempt in range(1, 8):
        [dispatch] = await claim(pool, 1)
        assert dispatch.attempt == attempt
        await apply(pool, give_back(dispatch))
    assert (await row(sql, id_))["unknowns"] == 0
    assert await expire(pool, 10) == []


async def snapshot(sql: asyncpg.Connection) -> list[tuple[Any, ...]]:
    unfinished = await sql.fetch("SELECT task, xmin::text FROM task ORDER BY seq")
    return [tuple(found) for found in [*unfinished, *await sql.fetch("SELECT * FROM finished ORDER BY seq")]]


async def test_late_repeated_and_unheard_of_outcomes_change_nothing(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    ids = await accept(pool, A, B, C, A)
    first = await claimed_by_id(pool)
    await apply(pool, finish(first[ids[0]]), give_back(first[ids[1]]), give_back(first[ids[2]]))
    second = await claimed_by_id(pool)
    assert set(second) == {ids[1], ids[2], ids[3]}
    await apply(pool, give_back(second[ids[2]], hold_seconds=60))
    before = await snapshot(sql)
    for change in (
        finish(first[ids[0]]),  # repeated
        finish(first[ids[0]], 500),  # another one for a finished task
        give_back(first[ids[0]]),
        Change(ids[0], 2, uuid4(), 200, None),  # of an attempt that never was
        finish(first[ids[1]]),  # late: its second attempt is on its way
        give_back(first[ids[1]], unknown=True),
        finish(first[ids[2]]),  # late: its second attempt is over
        give_back(second[ids[2]], unknown=True),  # repeated: due already
        Change(ids[3], 0, None, 200, None),
        Change(uuid4(), 1, uuid4(), 200, None),
        Change(uuid4(), 1, None, None, None),
    ):
        assert await apply(pool, change) == {}
    assert await snapshot(sql) == before


async def test_a_final_answer_counts_though_its_task_is_due_again(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    """What it was given up for came after all."""
    [first, second] = await accept(pool, A, A)
    [dispatch] = await claim(pool, 1)
    await apply(pool, give_back(dispatch, hold_seconds=60))
    assert set(await apply(pool, finish(dispatch))) == {(first, 1)}
    assert await states(sql, [first, second]) == ["success", "due"]


async def test_of_two_attempts_in_one_batch_the_newest_counts(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    [id_] = await accept(pool, A)
    [first] = await claim(pool, 1)
    await apply(pool, give_back(first))
    [second] = await claim(pool, 1)
    assert set(await apply(pool, finish(first, 500), finish(second))) == {(id_, 2)}
    assert (await row(sql, id_))["code"] == 200


@pytest.mark.parametrize(
    "change",
    [
        {"reason": "a NUL \x00"},
        {"code": 201},
        {"code": 99999},
        {"attempt": 2**40},
    ],
)
async def test_a_refused_outcome_changes_nothing(
    pool: asyncpg.Pool, sql: asyncpg.Connection, change: dict[str, Any]
) -> None:
    ids = await accept(pool, A, B)
    claimed = await claimed_by_id(pool)
    bad = replace(finish(claimed[ids[0]]), **change)
    with pytest.raises(REFUSED_ROW):
        await apply(pool, finish(claimed[ids[1]]), bad)
    assert await states(sql, ids) == ["running", "running"]
