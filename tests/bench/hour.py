"""An hour of load, and an hour of load while somebody holds a snapshot (a dump, a forgotten transaction): is it flat?

Shortened in proportion: what takes an hour takes `hour_seconds`, and autovacuum, which looks every minute, looks as
often in that. With `--hours 1` it is the real thing. Cost is how many entries of the indexes of `task` are read for
each task (a claim that reads what dead tasks have left reads more and more), and PostgreSQL's CPU time.

While a snapshot lives PostgreSQL keeps every version of every row, so the table grows until the snapshot ends: that is
told, not judged.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median

import asyncpg

from tests.bench.load import Load, generate
from tests.bench.meter import Meter
from tests.bench.report import Report
from tests.bench.stage import Room, Stage

WINDOWS = 12
AUTOVACUUM_SECONDS = 60
"""PostgreSQL's own `autovacuum_naptime`."""


@dataclass(frozen=True)
class Window:
    """A twelfth of the hour: the table's size at its end, and what each task cost."""

    size: int
    entries: dict[str, float]
    postgresql: float

    @property
    def all_entries(self) -> float:
        """Those of all indexes."""
        return sum(self.entries.values())


def measure(stage: Stage, report: Report) -> None:
    """Watch both hours, one after the other."""
    sizes = stage.sizes
    naptime = max(1, round(AUTOVACUUM_SECONDS * sizes.hour_seconds / 3600))
    with stage.room("hour") as room:
        # In proportion, too: within the shortened hour calls would not be old enough for anybody to look at them.
        room.environment["SERVICE_A_GRACE_SECONDS"] = "1"
        room.sql(f"ALTER SYSTEM SET autovacuum_naptime = {naptime}")
        room.sql("SELECT pg_reload_conf()")
        try:
            processes = room.start_all()
            port = next(process for process in processes if process.module == "service_b").port
            report.add("hour.length", sizes.hour_seconds, "s")
            report.add("hour.rate", sizes.hour_rate, "tasks/s")
            for name, holding in (("hour", nullcontext()), ("snapshot", snapshot(room))):
                with holding:
                    windows = [_watch(stage, room, port, f"{name}{number}X") for number in range(WINDOWS)]
                _tell(report, name, windows)
        finally:
            room.sql("ALTER SYSTEM RESET autovacuum_naptime")
            room.sql("SELECT pg_reload_conf()")


def _watch(stage: Stage, room: Room, port: int, prefix: str) -> Window:
    sizes = stage.sizes
    meter, entries = Meter({"postgresql": room.servers["postgresql"]}), _entries_read(room)
    load = Load(port, 64, seconds=sizes.hour_seconds / WINDOWS, rate=sizes.hour_rate, prefix=prefix.upper())
    count = generate(load).count
    used = meter.seconds()["postgresql"]
    size = room.sql("SELECT pg_total_relation_size('task')")[0][0]
    read = {index: (after - entries[index]) / count for index, after in _entries_read(room).items()}
    return Window(size, read, 1e6 * used / count)


def _entries_read(room: Room) -> dict[str, int]:
    rows = room.sql("SELECT indexrelname, idx_tup_read FROM pg_stat_user_indexes WHERE relname = 'task'")
    return {row["indexrelname"]: row["idx_tup_read"] for row in rows}


def _tell(report: Report, name: str, windows: list[Window]) -> None:
    """Compare the last third with the third before it: the first fills caches and finds its level."""
    third = len(windows) // 3
    for when, some in (("before", windows[third : 2 * third]), ("last", windows[2 * third :])):
        report.add(f"{name}.{when}.task table", max(window.size for window in some) / 1024**2, "MiB")
        report.add(f"{name}.{when}.entries", median(window.all_entries for window in some), "read/task")
        report.add(f"{name}.{when}.postgresql", median(window.postgresql for window in some), "µs/task")
    for index in windows[-1].entries:
        report.add(f"{name}.last.entries of {index}", median(window.entries[index] for window in some), "read/task")


@contextmanager
def snapshot(room: Room) -> Iterator[None]:
    """Hold a snapshot, as a dump does, in a session of its own."""
    held, done = threading.Event(), threading.Event()

    async def hold() -> None:
        connection = await asyncpg.connect(room.database_url)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute("SELECT FROM task LIMIT 1")
            held.set()
            await asyncio.to_thread(done.wait)
        await connection.close()

    holder = threading.Thread(target=lambda: asyncio.run(hold()))
    holder.start()
    try:
        if not held.wait(30):
            raise TimeoutError("no snapshot was taken")
        yield
    finally:
        done.set()
        holder.join()
