"""A day's partition goes while clients POST and tasks end: how long does that take, and whom does it hold up?"""

import time

import asyncpg

from tests.bench.load import Generator, Load
from tests.bench.report import Report
from tests.bench.stage import Room, Stage
from tests.system.processes import Process

WARMUP_SECONDS = 1.0
DROP_AFTER_SECONDS = 2.5
"""The generator has begun by then."""


def measure(stage: Stage, report: Report, room: Room, processes: list[Process]) -> None:
    """Drop the oldest partition several times, each time beside as long a load without; tell the worst of each."""
    sizes = stage.sizes
    port = next(process for process in processes if process.module == "service_b").port
    longest: dict[str, list[float]] = {"none": [], "a day": []}
    seconds: list[float] = []
    for turn in range(sizes.rounds):
        for what, delays in longest.items():
            prefix = f"DROP{turn}{what[0].upper()}X"
            load = Load(port, 64, warmup=WARMUP_SECONDS, seconds=sizes.seconds, rate=sizes.drop_rate, prefix=prefix)
            with Generator(load) as generator:
                time.sleep(DROP_AFTER_SECONDS)
                if what != "none":
                    seconds.append(_drop(room))
                delays.append(generator.result().max_ms)
    report.add("drop.seconds, worst", max(seconds), "s")
    for what, delays in longest.items():
        report.add(f"drop.POST's longest, {what} dropped", max(delays), "ms")


def _drop(room: Room) -> float:
    """Drop the oldest day as the maintenance does: who cannot have the locks soon gives up, and tries again."""
    while True:
        began = time.monotonic()
        try:
            dropped = room.sql("SELECT finished_drop_oldest(1, now())")[0][0]
        except asyncpg.LockNotAvailableError:
            continue
        if dropped is None:
            raise RuntimeError("there was no partition to drop")
        return time.monotonic() - began
