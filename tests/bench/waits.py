"""Ten thousand clients of one web process that wait for the ends of their tasks: what one weighs, and when it hears."""

import asyncio
import time
from uuid import UUID

import uvloop

from tests.bench.load import Load, generate
from tests.bench.meter import Meter, resident_bytes
from tests.bench.report import Report
from tests.bench.stage import Room, Stage, per_task, pids, scrape
from tests.system.processes import Process

BATCH = 500
"""So many tasks end at once, as the outcomes' largest batch does."""
OPENING = 500
PACE_SECONDS = 0.5


def measure(stage: Stage, report: Report) -> None:
    """Let them all wait, then end their tasks at a thousand a second."""
    count = stage.sizes.slots
    report.add("waits.waiting", count, "")
    for repeat in range(stage.sizes.repeats):
        with stage.room(f"waits{repeat}") as room:
            web = room.start("service_b")
            generate(Load(web.port, 64, count=count, prefix="WAITS"))
            tasks = [row["id"] for row in room.sql("SELECT id FROM task ORDER BY id")]
            before = resident_bytes(web.pid)
            meter = Meter(pids([web]))
            answered = uvloop.run(_wait(room, web, tasks))
            report.add("waits.kib", (answered.pop("most") - before) / 1024 / count, "KiB")
            for process, cost in per_task(meter.seconds(), count).items():
                report.add(f"waits.{process}", cost, "µs/wait")
            for name, seconds in answered.items():
                report.add(f"waits.{name}", seconds, "s")


async def _wait(room: Room, web: Process, tasks: list[UUID]) -> dict[str, float]:
    """Wait for all tasks, end them, and tell how long after its task's end each client was told."""
    opening = asyncio.Semaphore(OPENING)
    told_at = [asyncio.create_task(_ask(web.port, task, opening)) for task in tasks]
    while await asyncio.to_thread(scrape, web, "requests_waiting ") < len(tasks):
        await asyncio.sleep(PACE_SECONDS)
    most = resident_bytes(web.pid)
    for start in range(0, len(tasks), BATCH):
        await asyncio.to_thread(room.end, "id = ANY($1::uuid[])", tasks[start : start + BATCH])
        await asyncio.sleep(PACE_SECONDS)
    told = dict(zip(tasks, await asyncio.gather(*told_at), strict=True))
    query = "SELECT id, extract(epoch FROM finished_at)::double precision AS at FROM finished"
    rows = await asyncio.to_thread(room.sql, query)
    late = sorted(told[row["id"]] - row["at"] for row in rows)
    return {"most": most, "p50": late[len(late) // 2], "p99": late[len(late) * 99 // 100], "longest": late[-1]}


async def _ask(port: int, task: UUID, opening: asyncio.Semaphore) -> float:
    """Wait for a task; tell when it was told of."""
    async with opening:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /api/v1/tasks/{task} HTTP/1.1\r\nHost: b\r\nPrefer: wait=300\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    at = time.time()
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(head.decode())
    writer.close()
    return at
