"""What came by the thousand does not hold up a single task, nor do single ones hold up the thousands for ever."""

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta

import asyncpg
import pytest

from service_b.database import DatabaseSettings, create_pool
from service_b.tasks import claims, turns
from service_b.tasks.claims import Dispatch
from service_b.tasks.inserts import Wishes
from service_b.tasks.lanes import Lanes
from tests.tasks import A, accept, apply, begin, finish, give_back, rows_read

Claim = Callable[..., Awaitable[list[Dispatch]]]
EITHER = pytest.mark.parametrize("claim", [claims.claim, turns.claim_in_turn])


async def store(pool: asyncpg.Pool, *, single: int = 0, bulk: int = 0, by: str | None = None) -> None:
    """So many tasks of each kind, the bulk first."""
    for prefix, wishes, number in (("BULK", Wishes(bulk=True), bulk), ("SINGLE", None, single)):
        devices = [f"{prefix}{by or ''}{each:06}" for each in range(number)]
        for start in range(0, number, 1000):
            await accept(pool, *devices[start : start + 1000], submitted_by=by, wishes=wishes)


def kinds(dispatches: list[Dispatch]) -> dict[str, int]:
    return dict(Counter("bulk" if dispatch.equipment_id.startswith("BULK") else "single" for dispatch in dispatches))


@EITHER
async def test_a_single_task_overtakes_the_bulk_and_is_published_first(claim: Claim, pool: asyncpg.Pool) -> None:
    await store(pool, bulk=100, single=1)
    claimed = await claim(pool, 32, Lanes())
    assert kinds(claimed) == {"bulk": 31, "single": 1}
    assert kinds(claimed[:1]) == {"single": 1}
    assert [dispatch.equipment_id for dispatch in claimed[1:]] == sorted(each.equipment_id for each in claimed[1:])


@EITHER
async def test_single_ones_leave_an_eighth(claim: Claim, pool: asyncpg.Pool) -> None:
    await store(pool, bulk=10, single=100)
    lanes = Lanes()
    claimed = [kinds(await claim(pool, 32, lanes)) for _ in range(4)]
    assert claimed == [{"single": 28, "bulk": 4}, {"single": 28, "bulk": 4}, {"single": 30, "bulk": 2}, {"single": 14}]


@EITHER
async def test_claims_for_one_leave_every_eighth(claim: Claim, pool: asyncpg.Pool) -> None:
    await store(pool, bulk=10, single=100)
    lanes = Lanes()
    claimed = [kinds(await claim(pool, 1, lanes)) for _ in range(16)]
    assert claimed == [*[{"single": 1}] * 7, {"bulk": 1}] * 2


@EITHER
async def test_what_an_eighth_cannot_be_claimed_of_leaves_nothing_free(
    claim: Claim, pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    """Not yet due, past its deadline."""
    await store(pool, bulk=40, single=40)
    await sql.execute("UPDATE task SET due_at = now() + interval '1 hour' WHERE bulk AND equipment_id <= 'BULK000020'")
    await sql.execute("UPDATE task SET deadline_at = now() WHERE bulk AND equipment_id > 'BULK000020'")
    assert kinds(await claim(pool, 32, Lanes())) == {"single": 32}


@EITHER
async def test_each_lane_has_a_floor_of_its_own(claim: Claim, pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    """A backlog of the bulk that is hours old is not below the floor of the single ones, and the other way round."""
    for old, new in (("bulk", "single"), ("single", "bulk")):
        lanes = Lanes(margin_seconds=0)
        for _ in range(3):
            await store(pool, bulk=10, single=10)
            await sql.execute("UPDATE task SET due_at = due_at - interval '1 hour' WHERE bulk = $1", old == "bulk")
            claimed = await claim(pool, 16, lanes)
            claimed += await claim(pool, 16, lanes)
            assert kinds(claimed) == {old: 10, new: 10}
            await begin(pool, *claimed)
            await apply(pool, *(finish(dispatch) for dispatch in claimed))


async def test_a_lane_of_which_nothing_was_left_behind_is_read_from_its_floor_on(
    database: DatabaseSettings, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    """Though the bulk fills every claim, and an old snapshot keeps what was claimed."""
    lanes = Lanes(margin_seconds=0)
    async with (
        create_pool(database.model_copy(update={"pool_size": 1})) as pool,
        other.transaction(isolation="repeatable_read"),
    ):
        await other.fetch("SELECT FROM task")
        await store(pool, bulk=500)
        reads = []
        for _ in range(20):
            await store(pool, single=50)
            before = await rows_read(pool, sql)
            claimed = await turns.claim_in_turn(pool, 60, lanes)
            reads.append(await rows_read(pool, sql) - before)
            assert kinds(claimed) == {"single": 50, "bulk": 10}
            await begin(pool, *claimed)
            await apply(pool, *(finish(dispatch) for dispatch in claimed))
        assert max(reads[1:]) < 20 * 60


async def test_within_a_lane_clients_take_turns(pool: asyncpg.Pool) -> None:
    await store(pool, bulk=100, single=100, by="A")
    await store(pool, bulk=10, single=10, by="B")
    claimed = await turns.claim_in_turn(pool, 48, Lanes())
    counts = Counter(dispatch.equipment_id.rstrip("0123456789") for dispatch in claimed)
    # A share for each, and one for whatever has waited longest.
    assert counts == {"SINGLEA": 14 + 18, "SINGLEB": 10, "BULKA": 2 + 2, "BULKB": 2}


@EITHER
async def test_one_among_thousands_is_found_without_reading_them(
    claim: Claim, database: DatabaseSettings, sql: asyncpg.Connection
) -> None:
    async with create_pool(database.model_copy(update={"pool_size": 1})) as pool:
        await claim(pool, 1, Lanes())
        await store(pool, bulk=5000, by="A")
        for _ in range(7):  # From the sixth on PostgreSQL may choose a generic plan.
            await store(pool, single=1, by="A")
            before = await rows_read(pool, sql)
            claimed = await claim(pool, 2, Lanes())
            assert await rows_read(pool, sql) - before < 100
            assert kinds(claimed) == {"single": 1, "bulk": 1}
            await begin(pool, *claimed)
            await apply(pool, *(finish(dispatch) for dispatch in claimed))


async def test_a_task_keeps_its_lane(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    """Behind another of its device, and for its next attempt."""
    await accept(pool, A, A, wishes=Wishes(bulk=True))
    for _ in range(2):
        await store(pool, single=1)
        claimed = await claims.claim(pool, 9)
        assert [dispatch.equipment_id for dispatch in claimed] == ["SINGLE000000", A]
        await begin(pool, *claimed)
        await apply(pool, finish(claimed[0]), give_back(claimed[1]))
        again = await claims.claim(pool, 9)
        assert [dispatch.equipment_id for dispatch in again] == [A]
        await begin(pool, *again)
        await apply(pool, finish(again[0]))
    assert await sql.fetchval("SELECT count(*) FROM task") == 0
    assert await sql.fetchval("SELECT max(finished_at - created_at) FROM finished") < timedelta(minutes=1)
