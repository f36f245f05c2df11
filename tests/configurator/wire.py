"""The broker's side of the configurator."""

from collections.abc import Awaitable, Callable

import aiormq
from aiohttp import web
from aiohttp.test_utils import TestClient
from pamqp.commands import Basic

from messaging.messages import ConfigureTask, Outcome, OutcomeKind
from messaging.settings import BrokerSettings
from tests.conftest import eventually

Start = Callable[..., Awaitable[TestClient[web.Request, web.Application]]]


class Wire:
    """The broker's side of the configurator: puts tasks in, takes outcomes out."""

    def __init__(self, amqp: aiormq.abc.AbstractChannel, broker: BrokerSettings) -> None:
        self.amqp = amqp
        self.broker = broker
        self.outcomes: list[Outcome] = []

    async def put(self, *tasks: ConfigureTask) -> None:
        """Publish tasks as service B does."""
        for task in tasks:
            await self.put_raw(task.encode())

    async def put_raw(self, body: bytes) -> None:
        """Publish any bytes to the configurator."""
        await self.amqp.basic_publish(
            body,
            exchange=self.broker.exchange,
            routing_key=self.broker.to_configure_key,
            properties=Basic.Properties(delivery_mode=2),
        )

    async def ends(self, *tasks: ConfigureTask) -> list[Outcome]:
        """Wait for the outcome of each task; one too many for any of them fails the test."""
        wanted = {task.message_id for task in tasks}

        async def all_there() -> bool:
            while body := (await self.amqp.basic_get(self.broker.configured_queue, no_ack=True)).body:
                self.outcomes.append(Outcome.decode(body))
            return wanted <= {outcome.message_id for outcome in self.outcomes}

        await eventually(all_there)
        ended = {outcome.message_id: outcome for outcome in self.outcomes}
        assert len(ended) == len(self.outcomes), "an attempt has one outcome"
        return [ended[task.message_id] for task in tasks]

    async def kinds(self, *tasks: ConfigureTask) -> list[OutcomeKind]:
        """Wait for the outcome of each task; tell the kinds only."""
        return [outcome.kind for outcome in await self.ends(*tasks)]

    async def waiting(self) -> int:
        """Count the tasks that no configurator has taken."""
        return (await self.amqp.queue_declare(self.broker.to_configure_queue, passive=True)).message_count or 0

    async def waiting_is(self, count: int) -> bool:
        """Whether so many tasks wait."""
        return await self.waiting() == count

    async def take(self) -> aiormq.abc.DeliveredMessage:
        """Take a task as another configurator would; it goes back when the connection is closed."""
        taken: list[aiormq.abc.DeliveredMessage] = []

        async def got() -> bool:
            message = await self.amqp.basic_get(self.broker.to_configure_queue)
            if message.body:
                taken.append(message)
            return bool(message.body)

        await eventually(got)
        return taken[0]
