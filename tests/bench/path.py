"""The whole path: from the POST to the final status, past a service A that answers at once."""

import time
from dataclasses import dataclass

from tests.bench.load import Load, generate
from tests.bench.meter import Meter
from tests.bench.report import Report
from tests.bench.stage import POLL_SECONDS, Room, Stage, first_id, per_task, pids, scrape
from tests.system.processes import Process


@dataclass(frozen=True)
class Passage:
    """Tasks that went all the way: how many a second, and the CPU µs that each cost each process."""

    rate: float
    costs: dict[str, float]


def measure(stage: Stage, report: Report) -> None:
    """Measure one of each process."""
    with stage.room("path") as room:
        processes = room.start_all()
        send_through(room, processes, stage.sizes.tasks // 4, "WARM")
        passage = send_through(room, processes, stage.sizes.tasks, "PATH")
        report.add("path.rate", passage.rate, "tasks/s")
        for process, cost in passage.costs.items():
            report.add(f"path.{process}", cost, "µs/task")
        report.add("path.total", sum(passage.costs.values()), "µs/task")


def finished(processes: list[Process]) -> float:
    """Count the tasks that these processes have ended."""
    results = [process for process in processes if process.module == "service_b.results"]
    return sum(scrape(process, "tasks_finished_total") for process in results)


def send_through(room: Room, processes: list[Process], count: int, prefix: str) -> Passage:
    """Send tasks through; raise unless each of them was configured, at its first attempt."""
    web = next(process for process in processes if process.module == "service_b")
    until = time.monotonic() + 300
    wanted = finished(processes) + count
    meter = Meter(room.servers | pids(processes))
    guards = room.guards
    result = generate(Load(web.port, 64, count=count, prefix=prefix, token=guards.token, ca_file=guards.ca_file))
    while finished(processes) < wanted:
        if time.monotonic() > until:
            raise TimeoutError("the tasks do not end")
        time.sleep(POLL_SECONDS)
    costs = per_task(meter.seconds(), count)
    row = room.sql(
        "SELECT count(*), extract(epoch FROM max(finished_at))::double precision AS last "
        "FROM finished WHERE id >= $1 AND status = 'success' AND attempt = 1",
        first_id(result.began),
    )[0]
    if row["count"] != count:
        raise RuntimeError(f"{count} tasks sent, {row['count']} configured at the first attempt")
    return Passage(count / (row["last"] - result.began), costs)
