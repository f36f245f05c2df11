"""Starting what was scheduled: when its time has come, a task takes its place in the line of its device."""

from datetime import datetime

from service_b.database import Queries
from service_b.tasks import promotion
from service_b.tasks.states import NOW

START = f"""
WITH mine AS MATERIALIZED (
    SELECT id FROM task WHERE start_at <= least($1::timestamptz, {NOW})
    ORDER BY start_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE task SET start_at = NULL WHERE id = ANY(ARRAY(SELECT id FROM mine)) RETURNING equipment_id
"""


async def start(connection: Queries, now: datetime, limit: int) -> int:
    """Start up to `limit` tasks, those first whose time came first; return how many there were.

    Their places are by acceptance, as all are: one may stand in front of a task that came after it, and waits. `now`
    is what the asking process takes for internal time: should the database's clock jump, nothing starts too soon.
    """
    rows = await connection.fetch(START, now, limit)
    # After the commit, as who stores a waiting task (see `promotion.promote`).
    await promotion.promote(connection, [row["equipment_id"] for row in rows])
    return len(rows)
