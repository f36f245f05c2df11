"""Whether the tasks can be reached at all."""

import asyncpg

from service_b.database import STORAGE_ERRORS, Queries, describe

PROBE = "SELECT task.history, 'finished_failures'::regclass FROM task, task_begun WHERE false"
"""Names something of the newest migration that the statements need: before that nothing works."""


async def unready(connection: Queries) -> str | None:
    """Say what is missing; None while the task table can be read."""
    try:
        await connection.execute(PROBE)
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
        return "database: not migrated"
    except STORAGE_ERRORS as error:
        return f"database: {describe(error)}"
    return None
