"""Messages that nobody of ours has sent: rubbish, other versions, and copies of real ones."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from uuid import uuid4

from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic

from tests.chaos.rig import CONFIGURED, TO_CONFIGURE, Rig
from tests.chaos.service_a import SLOW

EXCHANGE = "exchange"
KEYS = {TO_CONFIGURE: "to_configure_key", CONFIGURED: "configured_key"}


def rubbish(rng: random.Random) -> bytes:
    """Bytes that no reader can use."""
    task = {"v": 1, "task_id": str(uuid4()), "attempt": 1}
    return rng.choice(
        (
            rng.randbytes(rng.randrange(200)),
            b"",
            b"{}",
            b"[" * 1000,
            json.dumps(task | {"v": 2}).encode(),
            json.dumps(task | {"attempt": "one"}).encode(),
            json.dumps(task | {"kind": "nonsense", "equipment_id": 5}).encode(),
            json.dumps(task | {"kind": "success"}).encode()[:-3],
        )
    )


async def publish(channel: AbstractChannel, key: str, body: bytes) -> None:
    """Put a message into one of our queues."""
    await channel.basic_publish(
        body, exchange=EXCHANGE, routing_key=key, properties=Basic.Properties(delivery_mode=2), mandatory=True
    )


async def poisoned(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """Rubbish into both queues, and an outcome of a task that nobody knows."""
    async with rig.amqp() as channel:
        for _ in range(30):
            for key in KEYS.values():
                await publish(channel, key, rubbish(rng))
        unknown = {"v": 1, "task_id": str(uuid4()), "attempt": 1, "kind": "success"}
        await publish(channel, KEYS[CONFIGURED], json.dumps(unknown).encode())
    yield


async def duplicated(key: str, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """Copies of real messages, as a spy sees them, at once or when the device is free for the next attempt.

    A copy of work goes to the process that may be at it already (one configurator, calls that take a second): two
    processes know nothing of each other's calls, and a queue that doubles work by itself is no RabbitMQ.
    """
    work = key == KEYS[TO_CONFIGURE]
    stopped = rig.processes["configurator"][1:] if work else []
    for process in stopped:
        await asyncio.to_thread(process.terminate, 60)
    seen: set[bytes] = set()
    copying: set[asyncio.Task[None]] = set()
    async with rig.amqp() as channel:
        spy = f"spy-{uuid4()}"
        await channel.queue_declare(spy, exclusive=True)
        await channel.queue_bind(spy, EXCHANGE, routing_key=key)

        async def copy(body: bytes, delay: float) -> None:
            await asyncio.sleep(delay)
            with suppress(Exception):  # The broker may be another nemesis's victim.
                await publish(channel, key, body)

        async def see(message: DeliveredMessage) -> None:
            body = json.loads(message.body)
            if message.body in seen or (work and not body["equipment_id"].startswith(SLOW)):
                return
            seen.add(message.body)
            hold = body.get("hold_seconds", 0)
            delay = hold + rng.uniform(0.05, 0.3) if hold else rng.choice((0, 0, 0, 1))
            copying.add(asyncio.create_task(copy(message.body, 0 if work else delay)))

        await channel.basic_consume(spy, see, no_ack=True)
        yield
        await channel.queue_unbind(spy, EXCHANGE, routing_key=key)
        if copying:
            await asyncio.wait(copying)
    rig.history.write("copied", key=key, copies=len(copying))
    for process in stopped:
        await asyncio.to_thread(process.start, wait=False)
