"""Storing new tasks, on a real PostgreSQL."""

import asyncio
import random
from uuid import UUID, uuid4

import asyncpg
import pytest

from service_b.database import REFUSED_ROW
from service_b.tasks import inserts
from service_b.tasks.claims import Dispatch
from service_b.tasks.inserts import NewTask
from tests.tasks import (
    A,
    B,
    C,
    accept,
    apply,
    claim,
    claimed_by_id,
    finish,
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
    assert (stored["state"], stored["attempt"]) == ("due", 0)
    assert (stored["timeout_seconds"], stored["time_limit_seconds"]) == (14, 89)
    assert stored["parameters"] == parameters
    assert 590 < stored["deadline_in"] <= 600
    [dispatch] = await claim(pool, 10)
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
    [first] = await claim(pool, 10)
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


# --- How many a device may have


async def store(pool: asyncpg.Pool, most: int, *devices: str) -> list[bool]:
    """Store a task for each device, at most so many for each; tell of each whether it was refused."""
    new = [new_task(device) for device in devices]
    refused = await inserts.insert(pool, new, grace_seconds=0, deadline_seconds=3600, max_per_device=most)
    return [task.id in refused for task in new]


@pytest.mark.parametrize("most", [1, 2, 3, 5])
async def test_a_device_has_no_more_than_so_many_unfinished_tasks(
    pool: asyncpg.Pool, sql: asyncpg.Connection, most: int
) -> None:
    """Within a batch and from batch to batch, the first that come; whoever has room is not kept from it."""
    assert await store(pool, most, A, B, A, A, A, A) == [False, False, *(number > most for number in (2, 3, 4, 5))]
    assert await store(pool, most, A, B, C, A) == [True, most < 2, False, True]
    count = "SELECT count(*) FROM task WHERE equipment_id = $1"
    assert [await sql.fetchval(count, device) for device in (A, B, C)] == [min(most, 5), min(most, 2), 1]
    # What has ended makes room.
    [first, *_] = [dispatch for dispatch in await claim(pool, 9) if dispatch.equipment_id == A]
    await apply(pool, finish(first))
    assert await store(pool, most, A, A) == [False, True]


async def test_the_first_task_of_a_full_device_is_unharmed(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    [first] = await accept(pool, A)
    refused = [await store(pool, 20, *[A] * 30) for _ in range(5)]
    assert refused == [[False] * 19 + [True] * 11, *[[True] * 30] * 4]
    assert await states(sql, [first]) == ["due"]
    assert len(await run_device_down(pool)) == 20


async def test_a_device_gets_a_batch_more_at_most_by_those_that_store_at_once(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    await asyncio.gather(*(store(pool, 10, *[A] * 10) for _ in range(5)))
    assert 10 <= await sql.fetchval("SELECT count(*) FROM task") <= 10 + 4 * 10
    assert await store(pool, 10, A) == [True]
