"""Claiming in turn: where clients have names, one's thousands do not hold up another's single task."""

from collections import defaultdict
from datetime import datetime
from itertools import count

from service_b.database import Queries
from service_b.tasks.claims import DISPATCH, Dispatch, Floor
from service_b.tasks.states import NOW, USED_UP

CLAIMABLE = f"""due_at >= coalesce($2::timestamptz, '-infinity')
      AND due_at <= least({NOW}, $3::timestamptz) AND deadline_at > {NOW} AND ({USED_UP}) IS NOT TRUE"""

NEXT_NAME = """submitted_by FROM task
    WHERE submitted_by > {} AND due_at >= coalesce($2::timestamptz, '-infinity') ORDER BY submitted_by LIMIT 1"""

CLAIM_IN_TURN = f"""
WITH RECURSIVE client AS (
    -- Those who have something due, now or later: a look into the index for each.
    SELECT (SELECT {NEXT_NAME.format("''")}) AS name
    UNION ALL
    SELECT (SELECT {NEXT_NAME.format("client.name")}) FROM client WHERE name IS NOT NULL
), turn AS MATERIALIZED (
    -- A share for each, and one for whatever has waited longest. Where not all have a turn, the others come next.
    SELECT name, greatest($1 / (count(*) OVER () + 1), 1) AS share
    FROM client WHERE name IS NOT NULL ORDER BY name <= $4, name LIMIT $1
), fair AS MATERIALIZED (
    SELECT mine.id, mine.due_at FROM turn CROSS JOIN LATERAL (
        SELECT id, due_at FROM task WHERE submitted_by = turn.name AND {CLAIMABLE}
        ORDER BY due_at LIMIT turn.share FOR UPDATE SKIP LOCKED
    ) AS mine
), rest AS MATERIALIZED (
    -- What the others leave, and what came without a name.
    SELECT id, due_at FROM task WHERE {CLAIMABLE} AND id NOT IN (SELECT id FROM fair)
    ORDER BY due_at LIMIT $1 - (SELECT count(*) FROM fair) FOR UPDATE SKIP LOCKED
), due AS MATERIALIZED (
    SELECT id, due_at FROM fair UNION ALL SELECT id, due_at FROM rest
)
UPDATE task {DISPATCH}, (SELECT name FROM turn ORDER BY name <= $4 DESC, name DESC LIMIT 1) AS last,
    submitted_by
"""


class Turns:
    """Whose turn is next, and from where on to look (see `Floor`)."""

    def __init__(self) -> None:
        self.floor = Floor()
        # The last who had a turn.
        self.last = ""


async def claim_in_turn(
    connection: Queries, limit: int, turns: Turns, *, latest: datetime | None = None
) -> list[Dispatch]:
    """Begin the next attempt of up to `limit` due tasks, as `claims.claim` does, but as many of each client's.

    They come in turn, too: a queue keeps their order.
    While something is left behind, nobody knows how long that has been due: so the floor rises when nothing is.
    """
    since = turns.floor.since()
    rows = await connection.fetch(CLAIM_IN_TURN, limit, since, latest, turns.last)
    if len(rows) == limit and since is None:
        turns.floor.forget()
    elif rows and len(rows) < limit:
        turns.floor.move(rows[0]["reached"], is_last=True)
    if rows:
        turns.last = rows[0]["last"] or ""
    places: defaultdict[str | None, count[int]] = defaultdict(count)
    rows.sort(key=lambda row: next(places[row["submitted_by"]]))
    return [Dispatch(*tuple(row)[:-3]) for row in rows]
