"""Tasks with a key of their client's, on a real PostgreSQL: one key, one task."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from service_b.tasks import keys
from service_b.tasks.inserts import NewTask, Terms
from service_b.tasks.keys import KeyedTask, Known
from tests.tasks import A, B, accept, is_blocked, new_task, states

SAME, OTHER = b"\1" * 32, b"\2" * 32


def keyed(device: str, key: str, digest: bytes = SAME, **of_the_task: Any) -> KeyedTask:
    return KeyedTask(new_task(device, **of_the_task), key, digest)


async def insert(pool: asyncpg.Pool, *tasks: KeyedTask, most: int = 1000) -> list[bool]:
    """Store tasks in one batch; tell of each whether it was."""
    terms = Terms(grace_seconds=0, deadline_seconds=3600, keep_parameters="all", max_per_device=most, now=None)
    stored = await keys.insert_once(pool, tasks, **terms)
    return [each.task.id in stored for each in tasks]


async def test_a_key_makes_one_task(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    first, again, other = keyed(A, "k"), keyed(A, "k", OTHER), keyed(A, "l")
    assert await keys.find(pool, [first, other]) == [None, None]
    assert await insert(pool, first) == [True]
    assert await insert(pool, again, other) == [False, True]
    known = Known(first.task.id, SAME)
    assert await keys.find(pool, [other, again, keyed(B, "none")]) == [Known(other.task.id, SAME), known, None]
    assert await states(sql, [first.task.id, other.task.id]) == ["due", "waiting"]
    assert await sql.fetchval("SELECT count(*) FROM task") == 2
    assert "\\x01" not in repr((first, known))


async def test_of_a_key_that_comes_twice_in_a_batch_the_first_is_stored(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    batch = [keyed(A, "k"), keyed(B, "k", OTHER), keyed(B, "l"), keyed(B, "l")]
    assert await insert(pool, *batch) == [True, False, True, False]
    assert await states(sql, [batch[0].task.id, batch[2].task.id]) == ["due", "due"]
    assert await sql.fetchval("SELECT count(*) FROM task") == 2


async def test_each_token_has_keys_of_its_own(pool: asyncpg.Pool) -> None:
    batch = [keyed(A, "k"), *(keyed(A, "k", submitted_by=name) for name in ("crm", "oss"))]
    assert await insert(pool, *batch) == [True] * 3
    assert await keys.find(pool, batch) == [Known(each.task.id, SAME) for each in batch]


async def test_what_finds_no_room_leaves_no_key(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    """The same cap as without keys: see `test_inserts`."""
    first = [keyed(A, f"first {number}") for number in range(4)]
    assert await insert(pool, *first, keyed(B, "b"), most=3) == [True, True, True, False, True]
    assert await insert(pool, keyed(A, "more"), keyed(B, "c"), first[3], most=3) == [False, True, False]
    assert await keys.find(pool, [keyed(A, "more"), first[3]]) == [None, None]
    assert await sql.fetchval("SELECT count(*) FROM idempotency_key") == 5
    assert await sql.fetchval("SELECT count(*) FROM task") == 5
    assert await insert(pool, keyed(A, "more"), most=4) == [True]


async def test_there_is_no_key_without_its_task(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    """Whatever the database refuses of a batch, it refuses as a whole."""
    bad = KeyedTask(NewTask(new_task(A).id, A, 1, "no JSON"), "bad", SAME)
    with pytest.raises(asyncpg.DataError):
        await insert(pool, keyed(A, "good"), bad)
    assert await sql.fetchval("SELECT count(*) FROM idempotency_key") == 0


async def test_a_concurrent_duplicate_waits_for_the_first(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    first, ids = keyed(A, "k"), await accept(pool, B)
    async with other.transaction():
        await other.execute("INSERT INTO idempotency_key VALUES ('', 'k', $1, $2)", ids[0], SAME)
        again = asyncio.create_task(insert(pool, first))
        while not await is_blocked(sql, again):
            await asyncio.sleep(0.01)
    assert await again == [False]
    assert await keys.find(pool, [first]) == [Known(ids[0], SAME)]


async def test_50_at_once_are_one_task(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    """In batches that have their keys in any order: none of them is a deadlock."""
    batches = [[keyed(device, f"{key}") for key in order for device in (A, B)] for order in ([1, 2, 3], [3, 2, 1]) * 25]
    stored = await asyncio.gather(*(insert(pool, *batch) for batch in batches))
    assert sum(map(sum, stored)) == 3
    assert await sql.fetchval("SELECT count(*) FROM task") == 3


def of_day(days_ago: int) -> UUID:
    at = datetime.now(UTC) - timedelta(days=days_ago)
    return UUID(int=(int(at.timestamp() * 1000) << 80) + days_ago)


async def test_a_key_is_kept_a_day_longer_than_its_task(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    for days in range(6):
        await sql.execute("INSERT INTO idempotency_key VALUES ('', $1, $2, $3)", str(days), of_day(days), SAME)
    assert await keys.delete_old(pool, 2, 1) == 1
    assert await keys.delete_old(pool, 2, 9) == 1
    assert await keys.delete_old(pool, 2, 9) == 0
    assert {row["key"] for row in await sql.fetch("SELECT key FROM idempotency_key")} == {"0", "1", "2", "3"}


async def test_the_database_has_a_secret_of_its_own(pool: asyncpg.Pool) -> None:
    secret = await keys.read_hmac_key(pool)
    assert len(secret) == 32
    assert await keys.read_hmac_key(pool) == secret
