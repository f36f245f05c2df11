"""What the services' role may do in a database that was made as in production, and what it may not."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from yarl import URL

from tests.system.migrate import Roles, dbmate, environment_of, migrate, prepare, run_script

TABLES = "task", "finished", "service_a", "task_clock", "maintenance", "idempotency_key"
OURS = {table: {"SELECT", "INSERT", "UPDATE", "DELETE"} for table in TABLES} | {
    "idempotency_secret": {"SELECT"},
    "task_begun": {"USAGE", "SELECT"},
    "finished_make_next": {"EXECUTE"},
    "finished_drop_oldest": {"EXECUTE"},
    "finished_delete_strays": {"EXECUTE"},
    # Anybody's, and of no effect: it only counts.
    "finished_first_id": {"EXECUTE"},
}
"""All that it may do, and to what."""

# Each privilege apart, whoever was granted it.
GRANTED = """
    WITH mine AS (SELECT oid FROM pg_roles WHERE rolname = $1 UNION ALL SELECT 0),
    given AS (
        SELECT relname AS name, (aclexplode(coalesce(relacl, acldefault('r', relowner)))).*
        FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'S')
        UNION ALL
        SELECT proname, (aclexplode(coalesce(proacl, acldefault('f', proowner)))).*
        FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    )
    SELECT name, array_agg(DISTINCT privilege_type) AS privileges FROM given
    WHERE grantee IN (SELECT oid FROM mine) GROUP BY name
"""

REFUSED = (
    "ALTER TABLE task ADD COLUMN mine text",
    "ALTER TABLE task DISABLE TRIGGER ALL",
    "DROP TABLE task",
    "DROP INDEX task_active",
    "TRUNCATE task",
    "CREATE INDEX ON task (attempt)",
    "CREATE TABLE mine (id uuid)",
    "CREATE TEMPORARY TABLE mine (id uuid)",
    "CREATE VIEW mine AS SELECT FROM task",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql RETURN 1",
    "CREATE TRIGGER mine AFTER INSERT ON task EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE SCHEMA mine",
    "CREATE ROLE mine",
    "CREATE DATABASE mine",
    "COPY task TO PROGRAM 'true'",
    "COPY task FROM PROGRAM 'true'",
    "COPY task TO '/tmp/tasks'",
    "SELECT pg_read_file('PG_VERSION')",
    "SELECT * FROM schema_migrations",
    "INSERT INTO schema_migrations VALUES ('99999999999999')",
    "SELECT * FROM finished_default",
    "SELECT rolpassword FROM pg_authid",
    "SELECT finished_make_partition('2026-01-01')",
    "SELECT setval('task_begun', 1)",
    "ALTER SEQUENCE task_begun RESTART",
    "ALTER ROLE {service} SUPERUSER",
    "SET ROLE {migrator}",
    "SET SESSION AUTHORIZATION {migrator}",
    "ALTER SYSTEM SET fsync = off",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename <> current_user",
)


@pytest.fixture(scope="module")
def prepared(postgres_url: str, roles: Roles) -> Iterator[str]:
    """A database as `db/migrate.sh` makes it; a copy of one would be open to all roles."""
    url = str(URL(postgres_url).with_path(f"/rights_{uuid4().hex}"))
    prepare(url, roles)
    yield url
    asyncio.run(drop(postgres_url, URL(url).path[1:]))


async def drop(postgres_url: str, name: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


@pytest.fixture
async def service(prepared: str, roles: Roles) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(roles.service_url(prepared))
    yield connection
    await connection.close()


async def test_it_may_do_its_work_and_nothing_else(service: asyncpg.Connection, roles: Roles) -> None:
    rows = await service.fetch(GRANTED, roles.service)
    assert {row["name"]: set(row["privileges"]) for row in rows} == OURS


@pytest.mark.parametrize("statement", REFUSED)
async def test_it_is_refused(service: asyncpg.Connection, roles: Roles, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await service.execute(statement.format(service=f'"{roles.service}"', migrator=f'"{roles.migrator}"'))


async def test_nobody_else_comes_in(prepared: str, postgres_url: str) -> None:
    name = f"stranger_{uuid4().hex}"
    administrator = await asyncpg.connect(postgres_url)
    await administrator.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied for database"):
        await asyncpg.connect(str(URL(prepared).with_user(name).with_password(name)))
    await administrator.execute(f"DROP ROLE {name}")
    await administrator.close()


async def test_who_migrates_owns_the_tables_and_nothing_beyond(prepared: str, roles: Roles) -> None:
    url = URL(prepared).with_user(roles.migrator).with_password(roles.migrator_password)
    connection = await asyncpg.connect(str(url))
    strangers = await connection.fetch(
        "SELECT relname FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace AND pg_get_userbyid(relowner) <> current_user"
    )
    assert strangers == []
    for statement in ("CREATE ROLE mine", "CREATE DATABASE mine", "COPY task FROM PROGRAM 'true'"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()


async def test_what_an_administrator_has_migrated_is_handed_over(postgres_url: str, roles: Roles) -> None:
    """An earlier version of ours had one user for everything."""
    url = URL(postgres_url).with_path(f"/earlier_{uuid4().hex}")
    await asyncio.to_thread(migrate, str(url))
    await asyncio.to_thread(prepare, str(url), roles)
    await asyncio.to_thread(prepare, str(url), roles)
    connection = await asyncpg.connect(roles.service_url(str(url)))
    rows = await connection.fetch(GRANTED, roles.service)
    assert {row["name"]: set(row["privileges"]) for row in rows} == OURS
    owners = await connection.fetch(
        """
        SELECT DISTINCT pg_get_userbyid(relowner) AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION SELECT pg_get_userbyid(proowner) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        """
    )
    assert [owner["name"] for owner in owners] == [roles.migrator]
    await connection.close()
    await drop(postgres_url, url.path[1:])


def test_each_password_may_lie_in_a_file(prepared: str, roles: Roles, tmp_path: Path) -> None:
    """As compose has it; one that cannot be read ends everything before it has begun."""
    environment = environment_of(prepared, roles)
    for name in [name for name in environment if name.endswith("PASSWORD")]:
        (tmp_path / name).write_text(environment.pop(name) + "\n")
        environment[f"{name}_FILE"] = str(tmp_path / name)
    run_script(environment)
    for name in ("SERVICE_PASSWORD", "MIGRATOR_PASSWORD", "PGPASSWORD"):
        (tmp_path / name).unlink()
        with pytest.raises(RuntimeError, match=rf"^migrate.sh: cat: .*/{name}: No such file"):
            run_script(environment)


def test_a_database_of_somebodys_own_is_only_migrated(postgres_url: str) -> None:
    url = URL(postgres_url).with_path(f"/own_{uuid4().hex}")
    run_script({"DATABASE_URL": str(url), "PGSSLMODE": "prefer"})
    assert "Pending: 0" in dbmate(str(url), "status")
    dbmate(str(url), "drop")


async def test_a_password_may_hold_any_character(prepared: str, roles: Roles) -> None:
    odd = replace(roles, service_password=r"""p@ss w/rd'\ \"$HOME %s ü -c cpe.service=x""")
    await asyncio.to_thread(prepare, prepared, odd)
    connection = await asyncpg.connect(odd.service_url(prepared))
    assert await connection.fetchval("SELECT current_user") == roles.service
    await connection.close()
    await asyncio.to_thread(prepare, prepared, roles)
