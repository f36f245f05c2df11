"""Claiming due tasks and taking a claim back, on a real PostgreSQL."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

import runtime.clock
from service_b.database import DatabaseSettings, create_pool
from service_b.tasks import claims
from service_b.tasks.lanes import Lanes
from tests.tasks import (
    A,
    B,
    C,
    accept,
    apply,
    begin,
    claimed_by_id,
    finish,
    give_back,
    row,
    rows_read,
    states,
)


async def test_the_longest_due_is_claimed_first(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    ids = [id_ for device in (B, C, A) for id_ in await accept(pool, device)]
    assert [[dispatch.id for dispatch in await claims.claim(pool, 1)] for _ in range(4)] == [[id_] for id_ in ids] + [
        []
    ]


async def test_what_is_claimed_is_dispatched(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    [id_] = await accept(pool, A)
    assert [dispatch.attempt for dispatch in await claims.claim(pool, 5)] == [1]
    claimed = await row(sql, id_)
    assert (claimed["state"], claimed["attempt"], claimed["due_at"]) == ("dispatched", 1, None)
    assert claimed["dispatched_at"] >= claimed["created_at"]


async def test_what_is_not_due_yet_or_past_its_deadline_is_not_claimed(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    ids = await accept(pool, A, B, C)
    await sql.execute("UPDATE task SET due_at = now() + interval '1 minute' WHERE id = $1", ids[0])
    await sql.execute("UPDATE task SET deadline_at = now() WHERE id = $1", ids[1])
    assert list(await claimed_by_id(pool)) == [ids[2]]
    assert await states(sql, ids) == ["due", "due", "running"]


async def test_the_databases_clock_is_not_believed_beyond_what_it_can_be(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    [id_] = await accept(pool, A)
    due_at = await sql.fetchval("SELECT due_at FROM task")
    assert await claims.claim(pool, 1, latest=due_at - timedelta(seconds=1)) == []
    assert [dispatch.id for dispatch in await claims.claim(pool, 1, latest=due_at)] == [id_]


async def test_concurrent_claims_are_disjoint(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    ids = await accept(pool, *(f"DEVICE{number}" for number in range(300)))
    batches = await asyncio.gather(
        *(claims.claim(pool, 50) for _ in range(8)), *(claims.claim(pool, 50) for _ in range(2))
    )
    claimed = [dispatch.id for dispatches in batches for dispatch in dispatches]
    claimed += [dispatch.id for dispatch in await claims.claim(pool, 300)]
    assert sorted(claimed) == sorted(ids)
    assert await sql.fetchval("SELECT max(attempt) FROM task") == 1


async def test_a_claimer_does_not_wait_for_another(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    ids = await accept(pool, A, B)
    async with other.transaction():
        await other.execute("SELECT FROM task WHERE id = $1 FOR UPDATE", ids[0])
        async with asyncio.timeout(30):
            assert list(await claimed_by_id(pool)) == [ids[1]]
    assert list(await claimed_by_id(pool)) == [ids[0]]


async def test_a_dispatch_that_was_not_sent_is_due_again_at_once(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    ids = await accept(pool, A, B, C, A)
    first = {dispatch.id: dispatch for dispatch in await claims.claim(pool, 9)}
    await begin(pool, first[ids[1]], first[ids[2]])
    await apply(pool, finish(first[ids[1]]), give_back(first[ids[2]], hold_seconds=60))
    before = await row(sql, ids[2])
    await claims.make_due_again(pool, [*((id_, 1) for id_ in ids), (uuid4(), 1), (ids[0], 2), (ids[0], 0)])
    assert await states(sql, ids) == ["due", "success", "due", "waiting"]
    assert (await row(sql, ids[2]))["due_at"] == before["due_at"], "it was due already, but later"
    assert [(dispatch.id, dispatch.attempt) for dispatch in await claims.claim(pool, 9)] == [(ids[0], 2)]
    await claims.make_due_again(pool, [(ids[0], 1)])
    assert await states(sql, ids[:1]) == ["dispatched"], "taken back for an earlier attempt"
    await claims.make_due_again(pool, [])


# --- The floor


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic time, to be set."""
    now = [1000.0]
    monkeypatch.setattr(runtime.clock, "now", lambda: now[0])
    return now


@pytest.mark.usefixtures("now")
async def test_a_claim_does_not_read_what_an_old_snapshot_keeps(
    database: DatabaseSettings, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    devices = [f"DEVICE{number:02}" for number in range(50)]
    lanes = Lanes(margin_seconds=0)
    async with (
        create_pool(database.model_copy(update={"pool_size": 1})) as pool,
        other.transaction(isolation="repeatable_read"),
    ):
        await other.fetch("SELECT FROM task")
        reads = []
        for _ in range(20):
            await accept(pool, *devices)
            before = await rows_read(pool, sql)
            dispatches = await claims.claim(pool, 100, lanes)
            reads.append(await rows_read(pool, sql) - before)
            assert len(dispatches) == len(devices)
            await begin(pool, *dispatches)
            await apply(pool, *(finish(dispatch) for dispatch in dispatches))
        assert max(reads) < 10 * len(devices)
        before = await rows_read(pool, sql)
        await claims.claim(pool, 100)
        assert await rows_read(pool, sql) - before >= 20 * len(devices), "there is nothing to be spared"


async def test_a_task_that_becomes_due_below_the_floor_is_claimed_all_the_same(
    pool: asyncpg.Pool, sql: asyncpg.Connection, now: list[float]
) -> None:
    lanes = Lanes()
    ids = await accept(pool, A, B, C)
    await sql.execute("UPDATE task SET due_at = now() + interval '1 hour' WHERE equipment_id <> $1", A)
    assert [dispatch.id for dispatch in await claims.claim(pool, 9, lanes)] == ids[:1]
    await sql.execute("UPDATE task SET due_at = now() - interval '1 second' WHERE equipment_id = $1", B)
    assert [dispatch.id for dispatch in await claims.claim(pool, 9, lanes)] == ids[1:2], "its commit came late"
    await sql.execute("UPDATE task SET due_at = now() - interval '1 hour' WHERE equipment_id = $1", C)
    now[0] += 9
    assert await claims.claim(pool, 9, lanes) == []
    now[0] += 1
    assert [dispatch.id for dispatch in await claims.claim(pool, 9, lanes)] == ids[2:]


async def test_the_floor_follows_a_clock_that_was_put_back(
    pool: asyncpg.Pool, sql: asyncpg.Connection, now: list[float]
) -> None:
    lanes = Lanes()
    await accept(pool, A)
    assert len(await claims.claim(pool, 9, lanes)) == 1
    await accept(pool, *(f"DEVICE{number:02}" for number in range(20)))
    await sql.execute("UPDATE task SET due_at = due_at - interval '1 hour'")
    assert await claims.claim(pool, 5, lanes) == []
    now[0] += 10
    assert [len(await claims.claim(pool, 5, lanes)) for _ in range(5)] == [5, 5, 5, 5, 0]
