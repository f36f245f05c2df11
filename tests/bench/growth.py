"""The same rates with a table that has grown: nothing may cost more because there is more of it.

A system with an empty table and one with a grown table are measured in turns, so that the machine's own ups and downs
meet both.
"""

from collections.abc import Callable
from math import log2

from tests.bench import accept, drop, status
from tests.bench.fills import DAYS, fill_finished, fill_one_device, fill_pending
from tests.bench.load import Load
from tests.bench.path import send_through
from tests.bench.report import Report
from tests.bench.stage import Room, Stage
from tests.bench.taker import taking
from tests.system.processes import Process

FINAL = "status finished"
EVERY_RATE = ("accept", "status unfinished", "path")
DEEPER = log2(100_000_000 / DAYS) / log2(10_000_000 / DAYS)
"""How much deeper the search in a day's index is with ten times the rows."""

Rates = dict[str, Callable[[int], float]]
"""How to measure each rate; the number makes the names of a turn's devices its own."""


def measure(stage: Stage, report: Report) -> None:
    """Measure with many pending tasks, with many finished ones, and with many of one device."""
    sizes = stage.sizes
    for state, fill, rows in (
        ("pending", fill_pending, sizes.pending),
        ("finished", fill_finished, sizes.finished),
        ("one device", fill_one_device, sizes.of_one_device),
    ):
        name = f"growth_{state.replace(' ', '_')}"
        with stage.room(f"{name}_empty") as empty, stage.room(name) as grown:
            fill(grown, rows)
            if state == "finished":
                fill_finished(empty, sizes.looked_up, days=1)
            for room in (empty, grown):
                room.sql("VACUUM (ANALYZE) task, finished")
            empty.sql("CHECKPOINT")
            with taking(empty), taking(grown):
                webs = [room.start("service_b") for room in (empty, grown)]
                sides = [_web_rates(stage, room, web) for room, web in zip((empty, grown), webs, strict=True)]
                if state == "finished":
                    for side, room, web, made in zip(sides, (empty, grown), webs, (sizes.looked_up, rows), strict=True):
                        side[FINAL] = _look_up(stage, web, _sample(stage, room, "finished", made))
                _compare(stage, report, f"growth.{state}", sides)
                for web in webs:
                    web.terminate()
            systems = [_start_path(stage, room) for room in (empty, grown)]
            _compare(stage, report, f"growth.{state}", [_path_rate(stage, *system) for system in systems])
            _tell_size(report, f"growth.{state}", grown)
            if state == "finished":
                _tell_of_ten_times_as_many(report)
                drop.measure(stage, report, *systems[1])


def _tell_size(report: Report, name: str, room: Room) -> None:
    row = room.sql(
        """
        SELECT sum(pg_total_relation_size(oid))::bigint AS size,
               (SELECT count(*) FROM task) + (SELECT count(*) FROM finished) AS count
        FROM pg_class WHERE relkind = 'r' AND relname ~ '^(task$|finished)'
        """
    )[0]
    report.add(f"{name}.rows", row["count"], "")
    report.add(f"{name}.row", row["size"] / row["count"], "bytes")


def _tell_of_ten_times_as_many(report: Report) -> None:
    """What 100,000,000 finished rows would come to, by arithmetic: nobody has measured that.

    The size goes with the rows. What a task or a look-up costs more than with an empty table is a search in a day's
    index, and goes with its depth.
    """
    figures = report.figures
    report.add("growth.100 M by arithmetic.size", 100_000_000 * figures["growth.finished.row"] / 1024**3, "GiB")
    for rate in (*EVERY_RATE, FINAL):
        grown, empty = (figures[f"growth.finished.{rate}{side}"] for side in ("", ", empty table"))
        share = 1 / (1 + (empty / grown - 1) * DEEPER)
        report.add(f"growth.100 M by arithmetic.{rate}", share, "of that with an empty table")


def _compare(stage: Stage, report: Report, name: str, sides: list[Rates]) -> None:
    for turn in range(stage.sizes.rounds):
        for what in sides[0]:
            empty, grown = (side[what](turn) for side in sides)
            report.add(f"{name}.{what}", grown, "/s")
            report.add(f"{name}.{what}, empty table", empty, "/s")


def _web_rates(stage: Stage, room: Room, web: Process) -> Rates:
    paths = status.make_tasks(stage, room, web)["unfinished"]
    paths = _sample(stage, room, "unfinished", stage.sizes.pending)[: stage.sizes.asked] or paths
    accept.warm_up(room, web, stage)

    def accepted(turn: int) -> float:
        load = Load(web.port, 64, count=stage.sizes.tasks // 2, prefix=f"GROW{turn}X")
        return accept.sustained(room, web, load)[1]

    return {
        "accept": accepted,
        "status unfinished": lambda _: status.ask(web, paths, stage.sizes.seconds, stage.sizes.warmup).rate,
    }


def _look_up(stage: Stage, web: Process, paths: list[str]) -> Callable[[int], float]:
    """Ask for what the process has not in its memory: more than it keeps, and each turn others than the last."""

    def look_up(turn: int) -> float:
        start = turn % 3 * len(paths) // 3
        return status.ask(web, paths[start:] + paths[:start], stage.sizes.seconds, stage.sizes.warmup).rate

    return look_up


def _start_path(stage: Stage, room: Room) -> tuple[Room, list[Process]]:
    _forget_queue(room)
    processes = room.start_all()
    send_through(room, processes, stage.sizes.tasks // 4, "WARMPATH")
    return room, processes


def _path_rate(stage: Stage, room: Room, processes: list[Process]) -> Rates:
    return {"path": lambda turn: send_through(room, processes, stage.sizes.tasks // 2, f"PATH{turn}X").rate}


def _sample(stage: Stage, room: Room, state: str, rows: int) -> list[str]:
    """Paths of some of the tasks that were there before (`rows` of this state), from all over the table."""
    table = "finished" if state == "finished" else "task"
    wanted = stage.sizes.looked_up
    found = room.sql(
        f"""
        WITH sample AS (SELECT id, equipment_id FROM {table} TABLESAMPLE SYSTEM ($1))
        SELECT id, equipment_id FROM sample WHERE equipment_id LIKE 'GROWN%' ORDER BY random() LIMIT $2
        """,
        min(100, 500 * wanted / rows),
        wanted,
    )
    return [f"/api/v1/equipment/cpe/{row['equipment_id']}/task/{row['id']}" for row in found]


def _forget_queue(room: Room) -> None:
    """End the tasks that the measuring of accept has left in the queue, so that the path begins empty."""
    room.purge()
    room.end("active AND equipment_id NOT LIKE 'GROWN%'")
