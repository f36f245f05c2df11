"""Whether service A answers anybody: by this ends are judged, and it is spared while it is silent."""

from service_b.database import Queries

NOTE = """
WITH mine AS MATERIALIZED (SELECT one FROM service_a FOR UPDATE SKIP LOCKED)
UPDATE service_a SET answers = answers + $1::integer,
    silent_ends = $2 + CASE WHEN $1 = 0 THEN silent_ends ELSE 0 END
WHERE one = ANY(ARRAY(SELECT one FROM mine))
RETURNING true
"""


async def note(connection: Queries, *, answered: bool, silent_ends: int) -> bool:
    """Note whether service A has answered anybody, and how many calls have ended without an answer since.

    False when somebody else holds the row: nothing is noted then.
    """
    noted: bool | None = await connection.fetchval(NOTE, int(answered), silent_ends)
    return noted is not None
