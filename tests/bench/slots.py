"""Ten thousand calls of a minute in one configurator.

First all at once: when have they ended, and what does a slot weigh? Then by the clock, at the rate that just fills the
slots: how many are at work, and how much longer than service A's minute does a client wait?
"""

import time

from tests.bench.load import Generator, Load
from tests.bench.meter import resident_bytes
from tests.bench.path import finished
from tests.bench.report import Report
from tests.bench.stage import Room, Stage, first_id, scrape
from tests.system.processes import Process

FILL = 0.985
"""Arrivals a second, as a share of what the slots could take if nothing but A's delay took time."""
SAMPLE_SECONDS = 1.0


def measure(stage: Stage, report: Report) -> None:
    """Measure both, in a system of its own each time."""
    sizes = stage.sizes
    report.add("slots.slots", sizes.slots, "")
    report.add("slots.delay", sizes.delay_seconds, "s")
    for repeat in range(sizes.repeats):
        with stage.room(f"slots{repeat}") as room:
            processes = room.start_all(delay_seconds=sizes.delay_seconds, concurrency=sizes.slots)
            _all_at_once(stage, room, processes, report)
            _by_the_clock(stage, room, processes, report)


def _all_at_once(stage: Stage, room: Room, processes: list[Process], report: Report) -> None:
    configurator = _configurator(processes)
    count = stage.sizes.slots
    before = resident_bytes(configurator.pid)
    most, filled_at = before, None
    with Generator(Load(processes[1].port, 64, count=count, prefix="BURST")) as generator:
        while finished(processes) < count:
            most = max(most, resident_bytes(configurator.pid))
            if filled_at is None and scrape(configurator, "service_a_calls_in_flight") == count:
                filled_at = time.time()
            time.sleep(SAMPLE_SECONDS)
        result = generator.result()
    row = _ended(room, first_id(result.began), count)
    report.add("slots.accepted", result.ended - result.began, "s")
    if filled_at:
        report.add("slots.filled", filled_at - result.began, "s")
    report.add("slots.makespan", row["last"] - result.began, "s")
    report.add("slots.kib", (most - before) / 1024 / count, "KiB")
    report.add("slots.configurator", most / 1024**2, "MiB")


def _by_the_clock(stage: Stage, room: Room, processes: list[Process], report: Report) -> None:
    sizes, configurator = stage.sizes, _configurator(processes)
    rate = FILL * sizes.slots / sizes.delay_seconds
    count = int(rate * (sizes.delay_seconds + sizes.steady_seconds))
    wanted = finished(processes) + count
    busy = []
    with Generator(Load(processes[1].port, 64, count=count, rate=rate, prefix="CLOCK")) as generator:
        began = time.time()
        while finished(processes) < wanted:
            since = time.time() - began
            if sizes.delay_seconds + 1 < since < sizes.delay_seconds + sizes.steady_seconds:
                busy.append(scrape(configurator, "service_a_calls_in_flight") / sizes.slots)
            time.sleep(min(SAMPLE_SECONDS, sizes.steady_seconds / 10))
        result = generator.result()
    _ended(room, first_id(result.began), count)
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        added = room.sql(
            """
            SELECT percentile_disc($1) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - created_at))
                ::double precision AS seconds
            FROM finished WHERE id >= $2
            """,
            share,
            first_id(result.began + sizes.delay_seconds),
        )[0]["seconds"]
        report.add(f"slots.added {name}", added - sizes.delay_seconds, "s")
    report.add("slots.occupancy", sum(busy) / len(busy), "")


def _configurator(processes: list[Process]) -> Process:
    return next(process for process in processes if process.module == "configurator")


def _ended(room: Room, since: object, count: int) -> dict[str, float]:
    row = room.sql(
        "SELECT count(*), extract(epoch FROM max(finished_at))::double precision AS last "
        "FROM finished WHERE id >= $1 AND status = 'success' AND attempt = 1",
        since,
    )[0]
    if row["count"] != count:
        raise RuntimeError(f"{count} tasks sent, {row['count']} configured at the first attempt")
    return dict(row)
