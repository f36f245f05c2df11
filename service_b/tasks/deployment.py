"""Which of several deployments in one database this one is: that of the schema in which its task table lies.

What PostgreSQL shares between schemas, the names of notifications, must differ between them.
"""

import asyncpg

from service_b.database import Queries

# The table is looked up as in every other statement, so this follows the search path, whoever has set it.
SCHEMA = "(SELECT relnamespace FROM pg_class WHERE oid = 'task'::regclass)"

ENDED = f"'task_ended_' || {SCHEMA}"
"""What is notified, with the ids, when tasks have ended: SQL."""

NAME_ENDED = f"SELECT {ENDED}"

NAME_DUE = f"SELECT 'task_due_' || {SCHEMA}"

ANNOUNCE = f"SELECT pg_notify('task_due_' || {SCHEMA}, '')"


async def name_due(connection: Queries) -> str:
    """Tell what is notified when a task became due that no insert of the same process announces.

    Raises `UndefinedTableError` also where the table is made or dropped at this very moment: its name is found then,
    but not its row.
    """
    name: str | None = await connection.fetchval(NAME_DUE)
    if name is None:
        raise asyncpg.UndefinedTableError("the task table is just being made or dropped")
    return name


async def name_ended(connection: Queries) -> str:
    """Tell what is notified, with the ids of tasks and commas between them, when those have ended."""
    name: str = await connection.fetchval(NAME_ENDED)
    return name


async def announce(connection: Queries) -> None:
    """Wake the relays of all processes once this transaction has been committed."""
    await connection.execute(ANNOUNCE)
