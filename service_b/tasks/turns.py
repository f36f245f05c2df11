"""Claiming in turn: where clients have names, one's thousands do not hold up another's single task."""

from collections import defaultdict
from datetime import datetime
from itertools import count
from typing import Any

from service_b.database import Queries
from service_b.tasks.claims import BULK, DISPATCH, ROOM_FOR_SINGLE, SINGLE, Dispatch
from service_b.tasks.lanes import Lane, Lanes, by_lane

NEXT_NAME = """submitted_by FROM task WHERE {is_lane} AND submitted_by > {after}
    AND due_at >= coalesce({since}::timestamptz, '-infinity') ORDER BY submitted_by LIMIT 1"""

IN_TURN = """{lane}_client AS (
    -- Those who have something due, now or later: a look into the index for each.
    SELECT (SELECT {first_name}) AS name
    UNION ALL
    SELECT (SELECT {next_name}) FROM {lane}_client WHERE name IS NOT NULL
), {lane}_turn AS MATERIALIZED (
    -- A share for each, and one for whatever has waited longest. Where not all have a turn, the others come next.
    SELECT name, greatest({room} / (count(*) OVER () + 1), 1) AS share
    FROM {lane}_client WHERE name IS NOT NULL ORDER BY name <= {last}, name LIMIT {room}
), {lane}_fair AS MATERIALIZED (
    SELECT mine.id, mine.due_at FROM {lane}_turn AS turn CROSS JOIN LATERAL (
        SELECT id, due_at FROM task WHERE submitted_by = turn.name AND {claimable}
        ORDER BY due_at LIMIT turn.share FOR UPDATE SKIP LOCKED
    ) AS mine
), {lane}_rest AS MATERIALIZED (
    -- What the others leave, and what came without a name.
    SELECT id, due_at FROM task WHERE {claimable} AND id NOT IN (SELECT id FROM {lane}_fair)
    ORDER BY due_at LIMIT {room} - (SELECT count(*) FROM {lane}_fair) FOR UPDATE SKIP LOCKED
), {lane} AS MATERIALIZED (
    SELECT id, due_at FROM {lane}_fair UNION ALL SELECT id, due_at FROM {lane}_rest
)"""
"""Of a lane as many as there is room for."""

LAST = "(SELECT name FROM {lane}_turn ORDER BY name <= {last} DESC, name DESC LIMIT 1)"


def _of_lane(template: str, lane: str, is_lane: str, since: str, last: str, **others: str) -> str:
    names = {"lane": lane, "last": last} | others
    for key, after in (("first_name", "''"), ("next_name", f"{lane}_client.name")):
        names[key] = NEXT_NAME.format(is_lane=is_lane, after=after, since=since)
    return template.format(**names)


OF_SINGLE = "single", "NOT bulk", "$2", "$6"
OF_BULK = "bulk", "bulk", "$4", "$7"

CLAIM_IN_TURN = f"""
WITH RECURSIVE room AS MATERIALIZED (
    SELECT {ROOM_FOR_SINGLE} AS for_single
), {_of_lane(IN_TURN, *OF_SINGLE, claimable=SINGLE, room="(SELECT for_single FROM room)")}
, {_of_lane(IN_TURN, *OF_BULK, claimable=BULK, room="($1 - (SELECT count(*) FROM single))")}
UPDATE task {DISPATCH},
    CASE WHEN bulk THEN {_of_lane(LAST, *OF_BULK)} ELSE {_of_lane(LAST, *OF_SINGLE)} END AS last, submitted_by
"""


async def claim_in_turn(
    connection: Queries,
    limit: int,
    lanes: Lanes,
    *,
    latest: datetime | None = None,
    only_single: bool = False,
) -> list[Dispatch]:
    """Begin the next attempt of up to `limit` due tasks, as `claims.claim` does, but of each lane as many of each
    client's.

    They come in turn, too: a queue keeps their order.
    """
    single, bulk = lanes.single, lanes.bulk
    since_single, since_bulk, share = lanes.ask(limit, only_single=only_single)
    rows = await connection.fetch(CLAIM_IN_TURN, limit, since_single, latest, since_bulk, share, single.last, bulk.last)
    singles, bulks = by_lane(rows)
    _note(single, singles, since_single, is_all=len(singles) < limit - share)
    if not only_single:
        _note(bulk, bulks, since_bulk, is_all=len(rows) < limit)
    return [Dispatch(*tuple(row)[:-3]) for row in _in_turn(singles) + _in_turn(bulks)]


def _note(lane: Lane, rows: list[Any], since: datetime | None, *, is_all: bool) -> None:
    """Note how far a lane has been claimed, and who had the last turn.

    While something is left behind, nobody knows how long that has been due: so the floor rises when nothing is.
    """
    if not is_all and since is None:
        lane.floor.forget()
    elif rows and is_all:
        lane.floor.move(rows[0]["reached"], is_last=True)
    if rows:
        lane.last = rows[0]["last"] or ""


def _in_turn(rows: list[Any]) -> list[Any]:
    places: defaultdict[str | None, count[int]] = defaultdict(count)
    return sorted(rows, key=lambda row: next(places[row["submitted_by"]]))
