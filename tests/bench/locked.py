"""The whole path while somebody holds the lock of one task: an open psql, a backfill, a process that stands still."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from tests.bench.fills import fill_pending
from tests.bench.load import Load, generate
from tests.bench.path import send_through
from tests.bench.report import Report
from tests.bench.stage import Room, Stage


def measure(stage: Stage, report: Report) -> None:
    """Measure the path with and without a locked row, in turns; a task of the locked device is accepted before each."""
    with stage.room("locked") as room:
        fill_pending(room, 5)
        device = room.sql("SELECT equipment_id FROM task WHERE active LIMIT 1")[0]["equipment_id"]
        processes = room.start_all()
        send_through(room, processes, stage.sizes.tasks // 4, "WARM")
        web = next(process for process in processes if process.module == "service_b")
        for turn in range(stage.sizes.rounds):
            report.add(
                "locked.path, no lock", send_through(room, processes, stage.sizes.tasks // 2, f"FREE{turn}X").rate, "/s"
            )
            with row_locked(room, device):
                generate(Load(web.port, 1, count=1, device=device))
                passage = send_through(room, processes, stage.sizes.tasks // 2, f"LOCKED{turn}X")
                report.add("locked.path", passage.rate, "/s")


@contextmanager
def row_locked(room: Room, device: str) -> Iterator[None]:
    """Hold the lock of the device's active task, in a session of its own."""
    locked, done = threading.Event(), threading.Event()

    async def hold() -> None:
        connection = await asyncpg.connect(room.database_url)
        async with connection.transaction():
            await connection.execute("SELECT FROM task WHERE equipment_id = $1 AND active FOR UPDATE", device)
            locked.set()
            await asyncio.to_thread(done.wait)
        await connection.close()

    holder = threading.Thread(target=lambda: asyncio.run(hold()))
    holder.start()
    try:
        if not locked.wait(30):
            raise TimeoutError("the row could not be locked")
        yield
    finally:
        done.set()
        holder.join()
