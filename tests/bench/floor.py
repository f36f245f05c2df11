"""The floor: what each bare piece costs, with nothing of ours around it.

The client's pieces run in this process, so its CPU time is theirs.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import aiohttp
import aiormq
import uvloop
from pamqp.commands import Basic
from uuid_utils.compat import uuid7

from tests.bench import bare_tables
from tests.bench.aims import ideal_accept_rate, ideal_path_rate, path_cost
from tests.bench.load import BODY, Load, generate
from tests.bench.meter import Meter
from tests.bench.pieces import AT_ONCE, FEW, piece
from tests.bench.report import Report
from tests.bench.stage import Stage, parameters
from tests.system.spawning import base_environment, free_port, is_port_free, spawn, wait_until

CONNECTIONS = 64
MESSAGE = json.dumps(
    {
        "v": 1,
        "task_id": "01890a5d-ac96-774b-bcce-b302099a8057",
        "attempt": 1,
        "equipment_id": "BENCH00000001",
        "timeout_in_seconds": 14,
        "time_limit_seconds": 89.0,
        "parameters": json.dumps(parameters()),
    }
).encode()


@contextmanager
def bare(stage: Stage, kind: str) -> Iterator[tuple[int, int]]:
    """Run a bare server; yields its port and its process id."""
    port, log_file = free_port(), stage.folder / "logs" / f"bare.{kind}.log"
    process = spawn([sys.executable, "-m", "tests.bench.bare", kind, str(port)], base_environment(), log_file)
    try:
        wait_until(lambda: not is_port_free(port), kind, timeout=30, process=process, log_file=log_file)
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


def handler_rate(stage: Stage, connections: int = CONNECTIONS) -> float:
    """Measure the bare handler anew, for what is set against it."""
    with bare(stage, "aiohttp") as (port, _):
        return generate(Load(port, connections, seconds=stage.sizes.seconds, warmup=stage.sizes.warmup)).rate


def measure(stage: Stage, report: Report) -> None:
    """Measure every piece, and add up what they come to."""
    uvloop.run(_broker(stage, report))
    uvloop.run(bare_tables.measure(stage, report))
    _servers(stage, report)
    figures = report.round(-1)
    report.add("floor.path.pieces", path_cost(figures), "µs/task")
    report.add("floor.path.ideal", ideal_path_rate(figures), "tasks/s")
    report.add("floor.accept.ideal", ideal_accept_rate(figures), "tasks/s")


def _servers(stage: Stage, report: Report) -> None:
    sizes = stage.sizes
    with bare(stage, "asyncio") as (port, _):
        result = generate(Load(port, CONNECTIONS, seconds=sizes.seconds, warmup=sizes.warmup))
        report.add("floor.generator.rate", result.rate, "requests/s")
        report.add("floor.generator.own", 1e6 * result.cpu_seconds / result.count, "µs/request")
    with bare(stage, "aiohttp") as (port, pid):
        generate(Load(port, CONNECTIONS, seconds=sizes.warmup))
        meter = Meter({"handler": pid})
        result = generate(Load(port, CONNECTIONS, count=int(sizes.seconds * 5000)))
        report.add("floor.handler.rate", result.rate, "requests/s")
        report.add("floor.handler.own", 1e6 * meter.seconds()["handler"] / result.count, "µs")
        uvloop.run(_calls(stage, report, port, pid))


async def _calls(stage: Stage, report: Report, port: int, pid: int) -> None:
    url = f"http://127.0.0.1:{port}/api/v1/equipment/cpe/BENCH00000001"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def call() -> None:
            async with http.post(url, data=BODY) as response:
                await response.read()

        async def ask(attempts: list[dict[str, Any]]) -> None:
            async with http.post(
                f"http://127.0.0.1:{port}/leases", data=json.dumps({"attempts": attempts})
            ) as response:
                if len(json.loads(await response.read())["granted"]) != len(attempts):
                    raise RuntimeError("not all leases were answered")

        async def ask_all(count: int) -> None:
            for _ in range(0, count, FEW):
                await ask([{"taskId": str(uuid4()), "attempt": 1, "lease": str(uuid4())} for _ in range(FEW)])

        await piece(report, "call", {"server": pid}, stage.sizes.messages, lambda count: _in_turns(call, count))
        await piece(report, "ask", {"server": pid}, stage.sizes.messages, ask_all)


async def _broker(stage: Stage, report: Report) -> None:
    """Publish as the relay does (hundreds of confirms awaited at once), and take it back in two ways."""
    server = {"server": stage.servers["rabbitmq"]}
    count = stage.sizes.messages
    queue = "floor"
    connection = await aiormq.connect(stage.rabbitmq.url)
    channel = await connection.channel()
    assert isinstance(channel, aiormq.Channel)
    await channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})

    async def publish() -> None:
        await channel.basic_publish(
            MESSAGE,
            routing_key=queue,
            properties=Basic.Properties(content_type="application/json", delivery_mode=2, message_id=str(uuid7())),
            mandatory=True,
            wait=False,
        )

    async def publish_all(count: int) -> None:
        for _ in range(0, count, AT_ONCE):
            await asyncio.gather(*(publish() for _ in range(AT_ONCE)))

    async def consume_all(count: int, few: int) -> None:
        taken, done = 0, asyncio.Event()

        async def take(message: aiormq.abc.DeliveredMessage) -> None:
            nonlocal taken
            taken += 1
            if taken % few == 0:
                await channel.basic_ack(message.delivery_tag or 0, multiple=few > 1, wait=False)
            if taken == count:
                done.set()

        tag = str(uuid7())
        await channel.basic_qos(prefetch_count=2 * AT_ONCE)
        await channel.basic_consume(queue, take, consumer_tag=tag)
        await done.wait()
        await channel.basic_cancel(tag)

    await publish_all(AT_ONCE)
    await consume_all(AT_ONCE, 1)
    await piece(report, "publish", server, count, publish_all)
    await piece(report, "consume", server, count, lambda count: consume_all(count, 1))
    await publish_all(count)
    await piece(report, "consume many", server, count, lambda count: consume_all(count, FEW))
    await channel.queue_delete(queue)
    await connection.close()


async def _in_turns(operation: Callable[[], Awaitable[None]], count: int) -> None:
    left = count

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await operation()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
