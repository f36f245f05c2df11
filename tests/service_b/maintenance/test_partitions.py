"""The finished tasks' partitions, on a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
from structlog.testing import capture_logs

from service_b.maintenance import partitions as partitions_care
from service_b.maintenance.partitions import PERIOD_SECONDS
from service_b.tasks import inserts, lookups, partitions
from service_b.tasks.inserts import NewTask
from service_b.tasks.lookups import Status
from tests.conftest import eventually
from tests.tasks import A, accept, apply, claimed_by_id, finish, is_blocked, states

EXIST = """
    SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'finished'::regclass ORDER BY relname
"""


def day(ago: int) -> str:
    """The partition of so many days ago."""
    return f"finished_{datetime.now(UTC) - timedelta(days=ago):%Y%m%d}"


def id_of(ago: int) -> UUID:
    """An id as one given so many days ago."""
    moment = datetime.now(UTC) - timedelta(days=ago)
    return UUID(int=int(moment.timestamp() * 1000) << 80 | uuid4().int & (1 << 80) - 1)


async def existing(sql: asyncpg.Connection) -> list[str]:
    """All partitions but the default one, by day."""
    names = [row["relname"] for row in await sql.fetch(EXIST)]
    assert "finished_default" in names
    return [name for name in names if name != "finished_default"]


async def make(sql: asyncpg.Connection, *ago: int) -> None:
    """Make the partitions of days that are over."""
    for days in ago:
        await sql.execute("SELECT finished_make_partition((now() AT TIME ZONE 'UTC')::date - $1::integer)", days)


async def finish_at_once(pool: asyncpg.Pool, *ids: UUID) -> None:
    """Have tasks of these ids accepted, and configured."""
    new = [NewTask(id_, f"DEVICE{number:04}", 1, "{}") for number, id_ in enumerate(ids)]
    await inserts.insert(pool, new, grace_seconds=0, deadline_seconds=3600)
    await apply(pool, *(finish(dispatch) for dispatch in (await claimed_by_id(pool)).values()))
    assert await states(pool, ids) == ["success"] * len(ids)  # type: ignore[arg-type]


async def stored_in(sql: asyncpg.Connection, id_: UUID) -> str | None:
    name: str | None = await sql.fetchval("SELECT tableoid::regclass::text FROM finished WHERE id = $1", id_)
    return name


async def tend(pool: asyncpg.Pool, retention_days: int = 90) -> bool:
    """Whether everything could be done."""
    return await partitions_care.tend(pool, retention_days) == PERIOD_SECONDS


async def test_a_week_is_made_ahead_and_what_is_older_than_kept_is_dropped(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    ahead = [day(-days) for days in range(8)]
    assert await existing(sql) == ahead
    for name in (ahead[0], ahead[3], ahead[7]):
        await sql.execute(f"DROP TABLE {name}")
    await make(sql, 89, 90, 91, 92, 400)
    ids = [id_of(89), id_of(91)]
    await finish_at_once(pool, *ids)
    with capture_logs() as logs:
        assert await tend(pool), logs
    assert await existing(sql) == [day(90), day(89), *ahead]
    assert [entry["partition"] for entry in logs] == [ahead[0], ahead[3], ahead[7], day(400), day(92), day(91)]
    assert await lookups.look_up(pool, ids) == [Status("DEVICE0000", 200), None]


async def test_ids_of_no_partition_lose_nothing_and_move_into_theirs(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    today, random, early = id_of(0), uuid4(), UUID(int=1)
    await sql.execute(f"DROP TABLE {day(0)}")
    await finish_at_once(pool, today, random, early)
    assert [await stored_in(sql, id_) for id_ in (today, random, early)] == ["finished_default"] * 3
    assert await tend(pool)
    assert [await stored_in(sql, id_) for id_ in (today, random, early)] == [day(0), *["finished_default"] * 2]
    found = await lookups.look_up(pool, [today, random, early])
    assert [status and status.code for status in found] == [200] * 3


async def test_strays_are_deleted_when_they_ended_long_ago(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    ids = [uuid4() for _ in range(5)]
    await finish_at_once(pool, *ids)
    for id_, days in zip(ids, (0, 6, 7, 9, 400), strict=True):
        await sql.execute(
            "UPDATE finished SET finished_at = now() - make_interval(days => $2) WHERE id = $1", id_, days
        )
    assert await partitions.delete_strays(pool, 7, 1) == 1
    assert await tend(pool, 7)
    assert [await stored_in(sql, id_) is not None for id_ in ids] == [True, True, True, False, False]


async def test_a_clock_that_is_far_ahead_drops_nothing(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    await make(sql, 3)
    before = await existing(sql)
    stray = uuid4()
    await finish_at_once(pool, stray)
    ahead, behind = (datetime.now(UTC) + timedelta(days=days) for days in (400, -400))
    for callers_now in (ahead, behind):
        assert await sql.fetchval("SELECT finished_drop_oldest($1, $2)", 7, callers_now) is None
        assert await sql.fetchval("SELECT finished_delete_strays($1, $2, 9)", 7, callers_now) == 0
    assert await sql.fetchval("SELECT finished_drop_oldest($1, $2)", 7, None) is None
    assert await existing(sql) == before


@asynccontextmanager
async def somebody_reading(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A dump, or a forgotten transaction, that has looked at all of it."""
    reader = await asyncpg.connect(database_url)
    transaction = reader.transaction(isolation="repeatable_read", readonly=True)
    await transaction.start()
    await reader.fetch("SELECT FROM finished")
    yield reader
    await transaction.rollback()
    await reader.close()


@pytest.mark.parametrize("what", ["make", "drop"])
async def test_nobody_waits_behind_a_reader_and_it_is_tried_again_until_the_reader_is_gone(
    pool: asyncpg.Pool, sql: asyncpg.Connection, database_url: str, what: str
) -> None:
    await make(sql, 9)
    if what == "make":
        await sql.execute(f"DROP TABLE {day(-7)}")
    before = await existing(sql)
    days = 7 if what == "drop" else 90
    async with somebody_reading(database_url) as reader, asyncio.timeout(60):
        with capture_logs() as logs:
            for _ in range(3):
                await finish_at_once(pool, uuid4())
                assert not await tend(pool, days)
        assert {entry["event"] for entry in logs} == {"partitions.in_use"}
        assert await existing(sql) == before
        assert await reader.fetchval("SELECT count(*) FROM finished") == 0, "it sees what it saw"
    assert await tend(pool, days)
    names = await existing(sql)
    assert day(-7) in names if what == "make" else day(9) not in names


async def test_an_outcome_that_comes_while_its_partition_is_made_goes_into_that(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    """As when no process led for a week. It would be refused had it chosen the default partition before."""
    await sql.execute(f"DROP TABLE {day(0)}")
    [id_] = await accept(pool, A)
    [dispatch] = (await claimed_by_id(pool)).values()
    async with sql.transaction():
        assert await partitions.make_next(sql) == day(0)
        ending = asyncio.create_task(apply(pool, finish(dispatch)))
        await eventually(lambda: is_blocked(sql, ending))
    assert list(await ending) == [(id_, 1)]
    assert await stored_in(sql, id_) == day(0)
