"""The floor: what each bare piece costs, with nothing of ours around it.

`own` is the CPU time (µs) of the side that our processes are on, `server` that of the other side. The client's pieces
run in this process, so its CPU time is theirs.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import aiohttp
import aiormq
import asyncpg
import uvloop
from pamqp.commands import Basic
from uuid_utils.compat import uuid7

from tests.bench.aims import ideal_accept_rate, ideal_path_rate, path_cost
from tests.bench.load import BODY, Load, generate
from tests.bench.meter import Meter
from tests.bench.report import Report
from tests.bench.stage import Stage, parameters
from tests.system.spawning import base_environment, free_port, is_port_free, spawn, wait_until

AT_ONCE = 500
FEW = 50
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
    uvloop.run(_database(stage, report))
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

        await _piece(report, "call", {"server": pid}, stage.sizes.messages, lambda count: _in_turns(call, count))


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
    await _piece(report, "publish", server, count, publish_all)
    await _piece(report, "consume", server, count, lambda count: consume_all(count, 1))
    await publish_all(count)
    await _piece(report, "consume many", server, count, lambda count: consume_all(count, FEW))
    await channel.queue_delete(queue)
    await connection.close()


async def _database(stage: Stage, report: Report) -> None:
    """Insert, claim and finish in batches, on a table with no more than these need."""
    server = {"server": stage.servers["postgresql"]}
    count = stage.sizes.rows
    url = stage.postgres.dsn("postgres")
    connection: asyncpg.Connection = await asyncpg.connect(url)
    await connection.execute(
        """
        CREATE TABLE bare (
            id uuid PRIMARY KEY, equipment_id text NOT NULL, parameters json NOT NULL, code smallint,
            due_at timestamptz, created_at timestamptz NOT NULL DEFAULT now(), finished_at timestamptz
        );
        CREATE INDEX ON bare (due_at) WHERE due_at IS NOT NULL
        """
    )
    ids = [uuid7() for _ in range(count)]
    batches = [ids[start : start + AT_ONCE] for start in range(0, count, AT_ONCE)]
    text = json.dumps(parameters())

    async def insert(batch: list[UUID]) -> None:
        await connection.execute(
            "INSERT INTO bare (id, equipment_id, parameters, due_at) "
            "SELECT id, equipment_id, parameters::json, now() "
            "FROM unnest($1::uuid[], $2::text[], $3::text[]) AS new (id, equipment_id, parameters)",
            batch,
            [f"BENCH{number:08}" for number in range(len(batch))],
            [text] * len(batch),
        )

    async def claim(batch: list[UUID]) -> None:
        await connection.fetch(
            "WITH due AS (SELECT id FROM bare WHERE due_at <= now() ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED) "
            "UPDATE bare SET due_at = NULL FROM due WHERE bare.id = due.id RETURNING bare.id, equipment_id, parameters",
            len(batch),
        )

    async def update(batch: list[UUID]) -> None:
        await connection.execute(
            "UPDATE bare SET code = change.code, finished_at = now() "
            "FROM unnest($1::uuid[], $2::smallint[]) AS change (id, code) WHERE bare.id = change.id",
            batch,
            [200] * len(batch),
        )

    def all_batches(operation: Callable[[list[UUID]], Awaitable[None]]) -> Callable[[int], Awaitable[None]]:
        async def run(_: int) -> None:
            for batch in batches:
                await operation(batch)

        return run

    try:
        await _piece(report, "insert", server, count, all_batches(insert))
        await _piece(report, "claim", server, count, all_batches(claim))
        await _piece(report, "update", server, count, all_batches(update))
    finally:
        await connection.execute("DROP TABLE bare")
        await connection.close()


async def _piece(
    report: Report, name: str, pids: dict[str, int], count: int, work: Callable[[int], Awaitable[Any]]
) -> None:
    meter, cpu, clock = Meter(pids), time.process_time(), time.perf_counter()
    await work(count)
    seconds = time.perf_counter() - clock
    report.add(f"floor.{name}.rate", count / seconds, "/s")
    report.add(f"floor.{name}.own", 1e6 * (time.process_time() - cpu) / count, "µs")
    report.add(f"floor.{name}.server", 1e6 * meter.seconds()["server"] / count, "µs")


async def _in_turns(operation: Callable[[], Awaitable[None]], count: int) -> None:
    left = count

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await operation()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
