"""A role for our services that owns nothing: what the README says it needs, and no more."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
from yarl import URL

# The tables by name, not their partitions: who asks for `finished` needs no right to those.
TABLES = """
    SELECT string_agg(quote_ident(relname), ', ') FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
      AND relname <> 'schema_migrations'
"""
FUNCTIONS = "finished_make_next, finished_drop_oldest, finished_delete_strays"


@asynccontextmanager
async def service_role(sql: asyncpg.Connection, url: str, *, may_call: bool = True) -> AsyncIterator[str]:
    """Make the role, and give the database's URL with its name; `sql` is its owner's connection."""
    role = f"service_{uuid4().hex}"
    await sql.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
    await sql.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {await sql.fetchval(TABLES)} TO {role}")
    if may_call:
        await sql.execute(f"GRANT EXECUTE ON FUNCTION {FUNCTIONS} TO {role}")
    yield str(URL(url).with_user(role).with_password(role))
    await sql.execute(f"DROP OWNED BY {role}")
    await sql.execute(f"DROP ROLE {role}")
