"""What is kept of finished tasks for another try."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from service_b.database import Queries

FIND_KEPT = """
SELECT id, parameters, sealed_for FROM finished
-- Says the same twice, so that no partition is opened but those of the days between.
WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3 AND parameters IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Kept:
    """The parameters (JSON text) of a finished task, and which one they are sealed for if not for that."""

    parameters: str = field(repr=False)
    sealed_for: UUID | None


async def find_kept(connection: Queries, ids: Sequence[UUID]) -> list[Kept | None]:
    """Find the parameters of finished tasks; None where they are not kept, or where there is no such task."""
    rows = await connection.fetch(FIND_KEPT, ids, min(ids), max(ids))
    found = {row["id"]: Kept(row["parameters"], row["sealed_for"]) for row in rows}
    return [found.get(id_) for id_ in ids]
