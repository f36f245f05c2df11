"""Storing new tasks, on a real PostgreSQL."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, cast
from uuid import UUID, uuid4

import asyncpg
import pytest

from service_b.database import REFUSED_ROW
from service_b.tasks import claims, inserts
from service_b.tasks.claims import Dispatch
from service_b.tasks.inserts import NewTask
from tests.conftest import eventually
from tests.tasks import (
    A,
    B,
    C,
    accept,
    apply,
    claimed_by_id,
    finish,
    is_blocked,
    new_task,
    row,
    run_device_down,
    states,
)


async def test_a_task_is_stored_as_it_was_given(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    parameters = '{"vlan":  534, "username":"\u00e9\\u00e9", "n": 1.10, "big": 123456789012345678901234567890}'
    task = new_task(A, timeout_seconds=14, parameters=parameters)
    await inserts.insert(pool, [task], grace_seconds=75, deadline_seconds=600)
    stored = await row(sql, task.id)
    assert (stored["state"], stored["attempt"], stored["status"]) == ("due", 0, "pending")
    assert (stored["timeout_seconds"], stored["time_limit_seconds"]) == (14, 89)
    assert stored["parameters"] == parameters
    assert 590 < stored["deadline_in"] <= 600
    [dispatch] = await claims.claim(pool, 10)
    assert dispatch == Dispatch(task.id, 1, A, 14, 89, parameters)
    assert "123456789" not in repr(dispatch)
    assert "123456789" not in repr(task)


async def test_of_a_batch_the_first_of_each_device_is_due(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    ids = await accept(pool, B, A, B, A, C, B)
    assert await states(sql, ids) == ["due", "due", "waiting", "waiting", "due", "waiting"]
    assert set(await claimed_by_id(pool)) == {ids[0], ids[1], ids[4]}


async def test_a_device_is_served_in_the_order_of_acceptance(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    """Within a batch and from batch to batch, whatever the ids are."""
    new = sorted((new_task(A) for _ in range(10)), key=lambda task: task.id, reverse=True)
    await inserts.insert(pool, new[:6], grace_seconds=0, deadline_seconds=60)
    [first] = await claims.claim(pool, 10)
    await inserts.insert(pool, new[6:], grace_seconds=0, deadline_seconds=60)
    await apply(pool, finish(first))
    assert [first.id, *await run_device_down(pool)] == [task.id for task in new]


async def test_order_of_acceptance_holds_over_concurrent_connections(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    """A task stored after another one's commit comes after it, whichever connection stored it."""
    chains: list[list[UUID]] = []

    async def chain(number: int) -> None:
        mine: list[UUID] = []
        chains.append(mine)
        for _ in range(8):
            mine += await accept(pool, *random.sample([A, A, B, C], 3), A)

    await asyncio.gather(*(chain(number) for number in range(5)))
    devices = {found["id"]: found["equipment_id"] for found in await sql.fetch("SELECT id, equipment_id FROM task")}
    position = {id_: number for number, id_ in enumerate(await run_device_down(pool))}
    assert len(position) == 5 * 8 * 4
    for mine in chains:
        for device in (A, B, C):
            of_device = [position[id_] for id_ in mine if devices[id_] == device]
            assert of_device == sorted(of_device)


async def test_a_task_accepted_while_its_device_is_being_freed_becomes_due(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    [first] = await accept(pool, A)
    await claims.claim(pool, 1)
    async with other.transaction():
        await other.execute("UPDATE task SET status = 'success', code = 200, active = false, finished_at = now()")
        accepting = asyncio.create_task(accept(pool, A))
        await eventually(lambda: is_blocked(sql, accepting))
    assert await states(sql, [first, *await accepting]) == ["success", "due"]


async def test_a_device_is_not_freed_past_a_task_that_is_being_accepted(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await accept(pool, A)
    [dispatch] = await claims.claim(pool, 1)
    async with other.transaction():
        [second] = await accept(other, A)
        finishing = asyncio.create_task(apply(pool, finish(dispatch)))
        await eventually(lambda: is_blocked(sql, finishing))
    assert await finishing
    assert await states(sql, [dispatch.id, second]) == ["success", "due"]


async def test_a_task_that_expires_at_its_promotion_gives_way_to_the_next(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    ids = await accept(pool, A, A, A)
    [dispatch] = await claims.claim(pool, 1)
    async with other.transaction():
        await other.execute("UPDATE task SET status = 'error', code = 500, finished_at = now() WHERE id = $1", ids[1])
        finishing = asyncio.create_task(apply(pool, finish(dispatch)))
        await eventually(lambda: is_blocked(sql, finishing))
    assert await finishing
    assert await states(sql, ids) == ["success", "error", "due"]


def reversed_insert(pool: asyncpg.Pool, _: list[Dispatch]) -> Awaitable[object]:
    return accept(pool, C, B, A)


def reversed_apply(pool: asyncpg.Pool, dispatches: list[Dispatch]) -> Awaitable[object]:
    return apply(pool, *(finish(dispatch) for dispatch in dispatches))


def reversed_return(pool: asyncpg.Pool, dispatches: list[Dispatch]) -> Awaitable[object]:
    return claims.make_due_again(pool, [(dispatch.id, dispatch.attempt) for dispatch in dispatches])


@pytest.mark.parametrize("statement", [reversed_insert, reversed_apply, reversed_return])
async def test_rows_are_locked_in_the_order_of_the_devices(
    pool: asyncpg.Pool,
    sql: asyncpg.Connection,
    other: asyncpg.Connection,
    statement: Callable[[asyncpg.Pool, list[Dispatch]], Awaitable[object]],
) -> None:
    """Whoever waits for the first device holds none of the later ones: so there is no deadlock."""
    await accept(pool, A, B, C)
    dispatches = sorted(await claims.claim(pool, 3), key=lambda dispatch: dispatch.equipment_id, reverse=True)
    async with other.transaction():
        await other.execute("SELECT FROM task WHERE equipment_id = $1 FOR UPDATE", A)
        running = asyncio.ensure_future(statement(pool, dispatches))
        await eventually(lambda: is_blocked(sql, cast(Any, running)))
        await sql.execute("SELECT FROM task WHERE equipment_id IN ($1, $2) AND active FOR UPDATE NOWAIT", B, C)
    await running


@pytest.mark.parametrize(
    ("parameters", "serial"), [('{"a": nonsense}', A), ("{}", "short"), ("{}", "DEVICE\x00"), ("{}", "D\u00c9VICE0")]
)
async def test_a_refused_row_leaves_nothing_of_its_batch(
    pool: asyncpg.Pool, sql: asyncpg.Connection, parameters: str, serial: str
) -> None:
    batch = [new_task(B), NewTask(uuid4(), serial, 1, parameters)]
    with pytest.raises(REFUSED_ROW):
        await inserts.insert(pool, batch, grace_seconds=0, deadline_seconds=60)
    assert await sql.fetchval("SELECT count(*) FROM task") == 0


async def test_an_id_is_refused_the_second_time(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    task = new_task(A)
    for device in (A, B):
        again = NewTask(task.id, device, 1, "{}")
        if device == A:
            await inserts.insert(pool, [again], grace_seconds=0, deadline_seconds=60)
            continue
        with pytest.raises(REFUSED_ROW):
            await inserts.insert(pool, [again], grace_seconds=0, deadline_seconds=60)
    assert await sql.fetchval("SELECT array_agg(equipment_id) FROM task") == [A]
