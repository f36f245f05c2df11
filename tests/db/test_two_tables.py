"""The migration that moves what has ended to a table of its own, and what a service's role needs after it."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from pydantic import SecretStr
from yarl import URL

from service_b.database import DatabaseSettings, create_pool
from service_b.maintenance.partitions import PERIOD_SECONDS, tend
from service_b.tasks import partitions
from tests.system.migrate import Roles, dbmate
from tests.system.spawning import ROOT

[BEFORE, TWO_TABLES] = (
    next((ROOT / "db" / "migrations").glob(f"*_{name}.sql")).read_text().split("-- migrate:down")
    for name in ("create_task", "two_tables")
)
UP, DOWN = TWO_TABLES

NOW = datetime.now(UTC)


def accepted(ago: timedelta, **more: Any) -> dict[str, Any]:
    """A row as the web process made it so long ago, and as nothing else was written in it yet."""
    at = NOW - ago
    return {
        "id": str(UUID(int=int(at.timestamp() * 1000) << 80 | uuid4().int & (1 << 80) - 1)),
        "equipment_id": f"DEVICE{uuid4().hex[:8]}",
        "timeout_seconds": 14,
        "parameters": '{"username":  "\\u00e9", "n": 1.10}',
        "time_limit_seconds": 89,
        "deadline_at": (at + timedelta(days=1)).isoformat(),
        "created_at": at.isoformat(),
        "active": True,
    } | more


def ended(ago: timedelta, code: int, **more: Any) -> dict[str, Any]:
    """One that service A was asked for once, and that has ended a minute later."""
    at = NOW - ago
    told: dict[str, Any] = {
        "active": False,
        "status": "success" if code == 200 else "error",
        "code": code,
        "reason": f"{code} of A's",
        "attempt": 1,
        "dispatched_at": at.isoformat(),
        "finished_at": (at + timedelta(minutes=1)).isoformat(),
    }
    return accepted(ago) | told | more


MOMENT, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
AT = NOW.isoformat()
UNFINISHED = {
    "waiting": accepted(HOUR, active=False),
    "due": accepted(MOMENT, due_at=AT),
    "due again": accepted(30 * DAY, due_at=AT, attempt=3, unknowns=2, dispatched_at=AT, reason="A is away"),
    "dispatched": accepted(DAY, attempt=2, dispatched_at=AT),
}
FINISHED = {
    "success": ended(MOMENT, 200),
    "a month old": ended(30 * DAY, 404),
    "a year old": ended(365 * DAY, 500),
    "expired while waiting": ended(DAY, 500, attempt=0, dispatched_at=None, reason="deadline passed"),
    "without a reason": ended(DAY, 200, reason=None),
    "of a random id": ended(DAY, 200, id=str(uuid4())),
    "of an id from the future": ended(DAY, 404, id=accepted(-400 * DAY)["id"]),
}
KEPT = (
    "id, seq, equipment_id, timeout_seconds, parameters::text, attempt, status, code, reason, created_at, finished_at"
)


@pytest.fixture
def former_url(postgres_url: str) -> Iterator[str]:
    """A database of the test's own, without tables."""
    url = str(URL(postgres_url).with_path(f"/former_{uuid4().hex}"))
    dbmate(url, "create")
    yield url
    dbmate(url, "drop")


@pytest.fixture
async def former(former_url: str) -> AsyncIterator[asyncpg.Connection]:
    """The tables of the former version, with a task in every state."""
    connection = await asyncpg.connect(former_url)
    await connection.execute(BEFORE[0])
    for row in (FINISHED | UNFINISHED).values():
        await connection.execute(
            f"INSERT INTO task ({', '.join(row)}) SELECT {', '.join(row)} FROM json_populate_record(NULL::task, $1)",
            json.dumps(row),
        )
    yield connection
    await connection.close()


async def table(connection: asyncpg.Connection, query: str) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(query)]


async def test_tasks_in_every_state_are_carried_up_and_down(former: asyncpg.Connection) -> None:
    unfinished_before = "SELECT * FROM task WHERE status = 'pending' ORDER BY seq"
    finished_before = f"SELECT {KEPT} FROM task WHERE status <> 'pending' ORDER BY seq"
    unfinished, finished = await table(former, unfinished_before), await table(former, finished_before)
    assert (len(unfinished), len(finished)) == (len(UNFINISHED), len(FINISHED))
    await former.execute(UP)
    gone = {"status", "code", "finished_at"}
    assert await table(former, "SELECT * FROM task ORDER BY seq") == [
        {name: value for name, value in row.items() if name not in gone} | {"keep_parameters": "failed"}
        for row in unfinished
    ]
    assert await table(former, f"SELECT {KEPT} FROM finished ORDER BY seq") == finished
    await former.execute(DOWN)
    assert await table(former, unfinished_before) == unfinished
    assert await table(former, finished_before) == finished
    new = accepted(MOMENT, due_at=AT)
    await former.execute(
        f"INSERT INTO task ({', '.join(new)}) SELECT {', '.join(new)} FROM json_populate_record(NULL::task, $1)",
        json.dumps(new),
    )
    assert await former.fetchval("SELECT max(seq) FROM task") == len(UNFINISHED | FINISHED) + 1


async def test_each_lies_in_its_days_partition_and_the_former_table_has_no_hole(former: asyncpg.Connection) -> None:
    await former.execute(UP)
    rows = await former.fetch("SELECT id, tableoid::regclass::text AS partition, created_at FROM finished")
    names = {name: row["id"] for name, row in FINISHED.items()}
    for row in rows:
        has_day = str(row["id"]) not in (names["of a random id"], names["of an id from the future"])
        assert row["partition"] == (f"finished_{row['created_at']:%Y%m%d}" if has_day else "finished_default")
    assert len(rows) == len(FINISHED)
    # The first rows of the first page, where those were that have been moved.
    assert await former.fetchval("SELECT max(ctid) FROM task") == (0, len(UNFINISHED))


async def test_without_parameters_a_task_is_carried_down_all_the_same(former: asyncpg.Connection) -> None:
    await former.execute(UP)
    await former.execute("UPDATE finished SET parameters = NULL")
    await former.execute(DOWN)
    rows = await table(former, "SELECT parameters FROM task WHERE status <> 'pending'")
    assert rows == [{"parameters": "null"}] * len(FINISHED)


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_migration_that_cannot_have_its_lock_gives_up_and_changes_nothing(
    former: asyncpg.Connection, former_url: str, way: str
) -> None:
    if way == "down":
        await former.execute(UP)
    migration = UP if way == "up" else DOWN
    assert migration.count("lock_timeout = '10s'") == 1
    reader = await asyncpg.connect(former_url)
    async with reader.transaction():
        before = await table(reader, "SELECT * FROM task")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await former.execute(migration.replace("lock_timeout = '10s'", "lock_timeout = '50ms'"))
        assert await table(reader, "SELECT * FROM task") == before
    await reader.close()
    await former.execute(migration)


@asynccontextmanager
async def pool_of(url: str) -> AsyncIterator[asyncpg.Pool]:
    async with create_pool(DatabaseSettings(database_url=SecretStr(url), pool_size=1)) as pool:
        yield pool


async def test_a_role_that_owns_nothing_looks_after_the_partitions_if_it_may(
    service_url: str, sql: asyncpg.Connection
) -> None:
    newest = f"finished_{NOW + timedelta(days=7):%Y%m%d}"
    await sql.execute(f"DROP TABLE {newest}")
    await sql.execute("SELECT finished_make_partition((now() AT TIME ZONE 'UTC')::date - 99)")
    async with pool_of(service_url) as pool:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(f"DROP TABLE finished_{NOW:%Y%m%d}")
        # What it calls its own must not be taken for ours.
        await pool.execute("CREATE TEMPORARY TABLE finished (LIKE finished)")
        assert await tend(pool, 90) == PERIOD_SECONDS
    assert await sql.fetchval("SELECT to_regclass($1)", newest) == newest
    assert await sql.fetchval("SELECT to_regclass($1)", f"finished_{NOW - timedelta(days=99):%Y%m%d}") is None


async def test_who_was_not_told_so_may_not_drop_anything(
    service_url: str, sql: asyncpg.Connection, roles: Roles
) -> None:
    functions = "finished_make_next, finished_drop_oldest, finished_delete_strays"
    await sql.execute(f'REVOKE EXECUTE ON FUNCTION {functions} FROM "{roles.service}"')
    async with pool_of(service_url) as pool:
        for question in (
            partitions.make_next(pool),
            partitions.drop_oldest(pool, 1),
            partitions.delete_strays(pool, 1, 1),
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await question
