"""The migrations, the committed schema, and what the table itself refuses."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from yarl import URL

from service_b.tasks import readiness
from tests.system.migrate import dbmate, migrate
from tests.system.schema import SCHEMA_FILE, dump_schema
from tests.system.spawning import ROOT

MIGRATIONS = sorted((ROOT / "db" / "migrations").glob("*.sql"))

NOW = "2026-01-01T00:00:00Z"
BASE: dict[str, Any] = {
    "id": "0197c9d0-0000-7000-8000-000000000001",
    "equipment_id": "DEVICE01",
    "timeout_seconds": 14,
    "parameters": "{}",
    "time_limit_seconds": 89,
    "deadline_at": NOW,
    "active": True,
}
WAITING = BASE | {"active": False}
DUE = BASE | {"due_at": NOW}
DISPATCHED = BASE | {"attempt": 1, "dispatched_at": NOW}
RUNNING = DISPATCHED | {"begun_at": NOW, "overdue_at": NOW, "lease": str(UUID(int=1))}
SUCCESS: dict[str, Any] = {
    "id": BASE["id"],
    "seq": 1,
    "equipment_id": "DEVICE01",
    "timeout_seconds": 14,
    "attempt": 1,
    "status": "success",
    "code": 200,
    "created_at": NOW,
    "finished_at": NOW,
}
ERROR = SUCCESS | {"status": "error", "code": 500, "reason": "deadline passed", "parameters": "{}"}

STATES = {
    "waiting": WAITING,
    "due": DUE,
    "due again": DUE | {"attempt": 1, "dispatched_at": NOW, "unknowns": 1},
    "dispatched": DISPATCHED,
    "running": RUNNING,
    "due, and not judged yet": DUE | {"attempt": 1, "dispatched_at": NOW, "lease": str(UUID(int=1)), "chances": 0},
    "lost": DUE | {"attempt": 5, "dispatched_at": NOW, "losts": 5},
    "nothing of it kept": DUE | {"keep_parameters": "none"},
    "success": SUCCESS,
    "error": ERROR,
    "not found": ERROR | {"code": 404},
    "expired while waiting": ERROR | {"attempt": 0},
    "of no day": SUCCESS | {"id": "ffffffff-0000-4000-8000-000000000001"},
    "longest serial": DUE | {"equipment_id": "a" * 128},
}

REFUSED = {
    "serial too short": (DUE | {"equipment_id": "ABCDE"}, "task_equipment_id"),
    "serial too long": (DUE | {"equipment_id": "a" * 129}, "task_equipment_id"),
    "serial with a letter of another alphabet": (DUE | {"equipment_id": "DEVICE\u00c9"}, "task_equipment_id"),
    "serial with a line's end": (DUE | {"equipment_id": "DEVICE01\n"}, "task_equipment_id"),
    "status unheard of": (ERROR | {"status": "lost"}, "finished_"),
    "finished and pending": (ERROR | {"status": "pending"}, "finished_status"),
    "success with an error's code": (SUCCESS | {"code": 404}, "finished_code"),
    "error with a success's code": (ERROR | {"code": 200}, "finished_code"),
    "error with a code unheard of": (ERROR | {"code": 503}, "finished_code"),
    "to be kept in a way unheard of": (DUE | {"keep_parameters": "some"}, "task_keep_parameters"),
    "due without being active": (WAITING | {"due_at": NOW}, "task_due_is_active"),
    "an attempt without its time": (DUE | {"attempt": 1}, "task_attempt"),
    "a time without its attempt": (DUE | {"dispatched_at": NOW}, "task_attempt"),
    "attempts below none": (DISPATCHED | {"attempt": -1}, "task_"),
    "active, neither due nor tried": (BASE, "task_active_is_due_or_dispatched"),
    "waiting though tried": (DISPATCHED | {"active": False}, "task_waiting_is_untried"),
    "a limit below A's own": (DUE | {"time_limit_seconds": 13.9}, "task_times"),
    "no time at all": (DUE | {"timeout_seconds": 0}, "task_times"),
    "more unknown attempts than attempts": (DISPATCHED | {"unknowns": 2}, "task_unknowns"),
    "running without a lease": (RUNNING | {"lease": None}, "task_begun"),
    "running and due": (RUNNING | {"due_at": NOW}, "task_begun"),
    "finished and running": (RUNNING | {"active": False}, "task_"),
    "running for ever": (RUNNING | {"overdue_at": None}, "task_begun_is_overdue_once"),
    "overdue though not running": (DISPATCHED | {"overdue_at": NOW}, "task_begun_is_overdue_once"),
    "a lease without an attempt": (DUE | {"lease": str(UUID(int=1))}, "task_lease"),
    "chances though not due": (DISPATCHED | {"chances": 1}, "task_chances"),
    "chances below none": (DUE | {"chances": -1}, "task_chances"),
    "more lost calls than attempts": (DISPATCHED | {"losts": 2}, "task_losts"),
    "unknown attempts below none": (DISPATCHED | {"unknowns": -1}, "task_unknowns"),
}


@pytest.fixture
async def empty_url(postgres_url: str) -> AsyncIterator[str]:
    """The URL of a database that does not exist yet; what is made of it is dropped."""
    name = f"migrations_{uuid4().hex}"
    yield str(URL(postgres_url).with_path(f"/{name}"))
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await connection.close()


@pytest.fixture
async def table(emptied_database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection in a transaction that is rolled back at the end."""
    connection = await asyncpg.connect(emptied_database_url)
    transaction = connection.transaction()
    await transaction.start()
    yield connection
    await transaction.rollback()
    await connection.close()


async def store(table: asyncpg.Connection, row: dict[str, Any], name: str | None = None) -> None:
    name = name or ("finished" if "status" in row else "task")
    await table.execute(
        f"""
        INSERT INTO {name} ({", ".join(row)})
        SELECT {", ".join(row)} FROM json_populate_record(NULL::{name}, $1)
        """,
        json.dumps(row),
    )


async def test_each_migration_goes_up_down_and_up_again(empty_url: str) -> None:
    dbmate(empty_url, "create")
    connection = await asyncpg.connect(empty_url)
    assert MIGRATIONS
    for migration in MIGRATIONS:
        up, down = migration.read_text().split("-- migrate:down")
        before = await catalogue(connection)
        await connection.execute(up)
        after = await catalogue(connection)
        assert after != before, f"{migration.name} changes nothing"
        await connection.execute(down)
        assert await catalogue(connection) == before, f"{migration.name} leaves something behind"
        await connection.execute(up)
        assert await catalogue(connection) == after
    await connection.close()


async def test_dbmate_rolls_back_the_newest_migrations(empty_url: str) -> None:
    migrate(empty_url)
    connection = await asyncpg.connect(empty_url)
    dbmate(empty_url, "down")
    assert "Pending: 1" in dbmate(empty_url, "status")
    assert await readiness.unready(connection) is None, "the newest one only makes a check cheaper"
    dbmate(empty_url, "down")
    assert "Pending: 2" in dbmate(empty_url, "status")
    assert await readiness.unready(connection) == "database: not migrated"
    migrate(empty_url)
    assert "Pending: 0" in dbmate(empty_url, "status")
    assert await readiness.unready(connection) is None
    await connection.close()


async def catalogue(connection: asyncpg.Connection) -> list[str]:
    """Everything that a migration of ours may make, as text; without dbmate's own table."""
    rows = await connection.fetch(
        """
        SELECT format('%s %s', relkind, relname) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relname !~ '^schema_migrations'
        UNION ALL
        SELECT format('%s.%s %s %s %s', attrelid::regclass, attname, format_type(atttypid, atttypmod), attnotnull,
                      pg_get_expr(adbin, adrelid))
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
            LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = 'public'::regnamespace AND attnum > 0 AND NOT attisdropped
          AND relname !~ '^schema_migrations'
        UNION ALL
        SELECT format('%s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND conname !~ '^schema_migrations'
        UNION ALL
        SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename !~ '^schema_migrations'
        UNION ALL
        SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL
        SELECT tgname FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL
        SELECT format('%s %s', typtype, typname) FROM pg_type
        WHERE typnamespace = 'public'::regnamespace AND typtype IN ('d', 'e', 'r')
        ORDER BY 1
        """
    )
    return [row[0] for row in rows]


async def test_migrating_again_changes_nothing(empty_url: str) -> None:
    migrate(empty_url)
    migrate(empty_url)
    connection = await asyncpg.connect(empty_url)
    assert await connection.fetchval("SELECT count(*) FROM schema_migrations") == len(MIGRATIONS)
    await connection.close()


def normalised(schema: str) -> list[str]:
    """What a dump says, without what depends on the version of the server and of pg_dump."""
    return [
        re.sub(r"CONSTRAINT \w+ NOT NULL", "NOT NULL", line)
        for line in schema.splitlines()
        if line.strip() and not line.startswith(("--", "\\", "SET ", "SELECT pg_catalog.set_config"))
    ]


def test_the_committed_schema_is_what_the_migrations_make(empty_url: str, tmp_path: Path) -> None:
    migrate(empty_url)
    dump_schema(empty_url, tmp_path / "schema.sql")
    made = (tmp_path / "schema.sql").read_text()
    assert normalised(SCHEMA_FILE.read_text()) == normalised(made), "stale: run .ci/schema"


@pytest.mark.parametrize("state", STATES)
async def test_the_table_takes_each_state_of_a_task(table: asyncpg.Connection, state: str) -> None:
    await store(table, STATES[state])
    assert await table.fetchval("SELECT (SELECT count(*) FROM task) + (SELECT count(*) FROM finished)") == 1


@pytest.mark.parametrize("case", REFUSED)
async def test_the_table_refuses_what_cannot_be(table: asyncpg.Connection, case: str) -> None:
    row, constraint = REFUSED[case]
    with pytest.raises(asyncpg.CheckViolationError) as refusal:
        await store(table, row)
    assert str(refusal.value.constraint_name).startswith(constraint)


@pytest.mark.parametrize("column", ["id", "equipment_id", "timeout_seconds", "parameters", "deadline_at", "active"])
async def test_the_table_refuses_a_row_without(table: asyncpg.Connection, column: str) -> None:
    with pytest.raises(asyncpg.NotNullViolationError) as refusal:
        await store(table, DUE | {column: None})
    assert refusal.value.column_name == column


@pytest.mark.parametrize("column", list(SUCCESS))
async def test_nothing_is_finished_without(table: asyncpg.Connection, column: str) -> None:
    with pytest.raises(asyncpg.NotNullViolationError) as refusal:
        await store(table, SUCCESS | {column: None})
    assert refusal.value.column_name == column


async def test_a_device_has_one_active_task_and_any_number_of_others(table: asyncpg.Connection) -> None:
    await store(table, DISPATCHED)
    for number, row in enumerate((WAITING, WAITING), 2):
        await store(table, row | {"id": str(UUID(int=number))})
    for second in (DUE, DISPATCHED):
        with pytest.raises(asyncpg.UniqueViolationError, match="task_active"):
            async with table.transaction():
                await store(table, second | {"id": str(uuid4())})
    await store(table, DUE | {"id": str(uuid4()), "equipment_id": "DEVICE02"})


async def test_an_id_is_given_once(table: asyncpg.Connection) -> None:
    for row in (DUE, SUCCESS):
        await store(table, row)
        with pytest.raises(asyncpg.UniqueViolationError, match="_pkey"):
            async with table.transaction():
                await store(table, row | {"equipment_id": "DEVICE02"})


def halves(name: str) -> list[str]:
    """The way up and the way down of a migration."""
    [migration] = [path for path in MIGRATIONS if path.stem.endswith(f"_{name}")]
    return migration.read_text().split("-- migrate:down")


async def test_calls_that_may_be_under_way_when_leases_come_are_given_their_time(empty_url: str) -> None:
    dbmate(empty_url, "create")
    connection = await asyncpg.connect(empty_url)
    for migration in MIGRATIONS:
        if migration.stem.endswith("_leases"):
            break
        await connection.execute(migration.read_text().split("-- migrate:down")[0])
    for number, state in enumerate((WAITING, DUE, DISPATCHED), 1):
        await store(connection, state | {"id": str(UUID(int=number)), "equipment_id": f"DEVICE{number}"})
    up, down = halves("leases")
    await connection.execute(up)
    held = "SELECT id, extract(epoch FROM due_at - now()) AS seconds FROM task WHERE due_at > now()"
    [dispatched] = await connection.fetch(held)
    assert dispatched["id"] == UUID(int=3)
    assert 89 < dispatched["seconds"] <= 89 + 10
    await connection.execute(
        """
        UPDATE task SET due_at = NULL, begun_at = now(), overdue_at = now(), lease = id WHERE id = $1
        """,
        UUID(int=3),
    )
    await connection.execute(
        """
        UPDATE task SET attempt = 1, dispatched_at = now(), chances = 0, due_at = now() - interval '1 day' WHERE id = $1
        """,
        UUID(int=2),
    )
    await connection.execute(down)
    rows = await connection.fetch(
        "SELECT active, due_at, unknowns, deadline_at = due_at AS drawn FROM task ORDER BY id"
    )
    assert [(row["active"], row["due_at"] is not None, row["unknowns"], row["drawn"]) for row in rows] == [
        (False, False, 0, None),
        (True, True, 1, False),
        (True, False, 0, None),
    ]
    await connection.close()
