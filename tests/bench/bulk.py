"""A hundred thousand tasks in one request: what the web process keeps of them, and how long a single task waits beside.

The request is broken off in the middle, and sent again as a whole. A bad line is among them.
"""

import asyncio
import json
import time
from collections import Counter
from contextlib import aclosing

import uvloop

from service_b.client.service import Service
from tests.bench.load import Load, generate
from tests.bench.meter import resident_bytes
from tests.bench.report import Report
from tests.bench.stage import Room, Stage
from tests.system.processes import Process

PARAMETERS = {"username": "admin", "password": "admin", "vlan": 534, "interfaces": [1, 2, 3, 4]}
SLOTS, DELAY_SECONDS = 1000, 2.0
PACE_SECONDS = 0.5
SAMPLE_SECONDS = 0.05


def measure(stage: Stage, report: Report) -> None:
    """Send the lines while the whole system works on them, and a single task now and then."""
    count = stage.sizes.lines
    for repeat in range(stage.sizes.repeats):
        with stage.room(f"bulk{repeat}") as room:
            processes = room.start_all(delay_seconds=DELAY_SECONDS, concurrency=SLOTS)
            [web] = [process for process in processes if process.module == "service_b"]
            generate(Load(web.port, 64, count=2000, prefix="WARM"))
            for name, (value, unit) in uvloop.run(_send(room, web, count)).items():
                report.add(f"bulk.{name}", value, unit)


def _line(number: int) -> bytes:
    body = {"equipmentId": f"BULK{number:09}", "timeoutInSeconds": 14, "parameters": PARAMETERS}
    return json.dumps(body | {"idempotencyKey": f"sheet-{number:09}"}).encode()


async def _send(room: Room, web: Process, count: int) -> dict[str, tuple[float, str]]:
    lines = [_line(number) for number in range(count)]
    bad = count * 3 // 4
    lines[bad] = b"[]"
    idle, most = resident_bytes(web.pid), 0
    singles, longest, is_over = 0, 0.0, False

    async def watch() -> None:
        nonlocal most
        while not is_over:
            most = max(most, resident_bytes(web.pid))
            await asyncio.sleep(SAMPLE_SECONDS)

    async def submit_single() -> None:
        nonlocal singles, longest
        while not is_over:
            singles += 1
            body = {"equipmentId": f"SINGLE{singles:06}", "timeoutInSeconds": 14, "parameters": PARAMETERS}
            task = await service.ask("POST", "api/v1/tasks", json=body)
            accepted = time.monotonic()
            while (await service.task(task["id"]))["state"] in ("waiting", "due"):
                await asyncio.sleep(SAMPLE_SECONDS)
            longest = max(longest, time.monotonic() - accepted)
            await asyncio.sleep(PACE_SECONDS)

    async with Service(web.url, None) as service, asyncio.TaskGroup() as group:
        group.create_task(watch())
        group.create_task(submit_single())
        began = time.monotonic()
        async with aclosing(service.submit(lines)) as told_of:
            async for place, _ in told_of:
                if place == count // 2:
                    break
        broken_off = time.monotonic()
        codes, replayed, in_order = Counter[int](), 0, True
        expected = 0
        async for place, told in service.submit(lines):
            codes[told["code"]] += 1
            replayed += told.get("replayed", False)
            in_order = in_order and place == expected
            expected += 1
        ended = time.monotonic()
        is_over = True
    if not in_order or codes != {202: count - 1, 422: 1}:
        raise RuntimeError(f"in order: {in_order}, {dict(codes)}")
    stored, due = (await asyncio.to_thread(room.sql, STORED))[0]
    if stored != count - 1:
        raise RuntimeError(f"{stored} tasks stored of {count - 1}")
    return {
        "lines": (count, ""),
        "growth": ((most - idle) / 2**20, "MiB"),
        "first half": (count / 2 / (broken_off - began), "lines/s"),
        "sent again": (count / (ended - broken_off), "lines/s"),
        "found again": (replayed, "lines"),
        "backlog": (due, "tasks"),
        "singles": (singles, ""),
        "single dispatched after": (longest, "s"),
    }


STORED = """
SELECT (SELECT count(*) FROM task WHERE equipment_id LIKE 'BULK%')
    + (SELECT count(*) FROM finished WHERE equipment_id LIKE 'BULK%'),
    (SELECT count(*) FROM task WHERE due_at IS NOT NULL)
"""
