"""How a task ends: moved to the table of the finished, with what is kept of it, on a real PostgreSQL."""

import asyncio

import asyncpg
import pytest

from service_b.tasks import inserts, lookups
from tests.tasks import A, accept, apply, claimed_by_id, expire, finish, let_time_pass, new_task

PARAMETERS = '{"username":  "\\u00e9", "n": 1.10}'


async def keep(pool: asyncpg.Pool, sql: asyncpg.Connection, whose: str, code: int | None) -> asyncpg.Record:
    """Have a task end with this code, or (None) at its deadline; return its rows of both tables."""
    task = new_task(A, timeout_seconds=14, parameters=PARAMETERS)
    await inserts.insert(pool, [task], grace_seconds=1, deadline_seconds=60, keep_parameters=whose)
    if code:
        await apply(pool, finish((await claimed_by_id(pool))[task.id], code))
    else:
        await let_time_pass(sql, 61)
        assert await expire(pool, 9) == [task.id]
    [row] = await sql.fetch("SELECT * FROM finished")
    assert await sql.fetchval("SELECT count(*) FROM task") == 0
    assert row["id"] == task.id
    return row


@pytest.mark.parametrize("code", [200, 404, 500, None])
@pytest.mark.parametrize("whose", ["failed", "all", "none"])
async def test_parameters_are_kept_of_whom_it_says(
    pool: asyncpg.Pool, sql: asyncpg.Connection, whose: str, code: int | None
) -> None:
    row = await keep(pool, sql, whose, code)
    kept = whose == "all" or (whose == "failed" and code != 200)
    assert row["parameters"] == (PARAMETERS if kept else None)
    assert (row["status"], row["code"]) == ("success" if code == 200 else "error", code or 500)
    assert (row["equipment_id"], row["timeout_seconds"], row["attempt"]) == (A, 14, 1 if code else 0)
    assert row["finished_at"] > row["created_at"]


async def test_a_password_that_is_not_kept_is_in_no_table(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    task = new_task(A, parameters='{"password": "secret-of-the-device"}')
    await inserts.insert(pool, [task], grace_seconds=1, deadline_seconds=60)
    await apply(pool, finish((await claimed_by_id(pool))[task.id]))
    for table in ("task", "finished"):
        for row in await sql.fetch(f"SELECT {table}::text FROM {table}"):
            assert "secret-of-the-device" not in row[0]


async def test_at_any_moment_a_task_is_in_one_of_the_tables(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    ids = await accept(pool, *(f"DEVICE{number:03}" for number in range(200)))
    claimed = await claimed_by_id(pool, 200)
    ending = asyncio.gather(*(apply(pool, finish(dispatch)) for dispatch in claimed.values()))
    looks = 0
    while not ending.done():
        found = await lookups.look_up(sql, ids)
        assert len([status for status in found if status]) == len(ids)
        looks += 1
    await ending
    assert looks > 1
    assert [status and status.code for status in await lookups.look_up(sql, ids)] == [200] * len(ids)
