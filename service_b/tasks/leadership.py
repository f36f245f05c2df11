"""Which process does the maintenance: the one that has written itself down, for a few seconds at a time."""

from datetime import datetime
from uuid import UUID

from service_b.database import Queries

LEAD = """
WITH free AS MATERIALIZED (
    SELECT one FROM maintenance
    -- Further ahead than anybody writes it: by another's wrong clock.
    WHERE holder = $1 OR until < $2::timestamptz OR until > $2 + interval '20 s'
    FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE maintenance SET holder = $1, until = $2 + interval '15 s'
    WHERE one = ANY(ARRAY(SELECT one FROM free)) RETURNING one
)
-- Whoever sits on the row without leading keeps nobody from leading.
SELECT EXISTS (SELECT FROM taken) OR holder IS NOT DISTINCT FROM $1 OR until < $2 - interval '15 s' FROM maintenance
"""


async def lead(connection: Queries, process: UUID, now: datetime) -> bool:
    """Tell whether it is this process's turn; to be asked every few seconds, which keeps the turn.

    `now` is what the process takes for internal time: should the database's clock jump, the turn stays where it is.
    For a moment two may have it, as when one stood still: what they do must harm nothing when done twice.
    """
    leads: bool = await connection.fetchval(LEAD, process, now)
    return leads
