"""How much there is to do."""

from dataclasses import dataclass

from service_b.database import Queries
from service_b.tasks.states import DISPATCHED, DUE, WAITING

COUNT = f"""
SELECT waiting.count, due.count, dispatched.count, coalesce(extract(epoch FROM
    now() - least(waiting.oldest, due.oldest, dispatched.oldest)), 0)::double precision
FROM (SELECT count(*), min(created_at) AS oldest FROM task WHERE {WAITING}) waiting,
     (SELECT count(*), min(created_at) AS oldest FROM task WHERE {DUE}) due,
     (SELECT count(*), min(created_at) AS oldest FROM task WHERE {DISPATCHED}) dispatched
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
