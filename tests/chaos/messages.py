"""Messages that nobody of ours has sent: rubbish, other versions, and copies of real ones."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic

from messaging.topology import dead_letter_queue
from tests.chaos.rig import CONFIGURED, LIMIT_SECONDS, TO_CONFIGURE, Rig
from tests.queues import count_ready

EXCHANGE = "exchange"
OURS = "chaos"
"""The type of what nemeses publish, so that they do not react to it."""
REACTIONS = 1000
"""To no more messages: they are published one by one."""
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
        body,
        exchange=EXCHANGE,
        routing_key=key,
        properties=Basic.Properties(delivery_mode=2, message_type=OURS),
        mandatory=True,
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


@asynccontextmanager
async def spying(
    rig: Rig, key: str, react: Callable[[AbstractChannel, Any], Coroutine[Any, Any, None]]
) -> AsyncIterator[None]:
    """See a copy of every message, once, and react to some; wait for the reactions at the end."""
    seen: set[bytes] = set()
    reacting: set[asyncio.Task[None]] = set()
    async with rig.amqp() as channel:
        spy = f"spy-{uuid4()}"
        await channel.queue_declare(spy, exclusive=True)
        await channel.queue_bind(spy, EXCHANGE, routing_key=key)

        async def run(body: bytes) -> None:
            with suppress(Exception):  # The broker may be another nemesis's victim.
                await react(channel, json.loads(body))

        async def see(message: DeliveredMessage) -> None:
            if (
                message.header.properties.message_type != OURS
                and message.body not in seen
                and len(reacting) < REACTIONS
            ):
                seen.add(message.body)
                reacting.add(asyncio.create_task(run(message.body)))

        await channel.basic_consume(spy, see, no_ack=True)
        yield
        await channel.queue_unbind(spy, EXCHANGE, routing_key=key)
        if reacting:
            await asyncio.wait(reacting)
    rig.history.write("spied", key=key, seen=len(seen))


async def duplicated(key: str, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """Copies of real messages, at once, later, or when the device is free for the next attempt."""

    async def copy(channel: AbstractChannel, body: Any) -> None:
        hold = body.get("hold_seconds", 0)
        await asyncio.sleep(
            hold + rng.uniform(0.05, 0.3) if hold else rng.choice((0, 0, 0, 0.1, 1, LIMIT_SECONDS + 0.2))
        )
        await publish(channel, key, json.dumps(body).encode())

    async with spying(rig, key, copy):
        yield


async def forged_work(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """Messages that ask to begin other attempts than the task's current one."""

    async def forge(channel: AbstractChannel, body: Any) -> None:
        forged = json.dumps(body | {"attempt": rng.randrange(1, 5)}).encode()
        for delay in (0, 0.3, LIMIT_SECONDS):
            await asyncio.sleep(delay)
            await publish(channel, KEYS[TO_CONFIGURE], forged)

    async with spying(rig, KEYS[TO_CONFIGURE], forge):
        yield


async def forged_outcomes(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """Outcomes of attempts that are on their way or begun, under no lease or under one that nobody was granted."""

    async def forge(channel: AbstractChannel, body: Any) -> None:
        for delay in (0, 0.02, 0.2):
            await asyncio.sleep(delay)
            kind = rng.choice(("success", "success", "not_found", "unavailable", "unknown", "lost"))
            lease = rng.choice((None, str(uuid4())))
            forged = {"v": 1, "task_id": body["task_id"], "attempt": body["attempt"], "kind": kind, "lease": lease}
            await publish(channel, KEYS[CONFIGURED], json.dumps(forged).encode())

    async with spying(rig, KEYS[TO_CONFIGURE], forge):
        yield


async def moved_back(rig: Rig) -> None:
    """Move what is dead back to where it came from, as an operator may."""
    async with rig.amqp() as channel:
        for queue, key in KEYS.items():
            moved = 0
            # Once each: whoever cannot read it dead-letters it again.
            for _ in range(await count_ready(channel, dead_letter_queue(queue))):
                if body := (await channel.basic_get(dead_letter_queue(queue), no_ack=True)).body:
                    await publish(channel, key, body)
                    moved += 1
            rig.history.write("moved.back", queue=queue, messages=moved)
