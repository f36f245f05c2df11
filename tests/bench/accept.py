"""Accepting tasks: one web process, PostgreSQL committing durably, the relay handing every task to the broker.

The relay hands over what is taken, so somebody takes it.
"""

from tests.bench.floor import handler_rate
from tests.bench.load import Load, Result, generate
from tests.bench.meter import Meter
from tests.bench.report import Report
from tests.bench.stage import Room, Stage, first_id, per_task, pids
from tests.bench.taker import taking
from tests.system.processes import Process
from tests.system.spawning import free_port


def measure(stage: Stage, report: Report) -> None:
    """Measure with the broker down and up, with 64 and with 512 connections each time."""
    with stage.room("no_broker") as room:
        web = room.start("service_b", AMQP_URL=f"amqp://guest:guest@127.0.0.1:{free_port()}/")
        for connections in (64, 512):
            name = f"accept.no broker.{connections}"
            generate(Load(web.port, connections, seconds=stage.sizes.warmup, prefix=f"W{connections}X"))
            report.add(f"{name}.bare handler", handler_rate(stage, connections), "answers/s")
            meter = Meter(room.servers | pids([web]))
            result = generate(Load(web.port, connections, seconds=stage.sizes.seconds, prefix=f"D{connections}X"))
            _note(report, name, result, result.rate, per_task(meter.seconds(), result.count))
    with stage.room("accept") as room, taking(room):
        web = room.start("service_b")
        warm_up(room, web, stage)
        for connections in (64, 512):
            _accept(room, web, report, Load(web.port, connections, count=stage.sizes.tasks, prefix=f"A{connections}X"))


def warm_up(room: Room, web: Process, stage: Stage) -> None:
    """Open connections and fill caches; wait until the broker has what came of it."""
    result = generate(Load(web.port, 64, seconds=stage.sizes.warmup, prefix="WARM"))
    room.wait_for_dispatch(first_id(result.began))


def sustained(room: Room, web: Process, load: Load) -> tuple[Result, float]:
    """Send a load; tell the rate at which its tasks were not only accepted but handed to the broker, too.

    The clock stops when the last task was claimed for its publish: its confirm comes some milliseconds later.
    """
    result = generate(load)
    since = first_id(result.began)
    room.wait_for_dispatch(since)
    row = room.sql(
        "SELECT count(*), extract(epoch FROM max(dispatched_at))::double precision AS last FROM task WHERE id >= $1",
        since,
    )[0]
    if row["count"] != result.count:
        raise RuntimeError(f"{result.count} tasks accepted, {row['count']} stored")
    return result, result.count / (max(row["last"], result.ended) - result.began)


def _accept(room: Room, web: Process, report: Report, load: Load) -> None:
    meter = Meter(room.servers | pids([web]))
    result, rate = sustained(room, web, load)
    _note(report, f"accept.{load.connections}", result, rate, per_task(meter.seconds(), result.count))


def _note(report: Report, name: str, result: Result, rate: float, costs: dict[str, float]) -> None:
    report.add(f"{name}.rate", rate, "tasks/s")
    report.add(f"{name}.answers", result.rate, "answers/s")
    for share, value in (("p50", result.p50_ms), ("p95", result.p95_ms), ("p99", result.p99_ms)):
        report.add(f"{name}.{share}", value, "ms")
    for process, cost in costs.items():
        report.add(f"{name}.{process}", cost, "µs/task")
    report.add(f"{name}.generator", 1e6 * result.cpu_seconds / result.count, "µs/task")
