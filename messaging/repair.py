"""Declaring anew what a returned message has missed."""

import asyncio

import aiormq
import structlog

from messaging import declaring
from messaging.asking import Asker
from messaging.settings import BrokerSettings

log = structlog.stdlib.get_logger(__name__)


class Repair:
    """After a message that reached no queue: its queue or binding is gone. One repair serves a whole batch of returns.

    `fault`: why the last repair did not succeed, until a message reaches its queue. Another channel could declare no
    more, and this one's deliveries may be hours of work: it is kept.
    """

    def __init__(self, connection: aiormq.Connection, settings: BrokerSettings, asker: Asker) -> None:
        self._connection = connection
        self._settings = settings
        self._asker = asker
        self._running: asyncio.Task[None] | None = None
        self.fault: str | None = None

    async def run(self, exchange: str, routing_key: str) -> None:
        """Find or make everything, and bind what a message that was published by this route should have reached."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._asker.ask("declare", self._declare(exchange, routing_key)))
        await asyncio.wait({self._running})

    def cancel(self) -> None:
        """End a repair that is under way."""
        if self._running:
            self._running.cancel()

    async def _declare(self, exchange: str, routing_key: str) -> None:
        try:
            await declaring.ensure(self._connection, self._settings, returned=(exchange, routing_key))
        except declaring.TopologyError as error:
            self.fault = str(error)
            log.error("amqp.undeclared", error=self.fault)
