"""Looking tasks up for their clients."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from service_b.database import Queries

LOOK_UP = """
SELECT asked.id, found.equipment_id, found.code
FROM unnest($1::uuid[]) AS asked (id)
CROSS JOIN LATERAL (
    SELECT equipment_id, NULL AS code FROM task WHERE task.id = asked.id
    UNION ALL
    SELECT equipment_id, code FROM finished WHERE finished.id = asked.id
    OFFSET 0
) AS found
"""


@dataclass(frozen=True, slots=True)
class Status:
    """What a client may know of a task. `code` is None until it is finished, then 200, 404 or 500."""

    equipment_id: str
    code: int | None


async def look_up(connection: Queries, ids: Sequence[UUID]) -> list[Status | None]:
    """Look tasks up; None for each that does not exist."""
    rows = await connection.fetch(LOOK_UP, ids)
    found = {row["id"]: Status(row["equipment_id"], row["code"]) for row in rows}
    return [found.get(id_) for id_ in ids]
