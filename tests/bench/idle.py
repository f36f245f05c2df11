"""What the four processes and the servers use while nothing is asked of them."""

import time

from tests.bench.meter import Meter, resident_bytes
from tests.bench.report import Report
from tests.bench.stage import Stage, pids

SETTLE_SECONDS = 5.0


def measure(stage: Stage, report: Report) -> None:
    """Watch an idle system."""
    with stage.room("idle") as room:
        processes = room.start_all()
        time.sleep(SETTLE_SECONDS)
        for _ in range(stage.sizes.repeats):
            meters = {"ours": Meter(pids(processes)), "servers": Meter(room.servers)}
            time.sleep(stage.sizes.idle_seconds)
            ours = meters["ours"].seconds()
            for name, used in (ours | meters["servers"].seconds()).items():
                report.add(f"idle.{name.partition('#')[0]}", used / stage.sizes.idle_seconds, "of a core")
            report.add("idle.total", sum(ours.values()) / stage.sizes.idle_seconds, "of a core")
        for process in processes:
            report.add(f"idle.{process.module} memory", resident_bytes(process.pid) / 1024**2, "MiB")
