"""One AMQP channel, from its opening to its loss."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any
from uuid import uuid4

import aiormq
import structlog
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError, PublishError
from pamqp.commands import Basic

from messaging import metrics, topology
from messaging.settings import BrokerSettings

log = structlog.stdlib.get_logger(__name__)

PUBLISH_TIMEOUT_SECONDS = 30.0
RPC_TIMEOUT_SECONDS = 10.0
CLOSE_TIMEOUT_SECONDS = 5.0


class Publication(Enum):
    """What became of a published message."""

    CONFIRMED = auto()
    REFUSED = auto()
    """It certainly did not reach a queue: never sent, returned, or refused by the broker."""
    UNCERTAIN = auto()
    """It may have reached its queue: no confirm came."""


@dataclass(slots=True, eq=False)
class Delivery:
    """A message brought by one channel; its tag means nothing on any other."""

    channel: "Channel" = field(repr=False)
    tag: int
    redelivered: bool
    body: bytes = field(repr=False)

    async def ack(self, *, multiple: bool = False) -> None:
        """Acknowledge, `multiple` with all before it. Once the channel is lost this does nothing: it comes again."""
        await self.channel.ack(self.tag, multiple=multiple)


class Channel:
    """A ready channel: topology declared, publisher confirms on.

    `lost` is done as soon as the channel can no longer be relied on; its result says why.
    """

    def __init__(self, connection: aiormq.Connection, amqp: aiormq.Channel, settings: BrokerSettings) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._connection = connection
        self._amqp = amqp
        self._settings = settings
        self._heartbeat = settings.heartbeat_seconds
        self._alive_at = time.monotonic()
        self._declaring: asyncio.Task[None] | None = None
        self._watchdog = asyncio.create_task(self._watch())
        amqp.closing.add_done_callback(lambda _: self.lose("closed"))
        connection.closing.add_done_callback(lambda _: self.lose("connection lost"))
        # The broker cancels a consumer whose queue or node is gone, and leaves channel and connection open.
        amqp.on_consumer_cancel_callbacks.add(lambda _: self.lose("consumer cancelled by the broker"))

    def lose(self, reason: str) -> None:
        """Give the channel up; the session opens another one."""
        if not self.lost.done():
            self.lost.set_result(reason)

    async def close(self) -> None:
        """Close the connection; a channel in good order first, since acknowledgements not yet written go with it."""
        healthy = not self.lost.done()
        self.lose("closed by us")
        self._watchdog.cancel()
        if self._declaring:
            self._declaring.cancel()
        for close in (self._amqp.close, self._connection.close) if healthy else (self._connection.close,):
            try:
                await close(ConnectionError("closed by us"), timeout=CLOSE_TIMEOUT_SECONDS)
            except (TimeoutError, OSError, AMQPError) as error:
                log.debug("amqp.close_failed", error=repr(error))

    async def unblocked(self) -> None:
        """Wait while the broker, short of memory or disk, does not accept publishes."""
        ready = asyncio.ensure_future(self._connection.ready())
        either: list[asyncio.Future[Any]] = [ready, self.lost]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()

    async def publish(
        self,
        routing_key: str,
        body: bytes,
        *,
        message_id: str,
        exchange: str | None = None,
        mandatory: bool = True,
        reason: str | None = None,
    ) -> Publication:
        """Publish one persistent message; answer when the broker has it safe, has refused it, or cannot be asked.

        `exchange` is ours unless named (`""` is the broker's default one); `reason` goes along as a header.
        """
        if self.lost.done():
            return Publication.REFUSED
        try:
            await self._amqp.basic_publish(
                body,
                exchange=self._settings.exchange if exchange is None else exchange,
                routing_key=routing_key,
                properties=Basic.Properties(
                    content_type="application/json",
                    delivery_mode=2,
                    message_id=message_id,
                    headers={"x-reason": reason} if reason else None,
                ),
                mandatory=mandatory,
                timeout=PUBLISH_TIMEOUT_SECONDS,
                wait=False,
            )
        except PublishError as error:
            log.warning("amqp.returned", message_id=message_id, reason=str(error))
            await self._declare_again()
            return Publication.REFUSED
        except (DeliveryError, ChannelInvalidStateError) as error:
            log.warning("amqp.refused", message_id=message_id, reason=str(error))
            return Publication.REFUSED
        except asyncio.CancelledError:
            # aiormq ends a pending confirm with CancelledError when it closes a connection by itself.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self.lose("confirm cancelled")
        except (AMQPError, OSError, TimeoutError) as error:
            log.debug("amqp.unconfirmed", message_id=message_id, error=repr(error))
        else:
            return Publication.CONFIRMED
        metrics.UNCONFIRMED.inc()
        return Publication.UNCERTAIN

    async def dead_letter(self, queue: str, delivery: Delivery, reason: str) -> None:
        """Copy a message that its reader cannot use to the queue's dead-letter queue; the caller acknowledges it then.

        Without a confirm the channel is given up, the acknowledgement does nothing, and the message comes again.
        """
        metrics.DEAD_LETTERS.labels(queue).inc()
        log.error("amqp.dead_letter", queue=queue, reason=reason, size=len(delivery.body))
        dead = topology.dead_letter_queue(queue)
        copy = await self.publish(dead, delivery.body, message_id=str(uuid4()), exchange="", reason=reason)
        if copy is not Publication.CONFIRMED:
            self.lose("dead letter not confirmed")

    async def consume(self, queue: str, prefetch: int, on_delivery: Callable[[Delivery], None]) -> str:
        """Subscribe with at most `prefetch` messages not acknowledged; return the consumer's tag.

        `on_delivery` only takes the message: aiormq cancels running callbacks when the channel closes. When the
        subscription fails, the channel is lost.
        """

        async def deliver(message: DeliveredMessage) -> None:
            if self._stood_still():
                return
            tag, redelivered = message.delivery_tag, message.redelivered
            try:
                on_delivery(Delivery(self, tag or 0, bool(redelivered), message.body))
            except Exception:
                log.exception("amqp.bug", queue=queue)
                self.lose("a delivery was not taken")

        consumer_tag = str(uuid4())
        try:
            await self._amqp.basic_qos(prefetch_count=prefetch, timeout=RPC_TIMEOUT_SECONDS)
            await self._amqp.basic_consume(queue, deliver, consumer_tag=consumer_tag, timeout=RPC_TIMEOUT_SECONDS)
        except (AMQPError, OSError, TimeoutError, RuntimeError) as error:
            self.lose(f"consume failed: {error!r}")
        return consumer_tag

    async def cancel(self, consumer_tag: str) -> None:
        """End a subscription: when this returns, no further delivery comes."""
        try:
            await self._amqp.basic_cancel(consumer_tag, timeout=RPC_TIMEOUT_SECONDS)
            await asyncio.sleep(0)  # Deliveries that came before the broker's answer are tasks already; let them run.
        except (AMQPError, OSError, TimeoutError, RuntimeError) as error:
            self.lose(f"cancel failed: {error!r}")

    async def ack(self, tag: int, *, multiple: bool) -> None:
        """Acknowledge a delivery of this channel; nothing once it is lost."""
        if self.lost.done():
            return
        try:
            await self._amqp.basic_ack(tag, multiple=multiple, wait=False)
        except (AMQPError, OSError, RuntimeError) as error:
            self.lose(f"acknowledge failed: {error!r}")

    async def ready_messages(self, queue: str) -> int | None:
        """Count the messages of a queue that no reader has taken yet; None when the broker cannot tell just now.

        The confirm of an unroutable publish shows that the broker accepts publishes; a passive declare counts.
        """
        probe = await self.publish(f"{queue}.probe", b"", message_id=f"probe-{uuid4()}", mandatory=False)
        if probe is not Publication.CONFIRMED:
            return None
        try:
            answer = await self._amqp.queue_declare(queue, passive=True, timeout=RPC_TIMEOUT_SECONDS)
        except (AMQPError, OSError, TimeoutError, RuntimeError) as error:
            self.lose(f"passive declare failed: {error!r}")
            return None
        return answer.message_count

    async def _declare_again(self) -> None:
        """After a returned message: its queue or binding is gone. One declaration serves a whole batch of returns."""
        if self._declaring is None or self._declaring.done():
            self._declaring = asyncio.create_task(self._declare())
        await asyncio.wait({self._declaring})

    async def _declare(self) -> None:
        try:
            await topology.declare(self._amqp, self._settings)
        except (AMQPError, OSError, TimeoutError, RuntimeError) as error:
            self.lose(f"declare failed: {error!r}")

    async def _watch(self) -> None:
        """Notice that this process stood still (SIGSTOP, a suspended machine)."""
        while not self._stood_still():
            await asyncio.sleep(self._heartbeat / 4)

    def _stood_still(self) -> bool:
        """After a heartbeat's pause the broker may have given our deliveries to another process: do not begin them."""
        now = time.monotonic()
        if now - self._alive_at > self._heartbeat:
            self.lose("the process stood still")
        self._alive_at = now
        return self.lost.done()
