"""One bare piece of the floor: how often a second, and how much CPU time it takes on both of its sides."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from tests.bench.meter import Meter
from tests.bench.report import Report

AT_ONCE = 500
"""How many go together where much is to be done."""
FEW = 50
"""How many go together on the way back, where they come one by one."""


async def piece(
    report: Report, name: str, pids: dict[str, int], count: int, work: Callable[[int], Awaitable[Any]]
) -> None:
    """Do the work of so many; `own` is the CPU time (µs) of this process, `server` that of the other side."""
    meter, cpu, clock = Meter(pids), time.process_time(), time.perf_counter()
    await work(count)
    seconds = time.perf_counter() - clock
    report.add(f"floor.{name}.rate", count / seconds, "/s")
    report.add(f"floor.{name}.own", 1e6 * (time.process_time() - cpu) / count, "µs")
    report.add(f"floor.{name}.server", 1e6 * meter.seconds()["server"] / count, "µs")
