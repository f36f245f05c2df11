"""A database for the many quick tests of the statements."""

from collections.abc import AsyncIterator

import asyncpg
import pytest


@pytest.fixture
def database_url(emptied_database_url: str) -> str:
    """These tests are many, and none needs more than empty tables."""
    return emptied_database_url


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Another client of the database, for transactions that stay open."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()
