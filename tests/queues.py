"""Looking into the broker's queues, and filling them; who may use those of the tests."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aiormq
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic
from prometheus_client import REGISTRY
from yarl import URL

from messaging import declaring
from messaging.channel import Channel
from messaging.definitions import definitions, rights
from messaging.settings import BrokerSettings

RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid4().hex
"""The same random text in all workers of a run."""
PASSWORDS = {
    user: hashlib.sha256(f"{RUN} {user}".encode()).hexdigest() for user in rights(BrokerSettings.model_construct())
} | {"guest": "guest"}


def names(unique: str) -> dict[str, str]:
    """What an exchange and queues are called that nobody else uses."""
    return {
        "exchange": f"exchange_{unique}",
        "to_configure_queue": f"to_configure_{unique}",
        "configured_queue": f"configured_{unique}",
    }


def users_for_tests() -> dict[str, Any]:
    """Tell a broker who our processes are, each with its rights to all queues of the tests, which are not there yet."""
    told = definitions(BrokerSettings.model_validate(names("UNIQUE")), PASSWORDS)
    for permission in told["permissions"]:
        permission |= {right: permission[right].replace("UNIQUE", "[0-9a-f]{12}") for right in ("write", "read")}
    return told | {"exchanges": [], "queues": [], "bindings": []}


def as_user(url: str, user: str) -> str:
    """The broker's URL for one of them."""
    return str(URL(url).with_user(user).with_password(PASSWORDS[user]))


def patient(settings: BrokerSettings) -> str:
    """The broker's URL for a test that looks on: it may stand still for longer than our processes' heartbeats."""
    return str(URL(settings.nodes[0]).update_query(heartbeat=60))


async def declare(channel: AbstractChannel, settings: BrokerSettings) -> None:
    """Make the exchanges and queues, as a process of ours does."""
    assert isinstance(channel, aiormq.Channel)
    assert isinstance(channel.connection, aiormq.Connection)
    await declaring.ensure(channel.connection, settings)


async def take(channel: AbstractChannel, queue: str) -> list[DeliveredMessage]:
    """Take all messages that are ready; the queue must exist."""
    taken: list[DeliveredMessage] = []
    while not isinstance((message := await channel.basic_get(queue, no_ack=True)).delivery, Basic.GetEmpty):
        taken.append(message)
    return taken


@asynccontextmanager
async def busy_reader(settings: BrokerSettings, queue: str) -> AsyncIterator[None]:
    """A consumer of a queue that has all that it may have, and takes nothing more."""
    connection = await aiormq.connect(patient(settings))
    channel, taken = await connection.channel(), asyncio.Event()

    async def take_one(_: DeliveredMessage) -> None:
        taken.set()

    await channel.basic_publish(b"{}", routing_key=queue)
    await channel.basic_qos(prefetch_count=1)
    await channel.basic_consume(queue, take_one)
    await taken.wait()
    yield
    await connection.close()


async def count_ready(channel: AbstractChannel, queue: str) -> int:
    """How many messages no reader has taken yet."""
    return (await channel.queue_declare(queue, passive=True)).message_count or 0


async def holds(channel: AbstractChannel, queue: str, count: int) -> bool:
    """Whether so many messages wait in a queue that no reader has taken."""
    return await count_ready(channel, queue) == count


async def send(channel: AbstractChannel, settings: BrokerSettings, bodies: Iterable[bytes]) -> None:
    """Put bodies into the queue `configured`, as a configurator does."""
    for body in bodies:
        confirmation = await channel.basic_publish(
            body,
            exchange=settings.exchange,
            routing_key=settings.configured_key,
            properties=Basic.Properties(delivery_mode=2),
            mandatory=True,
        )
        assert isinstance(confirmation, Basic.Ack)


async def queue_exists(settings: BrokerSettings, queue: str) -> bool:
    """Whether there is such a queue; asked on a channel of its own, which the broker closes if there is none."""
    connection = await aiormq.connect(patient(settings))
    try:
        await (await connection.channel()).queue_declare(queue, passive=True)
    except aiormq.ChannelNotFoundEntity:
        return False
    finally:
        await connection.close()
    return True


def is_blocked(channel: Channel) -> bool:
    """Whether the broker has said that it takes nothing now."""
    return channel._transport.reader.is_blocked


def metric(name: str, **labels: str) -> float:
    """What this process has counted so far."""
    return REGISTRY.get_sample_value(name, labels) or 0
