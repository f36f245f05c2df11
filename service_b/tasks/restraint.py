"""What keeps the relays from claiming all that is due: what is under way already, and service A being spared."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from service_b.database import Queries
from service_b.tasks.states import DISPATCHED, NOW

# While an old snapshot lives the index keeps an entry for every dispatch since then: so it is read only from a little
# below the oldest that was found last, and from where on the maintenance makes due again what nobody has begun.
LOOK = f"""
SELECT count(*)::integer AS dispatched, (SELECT last_value FROM task_begun) AS begun,
    (SELECT silent_ends FROM service_a) AS silent_ends, coalesce(min(dispatched_at), {NOW}) - interval '2 s' AS since
FROM (
    SELECT dispatched_at FROM task
    WHERE {DISPATCHED} AND dispatched_at > greatest($1::timestamptz, {NOW} - interval '15 s')
    ORDER BY dispatched_at LIMIT 10000
) AS dispatched
"""

LET_THROUGH = f"""
WITH mine AS MATERIALIZED (
    SELECT one FROM service_a
    -- Much later than now: the clock was set back.
    WHERE let_through_at BETWEEN {NOW} - $1::interval AND {NOW} + $1::interval IS NOT TRUE FOR UPDATE SKIP LOCKED
)
UPDATE service_a SET let_through_at = {NOW} WHERE one = ANY(ARRAY(SELECT one FROM mine)) RETURNING true
"""


@dataclass(frozen=True, slots=True)
class Look:
    """What a relay must know before it claims."""

    # Tasks that are under way to a call.
    dispatched: int
    # Calls that ever began; some more perhaps, never fewer.
    begun: int
    # Calls that ended in a row without an answer of service A's.
    silent_ends: int
    # From when on the next look has to look.
    since: datetime


async def look(connection: Queries, since: datetime | None = None) -> Look:
    """Look at what is under way; `since` is the last look's, if there was one."""
    [row] = await connection.fetch(LOOK, since)
    return Look(*row)


async def let_through(connection: Queries, every_seconds: float) -> bool:
    """Tell whether one task may be dispatched while service A is spared: one in that time, by whichever relay."""
    return bool(await connection.fetchval(LET_THROUGH, timedelta(seconds=every_seconds)))
