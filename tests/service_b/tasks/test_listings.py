"""Lists of tasks: whatever is asked for, in whatever pages, is what a look at both tables tells."""

import asyncio
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, get_args

import asyncpg
import pytest

from service_b.database import DatabaseSettings, Queries, create_pool
from service_b.tasks import claims, listings, resources
from service_b.tasks.listings import EVERYTHING, Filters, Sight, read_page
from service_b.tasks.resources import State, Task
from tests.tasks import accept, apply, begin, claim, finish, rows_read

DEVICES = ["ABC0001", "ABC0002", "XYZ0001"]
START = datetime(2026, 11, 20, tzinfo=UTC)

FILL_FINISHED = """
    INSERT INTO finished (id, seq, created_at, finished_at, timeout_seconds, attempt, code, status, equipment_id,
                          external_id, submitted_by, deadline_at, ended_by)
    SELECT overlay(gen_random_uuid()::text PLACING left(
               lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0'), 8) || '-' || right(
               to_hex((extract(epoch FROM at) * 1000)::bigint), 4) FROM 1)::uuid,
           n, at, at, 1, 1, code, CASE code WHEN 200 THEN 'success' ELSE 'error' END, device, external, token, at, ended
    FROM unnest($1::timestamptz[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::text[]) WITH ORDINALITY
        AS new (at, code, device, external, token, ended, n)
"""

FILL = """
    INSERT INTO task (id, equipment_id, timeout_seconds, parameters, time_limit_seconds, deadline_at, active, due_at,
                      attempt, dispatched_at, begun_at, lease, overdue_at, start_at, created_at, external_id,
                      submitted_by)
    SELECT overlay(gen_random_uuid()::text PLACING left(
               lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0'), 8) || '-' || right(
               to_hex((extract(epoch FROM at) * 1000)::bigint), 4) FROM 1)::uuid,
           device, 1, '{}', 1, now() + interval '1 h', state NOT IN ('waiting', 'scheduled'),
           CASE state WHEN 'due' THEN now() END, dispatched, CASE dispatched WHEN 1 THEN now() END,
           CASE state WHEN 'running' THEN now() END, CASE state WHEN 'running' THEN gen_random_uuid() END,
           CASE state WHEN 'running' THEN now() + interval '1 h' END,
           CASE state WHEN 'scheduled' THEN now() + interval '1 h' END, at, external, token
    FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::text[])
             AS new (at, state, device, external, token),
         LATERAL (SELECT (state IN ('dispatched', 'running'))::integer AS dispatched) AS started
"""


@pytest.fixture
async def filled(sql: asyncpg.Connection) -> None:
    """Tasks of every kind, a minute apart; each device has one active task at most."""
    chance = random.Random(1)
    at = [START + timedelta(minutes=n) for n in range(160)]
    chance.shuffle(at)

    def some(number: int, *of: Any) -> list[Any]:
        return chance.choices(of, k=number)

    endings = some(100, (200, None), (404, None), (500, None), (500, "cancel"), (500, "deadline"))
    await sql.execute(
        FILL_FINISHED,
        at[:100],
        [code for code, _ in endings],
        some(100, *DEVICES),
        some(100, None, "order-1", "order-2"),
        some(100, None, "oss", "crm"),
        [ended for _, ended in endings],
    )
    active = [("due", "ABC0001"), ("dispatched", "ABC0002"), ("running", "XYZ0001")]
    active += [(state, f"OTHER{n:04}") for n, state in enumerate(some(17, "due", "dispatched", "running"))]
    others = [
        (state, device) for state, device in zip(some(40, "waiting", "scheduled"), some(40, *DEVICES), strict=True)
    ]
    await sql.execute(
        FILL,
        at[100:],
        [state for state, _ in active + others],
        [device for _, device in active + others],
        some(60, None, "order-1", "order-2"),
        some(60, None, "oss", "crm"),
    )


async def every_task(connection: Queries) -> list[Task]:
    """All of both tables, newest first."""
    rows = await connection.fetch("SELECT id FROM task UNION ALL SELECT id FROM finished")
    found = await resources.find(connection, [row["id"] for row in rows])
    return sorted((task for task in found if task), key=lambda task: task.id, reverse=True)


def meets(task: Task, filters: Filters, sight: Sight) -> bool:
    return all(
        (
            filters.equipment_id in (None, task.equipment_id),
            filters.state in (None, task.state),
            filters.external_id in (None, task.external_id),
            filters.created_from is None or task.created_at >= filters.created_from,
            filters.created_to is None or task.created_at < filters.created_to,
            sight.submitted_by in (None, task.submitted_by),
            sight.devices is None or task.equipment_id.startswith("ABC"),
        )
    )


async def turn_over(connection: Queries, filters: Filters, sight: Sight = EVERYTHING, **sizes: int) -> list[Task]:
    """Read page after page."""
    tasks: list[Task] = []
    before = None
    for _ in range(1000):
        page = await read_page(connection, filters, sight, before=before, **sizes)
        tasks += page.tasks
        if page.next is None:
            return tasks
        assert before is None or page.next < before
        before = page.next
    raise AssertionError("there is no end")


FILTERS = [
    Filters(device, state, external, *times)
    for device, state, external, times in product(
        [None, "ABC0001"],
        [None, *get_args(State)],
        [None, "order-1"],
        [(None, None), (START + timedelta(minutes=40), START + timedelta(minutes=120))],
    )
]


@pytest.mark.usefixtures("filled")
async def test_every_filter_in_every_size(pool: asyncpg.Pool) -> None:
    everything = await every_task(pool)
    assert {task.state for task in everything} == {filters.state for filters in FILTERS} - {None}
    sights = [EVERYTHING, Sight("oss"), Sight(None, ["ABC%", "QQ%Q"]), Sight("oss", ["ABC%"])]
    told = 0
    for number, (filters, sight) in enumerate(product(FILTERS, sights)):
        wanted = [task for task in everything if meets(task, filters, sight)]
        told += bool(wanted)
        limit, max_read = [(3, 1000), (50, 7), (2, 5), (500, 10_000)][number % 4 if number % 3 else 0]
        found = await turn_over(pool, filters, sight, limit=limit, max_read=max_read)
        assert found == wanted, (filters, sight, limit, max_read)
    assert told > len(FILTERS)


@pytest.mark.usefixtures("filled")
async def test_pages_are_as_long_as_they_can_be(pool: asyncpg.Pool) -> None:
    page = await read_page(pool, Filters(), limit=160)
    assert (len(page.tasks), page.next) == (160, None)
    page = await read_page(pool, Filters(), limit=159)
    assert (len(page.tasks), page.next) == (159, page.tasks[-1].id)


@pytest.mark.usefixtures("filled")
async def test_a_page_that_finds_nothing_tells_where_to_go_on(pool: asyncpg.Pool) -> None:
    everything = await every_task(pool)
    page = await read_page(pool, Filters(external_id="order-1", equipment_id="NOBODY1"), limit=5, max_read=3)
    assert (list(page.tasks), page.next is None) == ([], False)
    page = await read_page(pool, replace(Filters(), state="expired"), limit=5, max_read=3)
    assert page.next in [task.id for task in everything]


async def test_what_ends_meanwhile_is_told_once(pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found among the unfinished, and then among the finished; or it was gone, and is found there."""
    ids = await accept(pool, *(f"DEVICE{n:02}" for n in range(6)))
    first = await claims.claim(pool, 3)

    class Meanwhile:
        """A connection on which something happens between the two statements."""

        async def fetch(self, statement: str, *arguments: Any) -> Any:
            rows = await pool.fetch(statement, *arguments)
            if statement in listings.LIST_UNFINISHED.values():
                await begin(pool, *first)
                await apply(pool, *(finish(dispatch) for dispatch in first))
            return rows

    page = await read_page(Meanwhile(), Filters())  # type: ignore[arg-type]
    assert [task.id for task in page.tasks] == sorted(ids, reverse=True)
    assert sum(task.state == "succeeded" for task in page.tasks) == 3


async def test_a_page_does_not_read_what_it_does_not_show(database: DatabaseSettings, sql: asyncpg.Connection) -> None:
    """Whatever else there is, with a filter or without."""
    async with create_pool(database.model_copy(update={"pool_size": 1})) as pool:
        await accept(pool, *(f"DEVICE{n:04}" for n in range(300)))
        await apply(pool, *(finish(dispatch) for dispatch in await claim(pool, 200)))
        for filters in (Filters(), Filters("DEVICE0001"), Filters(state="succeeded"), Filters(state="failed")):
            before = await rows_read(pool, sql)
            await read_page(pool, filters, limit=10)
            assert await rows_read(pool, sql) - before < 100, filters


async def test_whoever_turns_pages_misses_nothing_and_sees_nothing_twice(pool: asyncpg.Pool) -> None:
    """Tasks that were there when the first page was read, while others come and all of them end."""
    known = await accept(pool, *(f"DEVICE{n:04}" for n in range(60)))

    async def work() -> None:
        for turn in range(12):
            await apply(pool, *(finish(dispatch) for dispatch in await claim(pool, 9)))
            await accept(pool, *(f"MORE{turn:02}{n:02}" for n in range(4)))

    working = asyncio.create_task(work())
    while not working.done():
        ids = [task.id for task in await turn_over(pool, Filters(), limit=3)]
        assert ids == sorted(set(ids), reverse=True)
        assert set(known) <= set(ids)
    await working
