"""The AMQP session: a ready channel, and a new one after each loss."""

import asyncio
import itertools
import random
from types import TracebackType
from typing import Self

import aiormq
import structlog
from yarl import URL

from messaging import declaring, metrics
from messaging.asking import describe, raise_if_cancelled
from messaging.channel import Channel
from messaging.patience import Patience
from messaging.settings import BrokerSettings
from messaging.transport import Transport
from runtime import clock

log = structlog.stdlib.get_logger(__name__)

BACKOFF_BASE_SECONDS = 0.2
BACKOFF_MAX_SECONDS = 5.0
STEADY_SECONDS = 5.0
"""A channel that lives shorter than this has failed, as one that was never opened: its rights or its queue may lack."""


class Session:
    """An async iterator of ready channels, one at a time, over all nodes of the broker.

    `name` is what the broker's management shows for the connection.
    """

    def __init__(self, settings: BrokerSettings, name: str, patience: Patience | None = None) -> None:
        self._settings = settings
        self._name = name
        self._patience = patience or Patience()
        # Replicas spread over the nodes; each goes round all of them.
        self._nodes = itertools.cycle(random.sample(settings.nodes, len(settings.nodes)))
        # The last channel that was opened, lost or not; who waits for the next one waits for the event.
        self._channel: Channel | None = None
        self._opened = asyncio.Event()
        # Why there is no channel, while there is none.
        self._trouble = "broker: not connected yet"
        # How many times in a row no steady channel came about, and when the last one was opened.
        self._failures = 0
        self._opened_at = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Channel:
        """Close the last channel and open the next, for as long as it takes."""
        await self._leave()
        if self._failures:
            delay = self._delay()
            log.warning("amqp.short_lived", attempt=self._failures, retry_in=delay)
            await asyncio.sleep(delay)
        while True:
            raise_if_cancelled()
            node, transport = next(self._nodes), Transport(self._settings.silence_seconds)
            try:
                channel = await self._open(node, transport)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - aiormq raises bare ones, too.
                raise_if_cancelled()
                self._failures += 1
                delay = self._delay()
                # The broker's own words, where it said any: aiormq drops those that answer its opening.
                why = transport.reader.said(0) or describe(error)
                self._trouble = f"broker: {why}"
                log.warning(
                    "amqp.connect_failed", node=_address(node), attempt=self._failures, error=why, retry_in=delay
                )
                await asyncio.sleep(delay)
                continue
            log.info("amqp.connected", node=_address(node), attempt=self._failures + 1)
            self._opened_at = clock.now()
            metrics.CONNECTS.inc()
            channel.lost.add_done_callback(self._on_lost)
            self._channel = channel
            self._opened.set()
            return channel

    @property
    def current(self) -> Channel | None:
        """The channel of now, if there is one."""
        return self._channel if self._channel and not self._channel.lost.done() else None

    async def channel(self) -> Channel:
        """Return the channel of now; wait for one while there is none."""
        while (channel := self.current) is None:
            self._opened.clear()
            await self._opened.wait()
        return channel

    @property
    def unready(self) -> str | None:
        """What a readiness check says: None while there is a channel, and what is published reaches its queue."""
        if channel := self.current:
            return channel.repair.fault and f"broker: {channel.repair.fault}"
        return self._trouble

    async def _open(self, node: URL, transport: Transport) -> Channel:
        async with asyncio.timeout(self._patience.connect):
            connection = await aiormq.connect(
                node, client_properties={"connection_name": self._name}, transport_factory=transport
            )
            try:
                await declaring.ensure(connection, self._settings)
                amqp = await connection.channel()
                assert isinstance(amqp, aiormq.Channel)  # noqa: S101 - aiormq promises only its abstract class.
            except BaseException as error:
                await connection.close(error)
                raise
        return Channel(connection, amqp, transport, self._settings, self._patience)

    def _on_lost(self, lost: asyncio.Future[str]) -> None:
        self._trouble = f"broker: {lost.result()}"
        log.warning("amqp.lost", reason=lost.result())

    async def _leave(self) -> None:
        channel, self._channel = self._channel, None
        if channel:
            self._failures = self._failures + 1 if clock.now() < self._opened_at + STEADY_SECONDS else 0
            await channel.close()

    def _delay(self) -> float:
        seconds = min(BACKOFF_MAX_SECONDS, BACKOFF_BASE_SECONDS * 2.0 ** min(self._failures, 10))
        return round(seconds * random.uniform(0.5, 1), 2)


def _address(node: URL) -> str:
    """Name a node without its password."""
    return f"{node.host}:{node.port}"
