"""A queue that is deleted and declared again at once, under load, while two processes read from it.

RabbitMQ 3.10 subscribes their channels to the new queue without a word, and drops what it hands them: neither brings
anything, the queue counts nothing as ready. One deletion later they are subscribed to nothing.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiormq

from messaging import declaring
from messaging.deliveries import Delivery, acknowledge
from messaging.frames import Letter
from messaging.patience import Patience
from messaging.session import Session
from messaging.settings import BrokerSettings
from tests.conftest import eventually, own_queues

ROUNDS = 10
LIMIT_SECONDS = 20.0
"""Until the next message, from each declaration on: with the default patience, here it is shorter."""


@asynccontextmanager
async def _reader(settings: BrokerSettings, queue: str) -> AsyncIterator[list[Delivery]]:
    brought: list[Delivery] = []

    def take(delivery: Delivery) -> None:
        brought.append(delivery)
        acknowledge([delivery])

    async def read(session: Session) -> None:
        async for channel in session:
            await channel.consume(queue, 500, take)
            await asyncio.wait({channel.lost})

    async with Session(settings, "reader", Patience(idle=1)) as session, asyncio.TaskGroup() as group:
        reading = group.create_task(read(session))
        yield brought
        reading.cancel()


@asynccontextmanager
async def _load(settings: BrokerSettings, key: str) -> AsyncIterator[None]:
    """Publish some messages a second: a few, so that those which get lost do not fill up what a reader may have."""

    async def publish(session: Session) -> None:
        async for channel in session:
            number = 0
            while not channel.lost.done():
                number += 1
                await channel.publish(key, [Letter(str(number), b"{}")])
                await asyncio.wait({channel.lost}, timeout=0.05)

    async with Session(settings, "load") as session, asyncio.TaskGroup() as group:
        publishing = group.create_task(publish(session))
        yield
        publishing.cancel()


async def _redeclare(amqp_url: str, which: str) -> None:
    """Delete one of the two queues again and again; each time both readers must go on."""
    async with own_queues(amqp_url) as broker:
        queue, key = getattr(broker, f"{which}_queue"), getattr(broker, f"{which}_key")
        connection = await aiormq.connect(broker.nodes[0])
        async with _reader(broker, queue) as one, _reader(broker, queue) as another, _load(broker, key):
            await eventually(lambda: one and another)
            for number in range(ROUNDS):
                for _ in range(1 + number % 2):
                    await (await connection.channel()).queue_delete(queue)
                    await declaring.ensure(connection, broker)
                before = len(one), len(another)
                await eventually(
                    lambda before=before: len(one) > before[0] and len(another) > before[1], timeout=LIMIT_SECONDS
                )
        await connection.close()


async def test_it_brings_its_messages_soon_again(amqp_url: str) -> None:
    async with asyncio.TaskGroup() as group:
        for which in ("to_configure", "configured"):
            group.create_task(_redeclare(amqp_url, which))
