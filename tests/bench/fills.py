"""Rows that a table has grown by, made by SQL: much faster than by clients, and just as durable."""

from concurrent.futures import ThreadPoolExecutor

from tests.bench.stage import Room

DAYS = 30
"""Over so many days, a partition each, what is finished is spread."""
AT_ONCE = 2


def fill_pending(room: Room, rows: int) -> None:
    """Four fifths wait for their next attempt, as after an hour without service A; a fifth wait behind those."""
    for active, count in ((True, rows * 4 // 5), (False, rows // 5)):
        room.sql(
            """
            INSERT INTO task (id, equipment_id, timeout_seconds, parameters, time_limit_seconds, deadline_at,
                              active, due_at, attempt, dispatched_at, reason)
            SELECT uuidv7(interval '-1 hour'), 'GROWN' || lpad(number::text, 8, '0'), 14,
                   '{"username":"admin","password":"admin","vlan":534,"interfaces":[1,2,3,4]}', 89,
                   now() + interval '1 day', $1,
                   CASE WHEN $1 THEN now() + random() * interval '1 hour' + interval '2 hours' END, $1::integer,
                   CASE WHEN $1 THEN now() END, CASE WHEN $1 THEN 'service A answered 503' END
            FROM generate_series(1, $2::integer) AS number
            """,
            active,
            count,
        )


def fill_finished(room: Room, rows: int, days: int = DAYS) -> None:
    """All of them were configured, as many on each of the last days."""
    with ThreadPoolExecutor(AT_ONCE) as sessions:
        # Ends with the error of the first that has one.
        list(sessions.map(lambda days_ago: _fill_day(room, days_ago, rows // days), range(1, days + 1)))


def _fill_day(room: Room, days_ago: int, rows: int) -> None:
    """Make a day's partition and its rows, in the order of their acceptance."""
    partition = room.sql("SELECT finished_make_partition((now() AT TIME ZONE 'UTC')::date - $1::integer)", days_ago)
    room.sql(
        f"""
        INSERT INTO {partition[0][0]} (id, seq, created_at, finished_at, timeout_seconds, attempt, code, status,
                                       equipment_id, reason)
        SELECT uuidv7(accepted_at - now()), number, accepted_at, accepted_at + interval '1 minute', 14, 1, 200,
               'success', 'GROWN' || lpad((number % 1000000)::text, 8, '0'), '200 success'
        FROM generate_series(1, $2::integer) AS number,
            -- Not to the end of the day: uuidv7 counts from when it is called.
            LATERAL (SELECT date_trunc('day', now(), 'UTC') - make_interval(days => $1)
                            + number * interval '23 hours' / $2) AS day (accepted_at)
        """,
        days_ago,
        rows,
    )


def fill_one_device(room: Room, rows: int) -> None:
    """One waits for its next attempt, all others behind it."""
    room.sql(
        """
        INSERT INTO task (id, equipment_id, timeout_seconds, parameters, time_limit_seconds, deadline_at,
                          active, due_at, attempt, dispatched_at)
        SELECT uuidv7(interval '-1 hour'), 'GROWN00000001', 14,
               '{"username":"admin","password":"admin","vlan":534,"interfaces":[1,2,3,4]}', 89,
               now() + interval '1 day', number = 1, CASE WHEN number = 1 THEN now() + interval '2 hours' END,
               (number = 1)::integer, CASE WHEN number = 1 THEN now() END
        FROM generate_series(1, $1::integer) AS number
        """,
        rows,
    )
