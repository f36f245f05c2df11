"""Storing new tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from service_b.database import Queries

INSERT = """
WITH new AS (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::text[])
    WITH ORDINALITY AS new (id, equipment_id, timeout_seconds, parameters, position)
), first AS (
    INSERT INTO task (id, equipment_id, timeout_seconds, parameters, time_limit_seconds, deadline_at,
                      active, due_at)
    SELECT DISTINCT ON (equipment_id COLLATE "C") id, equipment_id, timeout_seconds, parameters::json,
           timeout_seconds + $5, now() + $6::interval, true, now()
    FROM new ORDER BY equipment_id COLLATE "C", position
    ON CONFLICT (equipment_id) WHERE active DO UPDATE SET active = true WHERE false
    RETURNING id
)
INSERT INTO task (id, equipment_id, timeout_seconds, parameters, time_limit_seconds, deadline_at, active)
SELECT id, equipment_id, timeout_seconds, parameters::json,
       timeout_seconds + $5, now() + $6::interval, false
FROM new WHERE id NOT IN (SELECT id FROM first) ORDER BY position
"""


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to store. `parameters` is JSON text."""

    id: UUID
    equipment_id: str
    timeout_seconds: int
    parameters: str = field(repr=False)


async def insert(
    connection: Queries, tasks: Sequence[NewTask], *, grace_seconds: float, deadline_seconds: float
) -> None:
    """Store new tasks: the first of each device becomes due, unless one is active already; the others wait.

    The conflict's `DO UPDATE ... WHERE false` writes nothing but locks the active row until this commits: it
    cannot finish, and find nothing waiting, while a task that has to wait for it is being stored.
    """
    await connection.execute(
        INSERT,
        [task.id for task in tasks],
        [task.equipment_id for task in tasks],
        [task.timeout_seconds for task in tasks],
        [task.parameters for task in tasks],
        grace_seconds,
        timedelta(seconds=deadline_seconds),
    )
