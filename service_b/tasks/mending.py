"""Mending what was written while the database's clock had jumped ahead, and was not corrected yet.

It is done again for a while: what was written then may be committed later, or somebody may hold its row.
"""

from datetime import datetime, timedelta

from service_b.database import Queries
from service_b.tasks.leases import MARGIN_SECONDS
from service_b.tasks.states import RUNNING

NOTICED = timedelta(minutes=1)
"""A jump is corrected sooner than this, and what it delays for less needs no mending."""

# A device that has to be left alone for long after a call of a long limit may look as if it were due late: it is due
# late then, by a part of the jump.
MEND_DUE = f"""
WITH late AS MATERIALIZED (
    SELECT id FROM task WHERE bulk IN (false, true) AND due_at > $1::timestamptz + $2::interval - $3::interval
      AND (chances IS NULL OR due_at > $1 + make_interval(secs => time_limit_seconds + {MARGIN_SECONDS}))
    FOR UPDATE SKIP LOCKED
)
UPDATE task SET due_at = greatest(due_at - $2, $1) WHERE id = ANY(ARRAY(SELECT id FROM late))
"""

MEND_CALLS = f"""
WITH late AS MATERIALIZED (
    SELECT id FROM task WHERE {RUNNING} AND overdue_at > $1::timestamptz + $2::interval - $3::interval
      AND overdue_at > $1 + make_interval(secs => time_limit_seconds + {MARGIN_SECONDS})
    FOR UPDATE SKIP LOCKED
)
UPDATE task SET begun_at = $1, overdue_at = $1 + make_interval(secs => time_limit_seconds + {MARGIN_SECONDS})
WHERE id = ANY(ARRAY(SELECT id FROM late))
"""


async def mend(connection: Queries, now: datetime, jump: timedelta) -> None:
    """Bring forward what seems due, or overdue, only after a jump ahead that has just been corrected."""
    if jump > NOTICED:
        await connection.execute(MEND_DUE, now, jump, NOTICED)
        await connection.execute(MEND_CALLS, now, jump, NOTICED)
