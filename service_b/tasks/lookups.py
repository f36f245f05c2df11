"""Looking tasks up for their clients."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from service_b.database import Queries

LOOK_UP = """
SELECT id, equipment_id, NULL AS code FROM task WHERE id = ANY($1::uuid[])
UNION ALL
SELECT id, equipment_id, code FROM finished
WHERE id = ANY($1::uuid[])
  -- Says the same once more, so that no partition is opened but those of the days between.
  AND id BETWEEN $2 AND $3
"""


@dataclass(frozen=True, slots=True)
class Status:
    """What a client may know of a task. `code` is None until it is finished, then 200, 404 or 500."""

    equipment_id: str
    code: int | None


async def look_up(connection: Queries, ids: Sequence[UUID]) -> list[Status | None]:
    """Look tasks up; None for each that does not exist."""
    if not ids:
        return []
    rows = await connection.fetch(LOOK_UP, ids, min(ids), max(ids))
    found = {row["id"]: Status(row["equipment_id"], row["code"]) for row in rows}
    return [found.get(id_) for id_ in ids]
