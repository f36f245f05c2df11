"""Looking tasks up for their clients."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from asyncpg import Record

from service_b.database import Queries

UNFINISHED = "SELECT id, equipment_id, submitted_by FROM task WHERE id = ANY($1::uuid[])"

FINISHED = """
SELECT id, equipment_id, code, submitted_by FROM finished
-- Says the same twice, so that no partition is opened but those of the days between.
WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3
"""

FINISHED_OF_MANY_DAYS = """
SELECT mine.* FROM unnest($1::uuid[]) AS asked (id) CROSS JOIN LATERAL (
    SELECT id, equipment_id, code, submitted_by FROM finished WHERE finished.id = asked.id OFFSET 0
) AS mine
"""
"""Each is looked for in the one partition of its day; the other statement would look for each in all of them."""

FEW_DAYS_MS = 2 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Status:
    """What a client may know of a task. `code` is None until it is finished, then 200, 404 or 500."""

    equipment_id: str
    code: int | None
    # The name of the token that it came with, if it came with one.
    submitted_by: str | None = None


async def look_up(connection: Queries, ids: Sequence[UUID]) -> list[Status | None]:
    """Look tasks up; None for each that does not exist.

    A task moves one way, at one moment: what is not among the unfinished any more is found among the finished
    afterwards. Those who ask mostly ask for unfinished ones, and locking all partitions costs more than to find these.
    """
    found = {id_: Status(device, None, token) for id_, device, token in await connection.fetch(UNFINISHED, ids)}
    if others := [id_ for id_ in ids if id_ not in found]:
        for row in await _find_finished(connection, others):
            found[row["id"]] = Status(row["equipment_id"], row["code"], row["submitted_by"])
    return [found.get(id_) for id_ in ids]


async def _find_finished(connection: Queries, ids: Sequence[UUID]) -> Sequence[Record]:
    first, last = min(ids), max(ids)
    # Ids are UUIDv7: they begin with the milliseconds of their making.
    if (last.int >> 80) - (first.int >> 80) < FEW_DAYS_MS:
        return await connection.fetch(FINISHED, ids, first, last)
    return await connection.fetch(FINISHED_OF_MANY_DAYS, ids)
