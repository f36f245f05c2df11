"""Which of several deployments in one database this one is: that of the schema in which its task table lies.

What PostgreSQL shares between schemas, the names of notifications and of advisory locks, must differ between them.
"""

from service_b.database import Connection, Queries

# The table is looked up as in every other statement, so this follows the search path, whoever has set it.
SCHEMA = "(SELECT relnamespace FROM pg_class WHERE oid = 'task'::regclass)"

NAME_DUE = f"SELECT 'task_due_' || {SCHEMA}"

ANNOUNCE = f"SELECT pg_notify('task_due_' || {SCHEMA}, '')"

TRY_TO_LEAD = f"SELECT pg_try_advisory_lock({SCHEMA}::integer, $1)"


async def name_due(connection: Queries) -> str:
    """Tell what is notified when a task became due that no insert of the same process announces."""
    name: str = await connection.fetchval(NAME_DUE)
    return name


async def announce(connection: Queries) -> None:
    """Wake the relays of all processes once this transaction has been committed."""
    await connection.execute(ANNOUNCE)


async def try_to_lead(connection: Connection, key: int) -> bool:
    """Take a lock that one process has at a time; it lives as long as the connection."""
    leads: bool = await connection.fetchval(TRY_TO_LEAD, key)
    return leads
