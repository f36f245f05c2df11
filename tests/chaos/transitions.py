"""Every change of every task row, captured in the database: not by the application, and in its own transactions."""

import asyncpg

from tests.chaos.history import History

FINAL = ("success", "error")

INSTALL = """
CREATE TABLE chaos_transition (
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    id uuid NOT NULL,
    old_status text,
    status text,
    old_active boolean,
    active boolean,
    old_attempt integer,
    attempt integer
);
CREATE FUNCTION chaos_capture() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND (old.status, old.active, old.attempt, old.code, old.finished_at)
            IS NOT DISTINCT FROM (new.status, new.active, new.attempt, new.code, new.finished_at) THEN
        RETURN NULL;
    END IF;
    INSERT INTO chaos_transition (id, old_status, status, old_active, active, old_attempt, attempt)
    VALUES (coalesce(new.id, old.id), old.status, new.status, old.active, new.active, old.attempt, new.attempt);
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_capture AFTER INSERT OR UPDATE OR DELETE ON task FOR EACH ROW EXECUTE FUNCTION chaos_capture();
"""


async def install(connection: asyncpg.Connection) -> None:
    """Begin to capture."""
    await connection.execute(INSTALL)


async def last(connection: asyncpg.Connection) -> int:
    """The number of the last transition so far."""
    number: int = await connection.fetchval("SELECT coalesce(max(n), 0) FROM chaos_transition")
    return number


async def any_final_after(connection: asyncpg.Connection, number: int) -> bool:
    """Tell whether a task has ended since that transition."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM chaos_transition WHERE n > $1 AND status <> 'pending' AND old_status = 'pending')",
        number,
    )
    return found


async def unfinished(connection: asyncpg.Connection) -> int:
    """Count the tasks that have not ended."""
    count: int = await connection.fetchval("SELECT count(*) FROM task WHERE status = 'pending'")
    return count


async def dump(connection: asyncpg.Connection, history: History, offset: float) -> None:
    """Write all transitions and all rows to the history; `offset` is the monotonic clock's to Unix time."""
    async with connection.transaction():
        async for row in connection.cursor(
            "SELECT n, extract(epoch FROM at)::float8 AS w, id::text AS task, old_status, status, old_active, active,"
            " old_attempt, attempt FROM chaos_transition ORDER BY n"
        ):
            fields = dict(row)
            history.write("transition", t=fields["w"] - offset, **fields)
        async for row in connection.cursor(
            "SELECT id::text AS task, seq, equipment_id AS device, status, code, reason, attempt, unknowns, active,"
            " parameters->>'username' AS marker, extract(epoch FROM created_at)::float8 AS created FROM task"
        ):
            history.write("row", **dict(row))
