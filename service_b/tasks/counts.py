"""How much there is to do."""

from dataclasses import dataclass

from service_b.database import Queries
from service_b.tasks.states import DISPATCHED, DUE, NOW, RUNNING, SCHEDULED, WAITING

OLDEST = "min(greatest(created_at, not_before)) AS oldest"
"""A task that was scheduled begins to wait at its time."""

COUNT = f"""
SELECT scheduled.count, waiting.count, due.count, dispatched.count, running.count,
    extract(epoch FROM now() - least(waiting.oldest, due.oldest, dispatched.oldest, running.oldest))::float8,
    extract(epoch FROM {NOW} - dispatched.since)::float8, extract(epoch FROM {NOW} - running.since)::float8
FROM (SELECT count(*) FROM task WHERE {SCHEDULED}) scheduled,
     (SELECT count(*), {OLDEST} FROM task WHERE {WAITING}) waiting,
     (SELECT count(*), {OLDEST} FROM task WHERE {DUE}) due,
     (SELECT count(*), {OLDEST}, min(dispatched_at) AS since FROM task WHERE {DISPATCHED}) dispatched,
     (SELECT count(*), {OLDEST}, min(begun_at) AS since FROM task WHERE {RUNNING}) running
"""

COUNT_KEYS = r"""
SELECT substr(parameters::text, 14, 16) AS key, count(*) FROM task
WHERE parameters::text ~ '^\{"sealed":"1\.[0-9a-f]{16}\.[^"]*"\}$' GROUP BY key
"""
"""The form of `messaging.sealing`, and nothing else: what a client wrote itself must not be shown to anybody."""

COUNT_OF = """
SELECT count(*) FROM (SELECT FROM task WHERE bulk IN (false, true) AND submitted_by = $1 LIMIT $2) AS unfinished
"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many unfinished tasks there are in each state, and in seconds: the age of the oldest that is not scheduled,
    and how long ago the oldest of those that are dispatched was, and the oldest call that is running began. None where
    there is none."""

    scheduled: int
    waiting: int
    due: int
    dispatched: int
    running: int
    oldest_seconds: float | None
    dispatched_seconds: float | None
    running_seconds: float | None


async def count(connection: Queries) -> Backlog:
    """Count the unfinished tasks. Reads each of them: costs about a second for a million."""
    rows = await connection.fetch(COUNT)
    return Backlog(*rows[0])


async def count_keys(connection: Queries) -> dict[str, int]:
    """Count the unfinished tasks that are sealed, by the id of the key that opens them. As dear as `count`."""
    return {row["key"]: row["count"] for row in await connection.fetch(COUNT_KEYS)}


async def count_of(connection: Queries, submitted_by: str, limit: int) -> int:
    """Count the unfinished tasks that came with tokens of this name, but not beyond `limit`. Reads each of them."""
    count: int = await connection.fetchval(COUNT_OF, submitted_by, limit)
    return count
