"""The same rates with a table that has grown: nothing may cost more because there is more of it.

A system with an empty table and one with a grown table are measured in turns, so that the machine's own ups and downs
meet both.
"""

from collections.abc import Callable

from tests.bench import accept, status
from tests.bench.load import Load
from tests.bench.path import send_through
from tests.bench.report import Report
from tests.bench.stage import Room, Stage
from tests.system.processes import Process

BATCH = 500_000

Rates = dict[str, Callable[[int], float]]
"""How to measure each rate; the number makes the names of a turn's devices its own."""


def measure(stage: Stage, report: Report) -> None:
    """Measure with many pending tasks, with many finished ones, and with many of one device."""
    sizes = stage.sizes
    for state, fill, rows in (
        ("pending", fill_pending, sizes.pending),
        ("finished", fill_finished, sizes.finished),
        ("one device", _fill_one_device, sizes.of_one_device),
    ):
        name = f"growth_{state.replace(' ', '_')}"
        with stage.room(f"{name}_empty") as empty, stage.room(name) as grown:
            fill(grown, rows)
            for room in (empty, grown):
                room.sql("VACUUM (ANALYZE) task, finished")
            empty.sql("CHECKPOINT")
            webs = [room.start("service_b") for room in (empty, grown)]
            web_rates = [_web_rates(stage, room, web) for room, web in zip((empty, grown), webs, strict=True)]
            _compare(stage, report, f"growth.{state}", web_rates)
            for web in webs:
                web.terminate()
            _compare(stage, report, f"growth.{state}", [_path_rate(stage, room) for room in (empty, grown)])
            row = grown.sql(
                """
                SELECT sum(pg_total_relation_size(oid))::bigint AS size,
                       (SELECT count(*) FROM task) + (SELECT count(*) FROM finished) AS count
                FROM pg_class WHERE relkind = 'r' AND relname ~ '^(task$|finished)'
                """
            )[0]
            report.add(f"growth.{state}.rows", row["count"], "")
            report.add(f"growth.{state}.row", row["size"] / row["count"], "bytes")


def _compare(stage: Stage, report: Report, name: str, sides: list[Rates]) -> None:
    for turn in range(stage.sizes.rounds):
        for what in sides[0]:
            empty, grown = (side[what](turn) for side in sides)
            report.add(f"{name}.{what}", grown, "/s")
            report.add(f"{name}.{what}, empty table", empty, "/s")


def _web_rates(stage: Stage, room: Room, web: Process) -> Rates:
    paths = status.make_tasks(stage, room, web)
    for state in paths:
        paths[state] = _grown(stage, room, state) or paths[state]
    accept.warm_up(room, web, stage)

    def accepted(turn: int) -> float:
        load = Load(web.port, 64, count=stage.sizes.tasks // 2, prefix=f"GROW{turn}X")
        return accept.sustained(room, web, load)[1]

    def answered(state: str) -> float:
        return status.ask(web, paths[state], stage.sizes.seconds, stage.sizes.warmup).rate

    return {
        "accept": accepted,
        "status unfinished": lambda _: answered("unfinished"),
        "status finished": lambda _: answered("finished"),
    }


def _path_rate(stage: Stage, room: Room) -> Rates:
    _forget_queue(room)
    processes = room.start_all()
    send_through(room, processes, stage.sizes.tasks // 4, "WARMPATH")
    return {"path": lambda turn: send_through(room, processes, stage.sizes.tasks // 2, f"PATH{turn}X").rate}


def _grown(stage: Stage, room: Room, state: str) -> list[str]:
    """Paths of some of the tasks that were there before, from all over the table."""
    rows = room.sql(
        """
        WITH sample AS (
            SELECT 'unfinished' AS state, id, equipment_id FROM task TABLESAMPLE SYSTEM (5)
            UNION ALL SELECT 'finished', id, equipment_id FROM finished TABLESAMPLE SYSTEM (5)
        )
        SELECT id, equipment_id FROM sample
        WHERE equipment_id LIKE 'GROWN%' AND state = $1 ORDER BY random() LIMIT $2
        """,
        state,
        stage.sizes.asked,
    )
    return [f"/api/v1/equipment/cpe/{row['equipment_id']}/task/{row['id']}" for row in rows]


def _forget_queue(room: Room) -> None:
    """End the tasks that the measuring of accept has left in the queue, so that the path begins empty."""
    room.purge()
    room.end("active AND equipment_id NOT LIKE 'GROWN%'")


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


def fill_finished(room: Room, rows: int) -> None:
    """All of them were configured, an hour ago."""
    left = rows
    while left:
        count = min(left, BATCH)
        room.sql(
            """
            INSERT INTO finished (id, seq, created_at, finished_at, timeout_seconds, attempt, code, status,
                                  equipment_id, reason)
            SELECT uuidv7(interval '-1 hour'), number, now(), now(), 14, 1, 200, 'success',
                   'GROWN' || lpad((number % 1000000)::text, 8, '0'), '200 success'
            FROM generate_series($1::integer, $2::integer) AS number
            """,
            left - count + 1,
            left,
        )
        left -= count


def _fill_one_device(room: Room, rows: int) -> None:
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
