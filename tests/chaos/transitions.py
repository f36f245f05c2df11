"""Every change of every task row, captured in the database: not by the application, and in its own transactions."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import asyncpg

from tests.chaos.history import Event, History

FINAL = ("success", "error")

INSTALL = """
-- The kernel's time since the start: the database's own clock may be another nemesis's victim.
CREATE FUNCTION chaos_now() RETURNS float8 LANGUAGE sql AS
    $$ SELECT split_part(pg_read_file('/proc/uptime'), ' ', 1)::float8 $$;
CREATE TABLE chaos_change (
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at float8 NOT NULL DEFAULT chaos_now(),
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id uuid NOT NULL,
    -- Which table the row is in, before and after.
    old_place text,
    place text,
    old jsonb,
    new jsonb,
    marker text,
    is_end boolean NOT NULL
);
CREATE INDEX ON chaos_change (n) WHERE is_end;
CREATE FUNCTION chaos_capture() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    ignored CONSTANT text[] := '{parameters,due_at,dispatched_at,overdue_at,unknowns,losts,chances,answers_before}';
    before jsonb;
    after jsonb;
    row_marker text;
BEGIN
    IF TG_OP <> 'INSERT' THEN before := to_jsonb(old) - ignored - 'history'; END IF;
    IF TG_OP <> 'DELETE' THEN after := to_jsonb(new) - ignored - 'history'; END IF;
    IF before = after THEN RETURN NULL; END IF;
    IF TG_OP = 'INSERT' THEN row_marker := new.parameters->>'username'; END IF;
    INSERT INTO chaos_change (id, old_place, place, old, new, marker, is_end) VALUES (
        coalesce(new.id, old.id), CASE WHEN before IS NOT NULL THEN TG_ARGV[0] END,
        CASE WHEN after IS NOT NULL THEN TG_ARGV[0] END, before, after, row_marker,
        CASE TG_ARGV[0]
            WHEN 'task' THEN coalesce(before->>'status' = 'pending' AND after->>'status' <> 'pending', false)
            ELSE TG_OP = 'INSERT'
        END
    );
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_capture AFTER INSERT OR UPDATE OR DELETE ON task
    FOR EACH ROW EXECUTE FUNCTION chaos_capture('task');
"""
IN_TWO_TABLES = """
CREATE TRIGGER chaos_capture AFTER INSERT OR UPDATE ON finished
    FOR EACH ROW EXECUTE FUNCTION chaos_capture('finished');
CREATE VIEW chaos_row AS
    SELECT id, seq, equipment_id, 'pending' AS status, NULL::integer AS code, NULL AS reason, attempt, NULL AS ended_by,
        retry_of::text FROM task
    UNION ALL
    SELECT id, seq, equipment_id, status, code, reason, attempt, ended_by, retry_of::text FROM finished;
CREATE VIEW chaos_unfinished AS SELECT id, equipment_id FROM task;
"""
IN_ONE_TABLE = """
CREATE VIEW chaos_row AS SELECT id, seq, equipment_id, status, code, reason, attempt FROM task;
CREATE VIEW chaos_unfinished AS SELECT id, equipment_id FROM task WHERE status = 'pending';
"""


async def install(connection: asyncpg.Connection) -> None:
    """Begin to capture."""
    await connection.execute(INSTALL)
    two = await connection.fetchval("SELECT to_regclass('finished') IS NOT NULL")
    await connection.execute(IN_TWO_TABLES if two else IN_ONE_TABLE)


async def last(connection: asyncpg.Connection) -> int:
    """The number of the last change so far."""
    number: int = await connection.fetchval("SELECT coalesce(max(n), 0) FROM chaos_change")
    return number


async def any_final_after(connection: asyncpg.Connection, number: int) -> bool:
    """Tell whether a task has ended since that change."""
    # By the index, whatever the statistics say: it is asked often.
    newest: int | None = await connection.fetchval("SELECT max(n) FROM chaos_change WHERE is_end")
    return newest is not None and newest > number


async def unfinished(connection: asyncpg.Connection) -> int:
    """Count the tasks that have not ended."""
    count: int = await connection.fetchval("SELECT count(*) FROM chaos_unfinished")
    return count


async def dump(connection: asyncpg.Connection, history: History, now: float) -> None:
    """Write all transitions and all rows to the history; `now` is the monotonic clock's."""
    offset = await connection.fetchval("SELECT chaos_now()") - now
    changes = await connection.fetch(
        "SELECT n, at, transaction::text, id::text AS task, old_place, place, old, new, marker"
        " FROM chaos_change ORDER BY n"
    )
    markers = {change["task"]: change["marker"] for change in changes if change["marker"]}
    for transition in _transitions([dict(change) for change in changes]):
        history.write("transition", t=transition.pop("at") - offset, **transition)
    async with connection.transaction():
        async for row in connection.cursor(
            "SELECT id::text AS task, seq, equipment_id AS device, status, code, reason, attempt, ended_by, retry_of"
            " FROM chaos_row"
        ):
            history.write("row", marker=markers.get(row["task"]), **dict(row))


def _transitions(changes: list[dict[str, Any]]) -> Iterator[Event]:
    """Tell what happened to each task, wherever its row is: one that moves to the other table stays the same."""
    for change in changes:
        change["old"], change["new"] = (json.loads(change[side] or "null") for side in ("old", "new"))
    moved = {
        (change["task"], change["transaction"]): change["old"]
        for change in changes
        if change["old_place"] == "task" and change["place"] is None
    }
    arrived = {(change["task"], change["transaction"]) for change in changes if change["place"] == "finished"}
    for change in changes:
        key = change["task"], change["transaction"]
        old, new = change["old"], change["new"]
        if change["place"] is None and key in arrived:
            continue
        old_place = change["old_place"]
        if change["place"] == "finished" and old_place is None and key in moved:
            old, old_place = moved[key], "task"
        yield {
            "n": change["n"],
            "at": change["at"],
            "task": change["task"],
            "old_status": old and old.get("status", "pending"),
            "status": new and new.get("status", "pending"),
            "old_active": old and old.get("active", False),
            "active": new and new.get("active", False),
            "old_attempt": old and old.get("attempt"),
            "attempt": new and new.get("attempt"),
            "old_begun": _seconds(old, "begun_at"),
            # A finished one says when its last call began; it does not begin then.
            "begun": _seconds(new, "begun_at") if change["place"] == "task" else None,
            "deadline": _seconds(new, "deadline_at"),
            "old_lease": old and old.get("lease"),
            "lease": new and new.get("lease"),
        }


def _seconds(row: dict[str, Any] | None, column: str) -> float | None:
    """A time of the database's clock."""
    text = row and row.get(column)
    return datetime.fromisoformat(text).timestamp() if text else None
