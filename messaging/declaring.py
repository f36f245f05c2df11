"""Finding the exchanges and queues, and making those that are absent.

What there is may have been made by somebody else, and this process may have no right to make anything. So everything
is looked for first (which needs no right at all, or any), and only what is absent is declared. What there is and may be
declared is declared all the same: it changes nothing, and the broker says whether it is what we would have made.
"""

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import aiormq
import structlog
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from messaging.settings import BrokerSettings
from messaging.topology import Arguments, Exchange, Queue, exchanges, queues

log = structlog.stdlib.get_logger(__name__)

Question = Callable[[AbstractChannel], Coroutine[Any, Any, object]]


class TopologyError(Exception):
    """Something is absent and may not be made, or is not what it should be: what it is, and what to do."""


async def ensure(
    connection: aiormq.Connection, settings: BrokerSettings, *, returned: tuple[str, str] | None = None
) -> None:
    """Find or make everything.

    A binding cannot be looked for: it is made with what it binds, or when a message was `returned` that was published
    to this exchange by this routing key.
    """
    async with _Questions(connection) as questions:
        everything: list[Exchange | Queue] = [*exchanges(settings), *queues(settings)]
        absent = [item for item in everything if not await questions.is_there(item)]
        await questions.check([item for item in everything if item not in absent])
        made: set[str] = set()
        for item in everything:
            if item in absent:
                await questions.make(item)
                made.add(item.name)
            if isinstance(item, Queue) and ((item.exchange, item.key) == returned or made & {item.name, item.exchange}):
                await questions.bind(item)


class _Questions:
    """Asked on channels of their own: the broker closes a channel that it answers with no."""

    def __init__(self, connection: aiormq.Connection) -> None:
        self._connection = connection
        self._amqp: AbstractChannel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._amqp and not error:
            await self._amqp.close()

    async def is_there(self, item: Exchange | Queue) -> bool:
        """Look for something. RabbitMQ 4.3 hides what this user has no right to at all, and so does not need."""
        try:
            await self._ask(lambda amqp: _declare(amqp, item, passive=True))
        except ChannelNotFoundEntity:
            return False
        except ChannelAccessRefused:
            return True
        return True

    async def check(self, there: list[Exchange | Queue]) -> None:
        """Compare what there is with what should be. Who may declare nothing takes it as it is."""
        for item in there:
            try:
                await self._check(item)
            except ChannelAccessRefused:
                return

    async def _check(self, item: Exchange | Queue) -> None:
        try:
            await self._ask(lambda amqp: _declare(amqp, item))
        except ChannelPreconditionFailed as different:
            if isinstance(item, Queue) and await self._is_earlier(item):
                if item.lacking:
                    advice = "delete it once it is empty, and it is declared anew"
                    log.warning("amqp.older_queue", queue=item.name, lacking=item.lacking, advice=advice)
                return
            raise TopologyError(
                f"{_name(item)} is not as it must be ({different}): delete it, and it is declared anew,"
                f" or name another one ({item.variable})"
            ) from different

    async def _is_earlier(self, queue: Queue) -> bool:
        try:
            await self._ask(lambda amqp: _declare(amqp, queue, queue.earlier))
        except ChannelPreconditionFailed:
            return False
        return True

    async def make(self, item: Exchange | Queue) -> None:
        """Declare what is absent."""
        try:
            await self._ask(lambda amqp: _declare(amqp, item))
        except ChannelAccessRefused as refused:
            raise TopologyError(f"{_name(item)} is absent, and this user may not declare it ({refused})") from refused

    async def bind(self, queue: Queue) -> None:
        """Bind a queue to its exchange; nothing changes if it is."""
        try:
            await self._ask(lambda amqp: amqp.queue_bind(queue.name, queue.exchange, routing_key=queue.key))
        except ChannelAccessRefused as refused:
            raise TopologyError(
                f"{_name(queue)} may not be bound, and so perhaps is not, to exchange {queue.exchange!r}"
                f" by {queue.key!r} ({refused})"
            ) from refused

    async def _ask(self, question: Question) -> None:
        if self._amqp is None or self._amqp.is_closed:
            self._amqp = await self._connection.channel(publisher_confirms=False)
        await question(self._amqp)


async def _declare(
    amqp: AbstractChannel, item: Exchange | Queue, arguments: Arguments | None = None, *, passive: bool = False
) -> None:
    if isinstance(item, Exchange):
        await amqp.exchange_declare(item.name, exchange_type="direct", durable=True, passive=passive)
    else:
        await amqp.queue_declare(item.name, durable=True, passive=passive, arguments=dict(arguments or item.arguments))


def _name(item: Exchange | Queue) -> str:
    return f"{type(item).__name__.lower()} {item.name!r}"
