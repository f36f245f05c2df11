"""Asking for tasks: GETs of finished and of unfinished ones."""

from tests.bench.floor import handler_rate
from tests.bench.load import Load, Result, generate
from tests.bench.meter import Meter
from tests.bench.report import Report
from tests.bench.stage import Room, Stage, first_id, per_task, pids
from tests.bench.taker import taking
from tests.system.processes import Process


def measure(stage: Stage, report: Report) -> None:
    """Measure both."""
    with stage.room("status") as room, taking(room):
        web = room.start("service_b")
        paths = make_tasks(stage, room, web)
        report.add("status.bare handler", handler_rate(stage), "answers/s")
        for state in ("unfinished", "finished"):
            meter = Meter(room.servers | pids([web]))
            result = ask(web, paths[state], stage.sizes.seconds, stage.sizes.warmup)
            # The meter runs during the warm-up, too, whose requests are answered but not counted.
            answered = sum(result.codes.values())
            report.add(f"status.{state}.rate", result.rate, "answers/s")
            report.add(f"status.{state}.p50", result.p50_ms, "ms")
            report.add(f"status.{state}.p99", result.p99_ms, "ms")
            for process, cost in per_task(meter.seconds(), answered).items():
                report.add(f"status.{state}.{process}", cost, "µs/answer")


def make_tasks(stage: Stage, room: Room, web: Process) -> dict[str, list[str]]:
    """Have tasks accepted, end half of them as service A's 200 would, and tell the paths of both halves."""
    asked = stage.sizes.asked
    result = generate(Load(web.port, 64, count=2 * asked, prefix="STATUS"))
    room.wait_for_dispatch(first_id(result.began))
    room.end("equipment_id >= $1 AND equipment_id < 'STATUS9'", f"STATUS{asked:08}")
    rows = room.sql(
        """
        SELECT id, equipment_id, NULL AS code FROM task WHERE equipment_id LIKE 'STATUS%'
        UNION ALL SELECT id, equipment_id, code FROM finished WHERE equipment_id LIKE 'STATUS%'
        """
    )
    paths: dict[str, list[str]] = {"unfinished": [], "finished": []}
    for id_, serial, code in rows:
        paths["finished" if code else "unfinished"].append(f"/api/v1/equipment/cpe/{serial}/task/{id_}")
    return paths


def ask(web: Process, paths: list[str], seconds: float, warmup: float) -> Result:
    """Ask for them round and round, for so many seconds."""
    return generate(Load(web.port, 64, seconds=seconds, warmup=warmup, paths=paths))
