"""What the tests of one process share."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import asyncpg
import pytest
from yarl import URL

from service_b.database import DatabaseSettings
from service_b.tasks import TaskTable
from tests.system.migrate import dbmate, migrate
from tests.tasks import opened_table


@pytest.fixture(scope="session")
def shared_database_url(postgres_url: str) -> Iterator[str]:
    """A migrated database for the many quick tests that need nothing but its tables."""
    url = str(URL(postgres_url).with_path(f"/shared_{uuid4().hex}"))
    migrate(url)
    yield url
    dbmate(url, "drop")


@pytest.fixture
async def emptied_database_url(shared_database_url: str) -> str:
    """The shared database with its tables empty: a fortieth of the price of a new one."""
    connection = await asyncpg.connect(shared_database_url)
    async with asyncio.timeout(30):
        await connection.execute("TRUNCATE task RESTART IDENTITY")
    await connection.close()
    return shared_database_url


@pytest.fixture
async def tasks(database: DatabaseSettings) -> AsyncIterator[TaskTable]:
    """The task table of the test's database."""
    async with opened_table(database) as table:
        yield table
