"""Whether the tasks can be reached, on a real PostgreSQL."""

import asyncpg

from service_b.tasks import readiness


async def test_the_table_says_what_is_missing(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    assert await readiness.unready(pool) is None
    await sql.execute("ALTER TABLE task RENAME TO elsewhere")
    assert await readiness.unready(pool) == "database: not migrated"
    await sql.execute("ALTER TABLE elsewhere RENAME TO task")
    assert await readiness.unready(pool) is None
