"""Looking tasks up, on a real PostgreSQL."""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from service_b.database import DatabaseSettings, connect
from service_b.tasks import lookups
from service_b.tasks.lookups import Status
from tests.tasks import A, B, C, accept, apply, claimed_by_id, end_by_hand, finish, one_of_each

FINISHED_DAYS_AGO = """
    INSERT INTO finished (id, seq, created_at, finished_at, timeout_seconds, attempt, code, status, equipment_id)
    SELECT finished_first_id((now() AT TIME ZONE 'UTC')::date - $1::integer), 1, now(), now(), 1, 1, 200, 'success', $2
    RETURNING id
"""


async def test_statuses_come_in_the_order_asked_for(pool: asyncpg.Pool) -> None:
    ids = await accept(pool, A, B, C)
    claimed = await claimed_by_id(pool)
    await apply(pool, finish(claimed[ids[0]]), finish(claimed[ids[1]], 404))
    asked = [ids[2], uuid4(), ids[1], ids[0], ids[1]]
    assert await lookups.look_up(pool, asked) == [Status(C, None), None, Status(B, 404), Status(A, 200), Status(B, 404)]


async def test_tasks_of_every_state_are_found(pool: asyncpg.Pool) -> None:
    tasks = await one_of_each(pool)
    found = await lookups.look_up(pool, [dispatch.id for dispatch in tasks.values()])
    codes = [status and status.code for status in found]
    assert codes == [{"success": 200, "error": 404}.get(state) for state in tasks]
    assert None not in found


@pytest.fixture
async def finished_days_ago(sql: asyncpg.Connection) -> AsyncIterator[list[UUID]]:
    """Tasks that were accepted so many days ago, each in its day's partition."""
    ids = []
    for days in (1, 2, 4, 40):
        await sql.execute("SELECT finished_make_partition((now() AT TIME ZONE 'UTC')::date - $1::integer)", days)
        ids.append(await sql.fetchval(FINISHED_DAYS_AGO, days, A))
    yield ids
    while await sql.fetchval("SELECT finished_drop_oldest(0, now())"):
        pass


async def test_tasks_of_many_days_are_found_together(pool: asyncpg.Pool, finished_days_ago: list[UUID]) -> None:
    ids = finished_days_ago
    found = [Status(A, 200)] * len(ids)
    assert await lookups.look_up(pool, ids) == found
    assert await lookups.look_up(pool, [*ids, uuid4(), ids[0]]) == [*found, None, found[0]]
    assert await lookups.look_up(pool, ids[:2]) == found[:2]


async def test_a_look_up_opens_the_partitions_of_its_days_alone(database: DatabaseSettings) -> None:
    """When it begins: the plan is of before the ids are known."""
    connection = await connect(database)
    await connection.execute(f"PREPARE finished AS {lookups.FINISHED}")
    id_ = uuid7()
    lines = await connection.fetch(f"EXPLAIN (COSTS OFF) EXECUTE finished('{{{id_}}}', '{id_}', '{id_}')")
    await connection.close()
    plan = [line[0] for line in lines]
    assert len([line for line in plan if " on finished_" in line]) == 1
    assert any("Subplans Removed" in line for line in plan)


async def test_a_task_carries_whose_it_is_to_its_end(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    """The first of a device and those that wait, unfinished and finished."""
    ids = [*await accept(pool, A, A, submitted_by="oss"), *await accept(pool, B)]
    for code in (None, 200):
        if code:
            await end_by_hand(sql, "true", code=code)
        looked_up = await lookups.look_up(pool, ids)
        assert looked_up == [Status(A, code, "oss"), Status(A, code, "oss"), Status(B, code, None)]
