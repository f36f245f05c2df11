"""Lists of tasks, newest first, a page at a time.

Two statements make a page: the unfinished are asked for first, so that one that is moved meanwhile is found in both
tables rather than in none. Each reads along an index that fits the filters, and no more than `MAX_READ` of its entries:
what it has seen by then is the page, which may be short, even empty, and yet be followed by another. So no filter makes
a statement read for ever. (The unfinished of one device, and what is dispatched or running, are few, and read whole.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import get_args
from uuid import UUID

from asyncpg import Record

from service_b.database import Queries
from service_b.tasks.resources import AHEAD, FINISHED, LINE, UNFINISHED, State, Task, read
from service_b.tasks.states import DISPATCHED, RUNNING, SCHEDULED, WAITING

UNFINISHED_STATES: frozenset[State] = frozenset(get_args(State)[:5])
MAX_READ = 10_000
MARGIN = timedelta(seconds=10)
"""The clock that makes ids and the database's, which tells when a task was created, differ by less."""

FILTERS = """
    ($5::text IS NULL OR equipment_id = $5) AND ($6::text IS NULL OR external_id = $6)
    AND ($7::text IS NULL OR submitted_by = $7) AND ($8::text[] IS NULL OR equipment_id LIKE ANY($8))
    AND ($9::text IS NULL OR state = $9)
    AND ($10::timestamptz IS NULL OR created_at >= $10) AND ($11::timestamptz IS NULL OR created_at < $11)
"""

BY_ID = "id < $1 AND id >= $2 ORDER BY id DESC LIMIT $3"


def _by(column: str, parameter: str) -> str:
    """Read along an index of (column, id), which nothing but these comparisons of rows can be meant for."""
    return f"""
        {column} IS NOT NULL AND ({column}, id) < ({parameter}::text, $1) AND ({column}, id) >= ({parameter}::text, $2)
        ORDER BY {column} DESC, id DESC LIMIT $3
    """


def _of(*conditions: str) -> str:
    """Read all tasks that meet one of these conditions, each of them by its own index, and not by their ids."""
    arms = " UNION ALL ".join(f"SELECT * FROM task WHERE {condition}" for condition in conditions)
    return f"SELECT {UNFINISHED} FROM ({arms} OFFSET 0) AS task WHERE {BY_ID}"


def _unfinished(scanned: str) -> str:
    return f"""
        WITH scanned AS MATERIALIZED ({scanned}),
        -- In the order of what was scanned, of which no more is read than this takes.
        found AS MATERIALIZED (SELECT * FROM scanned WHERE {FILTERS} LIMIT $4),
        {LINE}
        SELECT found.*, {AHEAD} AS ahead, true AS listed FROM found LEFT JOIN line USING (seq)
        UNION ALL
        SELECT *, NULL, false FROM (SELECT * FROM scanned OFFSET $3 - 1 LIMIT 1) AS last
        WHERE (SELECT count(*) FROM found) < $4
    """


def _finished(condition: str) -> str:
    return f"""
        WITH scanned AS MATERIALIZED (SELECT {FINISHED} FROM finished WHERE {condition}),
        found AS MATERIALIZED (SELECT * FROM scanned WHERE {FILTERS} LIMIT $4)
        SELECT *, true AS listed FROM found
        UNION ALL
        SELECT *, false FROM (SELECT * FROM scanned OFFSET $3 - 1 LIMIT 1) AS last
        WHERE (SELECT count(*) FROM found) < $4
    """


LIST_UNFINISHED = {
    "id": _unfinished(f"SELECT {UNFINISHED} FROM task WHERE {BY_ID}"),
    "external_id": _unfinished(f"SELECT {UNFINISHED} FROM task WHERE {_by('external_id', '$6')}"),
    "device": _unfinished(_of(*(f"equipment_id = $5 AND {condition}" for condition in ("active", WAITING, SCHEDULED)))),
    "dispatched": _unfinished(_of(f"{DISPATCHED} AND dispatched_at > '-infinity'")),
    "running": _unfinished(_of(f"{RUNNING} AND overdue_at > '-infinity'")),
}
"""By the index that is read along."""

LIST_FINISHED = {
    "id": _finished(BY_ID),
    "external_id": _finished(_by("external_id", "$6")),
    "device": _finished(_by("equipment_id", "$5")),
    "client": _finished(_by("submitted_by", "$7")),
    "failure": _finished(f"status = 'error' AND {BY_ID}"),
}


@dataclass(frozen=True, slots=True)
class Filters:
    """Which tasks a client wants to see; None: whatever it is."""

    equipment_id: str | None = None
    state: State | None = None
    external_id: str | None = None
    created_from: datetime | None = None
    # None that was created at this time, or later.
    created_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class Sight:
    """Which tasks a client may see; None: all. `devices` are patterns as LIKE takes them."""

    submitted_by: str | None = None
    devices: Sequence[str] | None = None


EVERYTHING = Sight()


@dataclass(frozen=True, slots=True)
class Page:
    """Tasks, newest first, and below which id the next page begins; None: there is no more."""

    tasks: Sequence[Task]
    next: UUID | None


async def read_page(
    connection: Queries,
    filters: Filters,
    sight: Sight = EVERYTHING,
    *,
    before: UUID | None = None,
    limit: int = 50,
    max_read: int = MAX_READ,
) -> Page:
    """Read up to `limit` tasks whose ids are less than `before`."""
    arguments = (
        *_bounds(filters, before),
        max_read,
        limit + 1,
        filters.equipment_id,
        filters.external_id,
        sight.submitted_by,
        sight.devices,
        filters.state,
        filters.created_from,
        filters.created_to,
    )
    sides = []
    if filters.state is None or filters.state in UNFINISHED_STATES:
        sides.append(await connection.fetch(LIST_UNFINISHED[_index_of_unfinished(filters)], *arguments))
    if filters.state not in UNFINISHED_STATES:
        sides.append(await connection.fetch(LIST_FINISHED[_index_of_finished(filters, sight)], *arguments))
    # Down to this id nothing is missing.
    reached = max(_reached(rows, limit + 1) for rows in sides)
    found = {row["id"]: row for rows in sides for row in rows if row["listed"] and row["id"] >= reached}
    ids = sorted(found, reverse=True)
    tasks = [read(found[id_]) for id_ in ids[:limit]]
    if len(ids) > limit:
        return Page(tasks, ids[limit - 1])
    return Page(tasks, reached if reached.int else None)


def _bounds(filters: Filters, before: UUID | None) -> tuple[UUID, UUID]:
    """Tell below which id to begin, and with which one to end: ids are UUIDv7, and say when they were made."""
    until = _first_id(filters.created_to + MARGIN) if filters.created_to else LAST
    return min(before or LAST, until), _first_id(filters.created_from - MARGIN) if filters.created_from else FIRST


FIRST, LAST = UUID(int=0), UUID(int=2**128 - 1)


def _first_id(time: datetime) -> UUID:
    """Return the least id of a millisecond."""
    return UUID(int=min(max(int(time.timestamp() * 1000), 0), 2**48 - 1) << 80)


def _reached(rows: Sequence[Record], most: int) -> UUID:
    """Tell down to which id a statement has told all that there is; the first one of all if it has read to the end."""
    if len(rows) >= most or (rows and not all(row["listed"] for row in rows)):
        return UUID(int=min(row["id"].int for row in rows))
    return FIRST


def _index_of_unfinished(filters: Filters) -> str:
    if filters.external_id is not None:
        return "external_id"
    if filters.equipment_id is not None:
        return "device"
    return filters.state if filters.state in ("dispatched", "running") else "id"


def _index_of_finished(filters: Filters, sight: Sight) -> str:
    if filters.external_id is not None:
        return "external_id"
    if filters.equipment_id is not None:
        return "device"
    if filters.state in ("failed", "cancelled", "expired"):
        return "failure"
    return "id" if sight.submitted_by is None else "client"
