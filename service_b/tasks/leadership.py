"""Which process does the maintenance: the one that has written itself down, for a few seconds at a time."""

from uuid import UUID

from service_b.database import Queries
from service_b.tasks.states import NOW

LEAD = f"""
WITH free AS MATERIALIZED (
    SELECT one FROM maintenance
    -- Further ahead than anybody writes it: the clock was set back.
    WHERE holder = $1 OR until < {NOW} OR until > {NOW} + interval '20 s'
    FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE maintenance SET holder = $1, until = {NOW} + interval '15 s'
    WHERE one = ANY(ARRAY(SELECT one FROM free)) RETURNING one
)
-- Whoever sits on the row without leading keeps nobody from leading.
SELECT EXISTS (SELECT FROM taken) OR holder IS NOT DISTINCT FROM $1 OR until < {NOW} - interval '15 s' FROM maintenance
"""


async def lead(connection: Queries, process: UUID) -> bool:
    """Tell whether it is this process's turn; to be asked every few seconds, which keeps the turn.

    For a moment two may have it, as when one stood still: what they do must harm nothing when done twice.
    """
    leads: bool = await connection.fetchval(LEAD, process)
    return leads
