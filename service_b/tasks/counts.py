"""How much there is to do."""

from dataclasses import dataclass

from service_b.database import Queries

COUNT = """
SELECT waiting.count, due.count, dispatched.count, coalesce(extract(epoch FROM
    now() - least(waiting.oldest, due.oldest, dispatched.oldest)), 0)::double precision
FROM (SELECT count(*), min(created_at) AS oldest FROM task WHERE status = 'pending' AND NOT active) waiting,
     (SELECT count(*), min(created_at) AS oldest FROM task WHERE due_at IS NOT NULL) due,
     (SELECT count(*), min(created_at) AS oldest FROM task WHERE active AND due_at IS NULL) dispatched
"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many unfinished tasks there are in each state, and the age of the oldest in seconds."""

    waiting: int
    due: int
    dispatched: int
    oldest_seconds: float


async def count(connection: Queries) -> Backlog:
    """Count the unfinished tasks. Reads each of them: costs about a second for a million."""
    rows = await connection.fetch(COUNT)
    return Backlog(*rows[0])
