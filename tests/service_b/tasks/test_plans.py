"""Every statement keeps its plan, whatever the statistics say: it finds its rows by their keys."""

import ast
import importlib
import json
import pkgutil
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service_b import tasks
from service_b.database import DatabaseSettings, connect

READS_ALL = {"COUNT", "COUNT_KEYS"}
"""Asked twenty times a minute at most, for what is unfinished."""

DAYS = 30
"""So many days ago the oldest finished task was accepted; a partition for each, a week ahead, and the default one."""

PARTITION = "SELECT finished_make_partition((now() AT TIME ZONE 'UTC')::date - $1::integer)"

UNWATCHED = """
    DO $$ DECLARE name regclass; BEGIN
        FOR name IN SELECT 'task'::regclass UNION ALL SELECT inhrelid FROM pg_inherits
                    WHERE inhparent = 'finished'::regclass LOOP
            EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', name);
        END LOOP;
    END $$
"""

FORGET = """
    DELETE FROM pg_statistic WHERE starelid IN ('task'::regclass, 'finished'::regclass)
    OR starelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'finished'::regclass)
"""

FILL = """
    INSERT INTO task (id, equipment_id, timeout_seconds, parameters, time_limit_seconds, deadline_at, active,
                      due_at, attempt, dispatched_at)
    SELECT gen_random_uuid(), $2 || CASE WHEN n % 3 = 0 THEN n - 1 ELSE n END, 1, '{}', 1,
           now() + interval '1 day', n % 3 <> 0, CASE WHEN n % 3 = 1 THEN now() - n * interval '1 ms' END,
           CASE WHEN n % 3 = 2 THEN 1 ELSE 0 END, CASE WHEN n % 3 = 2 THEN now() - n * interval '1 ms' END
    FROM generate_series(1, $1::integer) AS n
"""

FILL_FINISHED = """
    INSERT INTO finished (id, seq, created_at, finished_at, timeout_seconds, attempt, code, status, equipment_id)
    SELECT overlay(gen_random_uuid()::text PLACING left(
               finished_first_id((now() AT TIME ZONE 'UTC')::date - n % $2::integer)::text, 13) FROM 1)::uuid,
           n, now(), now(), 1, 1, 200, 'success', 'DEVICE' || n
    FROM generate_series(1, $1::integer) AS n
"""


def modules() -> list[str]:
    return [f"{tasks.__name__}.{module.name}" for module in pkgutil.iter_modules(tasks.__path__)]


def statements() -> dict[str, str]:
    """All statements of the package: constants that begin as SQL does, and those in constants that are dictionaries."""
    return {
        name: value
        for module in map(importlib.import_module, modules())
        for constant, held in vars(module).items()
        if constant.isupper()
        for name, value in (
            ((f"{constant}[{key}]", each) for key, each in held.items())
            if isinstance(held, dict)
            else [(constant, held)]
        )
        if isinstance(value, str) and re.match(r"\s*(WITH|SELECT|INSERT|UPDATE|DELETE)\b", value)
    }


def test_nothing_but_these_statements_is_sent() -> None:
    """So no statement escapes the tests below."""
    names = {name.partition("[")[0] for name in statements()}
    for path in Path(tasks.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr in ("execute", "executemany", "fetch", "fetchrow", "fetchval", "fetchmany"):
                    sent = node.args[0].value if isinstance(node.args[0], ast.Subscript) else node.args[0]
                    assert isinstance(sent, ast.Name), f"{path.name}:{node.lineno}"
                    assert sent.id in names, f"{path.name}:{node.lineno}"
                assert node.func.attr not in ("prepare", "cursor", "copy_records_to_table"), (
                    f"{path.name}:{node.lineno}"
                )


async def explain(connection: asyncpg.Connection, statement: str, *values: str) -> dict[str, Any]:
    """The generic plan of a statement; with the first few values, what it comes to for those."""
    await connection.execute(f"PREPARE explained AS {statement}")
    parameters = len(set(re.findall(r"\$\d+", statement)))
    given = [*values, *["NULL"] * (parameters - len(values))]
    arguments = f"({', '.join(given)})" if given else ""
    text = await connection.fetchval(f"EXPLAIN (FORMAT JSON, VERBOSE) EXECUTE explained{arguments}")
    await connection.execute("DEALLOCATE explained")
    plan: dict[str, Any] = json.loads(text)[0]["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        child["parent"] = plan["Node Type"]
        yield from nodes(child)


def looks_up(plan: dict[str, Any]) -> bool:
    """Whether it finds tasks by a key, and does nothing else for each call."""
    return any("Index" in node["Node Type"] and "Index Cond" in node for node in nodes(plan))


def faults(plan: dict[str, Any]) -> list[str]:
    """What makes a statement read the table, or its own batch, again and again."""
    found = []
    whole = str(plan)
    for node in nodes(plan):
        kind = node["Node Type"]
        table = node.get("Relation Name", "")
        if (table == "task" or table.startswith("finished")) and kind != "ModifyTable":
            ordered_only = node.get("parent") == "Limit" and "Filter" not in node
            if "Index" not in kind or not ("Index Cond" in node or ordered_only):
                found.append(f"{kind} of {table} without a key")
        if kind == "Nested Loop" and not looks_up(node["Plans"][1]):
            found.append(f"Nested Loop over {node['Plans'][1]['Node Type']}")
        name = node.get("Subplan Name", "")
        if name.startswith("SubPlan") and not looks_up(node) and f"hashed {name}" not in whole:
            found.append(f"{name} for each row: {kind}")
    return found


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    for day in range(1, DAYS):
        await connection.execute(PARTITION, day)
    # Nobody else shall analyze them meanwhile.
    await connection.execute(UNWATCHED)
    yield connection
    await connection.execute(UNWATCHED.replace("SET (autovacuum_enabled = off)", "RESET (autovacuum_enabled)"))
    while await connection.fetchval("SELECT finished_drop_oldest(0, now())"):
        pass
    await connection.close()


async def never_analyzed(admin: asyncpg.Connection) -> None:
    """As it is."""


async def analyzed_while_empty(admin: asyncpg.Connection) -> None:
    await admin.execute("VACUUM ANALYZE task, finished")


async def grown_since_analyzed_while_empty(admin: asyncpg.Connection) -> None:
    await admin.execute("VACUUM ANALYZE task, finished")
    await grown_but_never_analyzed(admin)


async def grown_but_never_analyzed(admin: asyncpg.Connection) -> None:
    await admin.execute(FILL, 20_000, "DEVICE")
    await admin.execute(FILL_FINISHED, 20_000, DAYS)


async def all_unfinished(admin: asyncpg.Connection) -> None:
    await admin.execute(FILL, 20_000, "DEVICE")
    await admin.execute("VACUUM ANALYZE task, finished")


async def all_finished(admin: asyncpg.Connection) -> None:
    await admin.execute(FILL_FINISHED, 20_000, DAYS)
    await admin.execute("VACUUM ANALYZE task, finished")


async def all_finished_today(admin: asyncpg.Connection) -> None:
    await admin.execute(FILL_FINISHED, 20_000, 1)
    await admin.execute("VACUUM ANALYZE task, finished")


async def all_finished_then_unfinished(admin: asyncpg.Connection) -> None:
    await all_finished(admin)
    await admin.execute(FILL, 20_000, "DEVICE")


async def emptied_since_analyzed_while_full(admin: asyncpg.Connection) -> None:
    """What is known of the columns stays."""
    await grown_but_never_analyzed(admin)
    await admin.execute("VACUUM ANALYZE task, finished")
    await admin.execute("TRUNCATE task, finished")
    await admin.execute("VACUUM ANALYZE task, finished")


async def one_unfinished(admin: asyncpg.Connection) -> None:
    await admin.execute(FILL, 1, "DEVICE")
    await admin.execute("VACUUM ANALYZE task, finished")


async def grown_a_hundredfold(admin: asyncpg.Connection) -> None:
    await admin.execute(FILL, 200, "DEVICE")
    await admin.execute(FILL_FINISHED, 200, 1)
    await admin.execute("VACUUM ANALYZE task, finished")
    await admin.execute(FILL, 20_000, "GROWN")
    await admin.execute(FILL_FINISHED, 20_000, 1)


READ_ALONG = {
    "LIST_UNFINISHED[id]": {"task_pkey"},
    "LIST_UNFINISHED[external_id]": {"task_external_id_id"},
    "LIST_UNFINISHED[device]": {"task_active", "task_waiting", "task_scheduled"},
    "LIST_UNFINISHED[dispatched]": {"task_dispatched"},
    "LIST_UNFINISHED[running]": {"task_overdue"},
    "LIST_FINISHED[id]": {"pkey"},
    "LIST_FINISHED[external_id]": {"external_id_id_idx"},
    "LIST_FINISHED[device]": {"equipment_id_id_idx"},
    "LIST_FINISHED[client]": {"submitted_by_id_idx"},
    "LIST_FINISHED[failure]": {"id_idx"},
}
"""The indexes that lists are read along; of a partition's, what their names end with."""


ALL_IDS = "'ffffffff-ffff-ffff-ffff-ffffffffffff'", "'00000000-0000-0000-0000-000000000000'"
"""Without them no partition would be looked at."""


def read_along(plan: dict[str, Any]) -> set[str]:
    """The indexes by which what is `scanned` is found."""
    names = {
        node["Index Name"]
        for part in nodes(plan)
        if part.get("Subplan Name") == "CTE scanned"
        for node in nodes(part)
        if node.get("Relation Name", "").startswith(("task", "finished")) and node["Relation Name"] != "task_clock"
    }
    return {re.sub(r"^finished_(default|\d{8})_", "", name) for name in names}


@pytest.mark.parametrize(
    "reach",
    [
        never_analyzed,
        analyzed_while_empty,
        grown_since_analyzed_while_empty,
        grown_but_never_analyzed,
        all_unfinished,
        all_finished,
        all_finished_today,
        all_finished_then_unfinished,
        emptied_since_analyzed_while_full,
        one_unfinished,
        grown_a_hundredfold,
    ],
)
async def test_every_statement_keeps_its_plan(
    reach: Any, admin: asyncpg.Connection, database: DatabaseSettings
) -> None:
    await admin.execute(FORGET)
    await reach(admin)
    connection = await connect(database)
    try:
        plans = {
            name: await explain(connection, statement, *(ALL_IDS if name in READ_ALONG else ()))
            for name, statement in statements().items()
        }
    finally:
        await connection.close()
    found = {name: faults(plan) for name, plan in plans.items()}
    assert len(found) > 10
    assert {name: read_along(plans[name]) for name in READ_ALONG} == READ_ALONG
    assert {name: bad for name, bad in found.items() if bad and name not in READS_ALL} == {}
