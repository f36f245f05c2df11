"""Two deployments in two schemas of one database, on a real PostgreSQL."""

from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest
from pydantic import SecretStr
from yarl import URL

from service_b.database import DatabaseSettings, connect
from service_b.tasks import deployment
from tests.tasks import A, accept, apply, claim, finish, lead


@pytest.fixture
async def mine(database: DatabaseSettings) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(database)
    yield connection
    await connection.close()


@pytest.fixture
async def theirs(database_url: str, sql: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    await sql.execute("CREATE SCHEMA customer; CREATE SEQUENCE customer.task_begun")
    for table in ("task", "finished", "service_a", "task_clock", "maintenance"):
        await sql.execute(f"CREATE TABLE customer.{table} (LIKE {table} INCLUDING ALL)")
    for table in ("service_a", "task_clock", "maintenance"):
        await sql.execute(f"INSERT INTO customer.{table} DEFAULT VALUES")
    url = URL(database_url).update_query(search_path="customer")
    connection = await connect(DatabaseSettings(database_url=SecretStr(str(url))))
    yield connection
    await connection.close()
    await sql.execute("DROP SCHEMA customer CASCADE")


async def test_each_hears_of_its_own_tasks_only(mine: asyncpg.Connection, theirs: asyncpg.Connection) -> None:
    heard: list[str] = []
    await mine.add_listener(await deployment.name_due(mine), lambda *_: heard.append("mine"))
    await theirs.add_listener(await deployment.name_due(theirs), lambda *_: heard.append("theirs"))
    await accept(theirs, A, A)
    [dispatch] = await claim(theirs, 9)
    await apply(theirs, finish(dispatch))
    for connection in (mine, theirs):
        await connection.execute("SELECT 1")  # What was sent before comes with the answer, at the latest.
    assert heard == ["theirs"]
    assert await claim(mine, 9) == []


async def test_one_process_of_each_leads(mine: asyncpg.Connection, theirs: asyncpg.Connection) -> None:
    first, second, third = uuid4(), uuid4(), uuid4()
    assert await lead(mine, first)
    assert await lead(theirs, second)
    assert not await lead(mine, third)


async def test_a_table_that_is_made_or_dropped_meanwhile(sql: asyncpg.Connection, database_url: str) -> None:
    migrating = await asyncpg.connect(database_url)
    async with sql.transaction(isolation="repeatable_read"):
        await sql.execute("SELECT 1")
        # Its name is known at once, its row not to whoever has looked before.
        await migrating.execute("ALTER TABLE task RENAME TO former; CREATE TABLE task (LIKE former)")
        with pytest.raises(asyncpg.UndefinedTableError):
            await deployment.name_due(sql)
    # Other tests use the same tables.
    await migrating.execute("DROP TABLE task; ALTER TABLE former RENAME TO task")
    await migrating.close()
