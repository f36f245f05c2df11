"""One AMQP channel, from its opening to its loss."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any
from uuid import uuid4

import aiormq
import structlog
from aiormq.abc import ChannelFrame, DeliveredMessage
from aiormq.exceptions import AMQPError
from pamqp.commands import Basic

from messaging import metrics, topology
from messaging.frames import Letter, encode_ack
from messaging.publishing import Publication, publish
from messaging.settings import BrokerSettings

log = structlog.stdlib.get_logger(__name__)

RPC_TIMEOUT_SECONDS = 10.0
CLOSE_TIMEOUT_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class Delivery:
    """A message brought by one channel; its tag means nothing on any other."""

    channel: "Channel" = field(repr=False)
    tag: int
    redelivered: bool
    body: bytes = field(repr=False)


async def acknowledge(deliveries: Iterable[Delivery]) -> None:
    """Acknowledge deliveries. For one of a lost channel there is nothing to do: its message comes again."""
    current = (delivery for delivery in deliveries if not delivery.channel.lost.done())
    for channel, group in groupby(current, lambda delivery: delivery.channel):
        await channel.acknowledge([delivery.tag for delivery in group])


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
        self._unacknowledged: OrderedDict[int, None] = OrderedDict()
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
        letters: Sequence[Letter],
        *,
        exchange: str | None = None,
        mandatory: bool = True,
        reason: str | None = None,
    ) -> list[Publication]:
        """Publish persistent messages; answer when the broker has them safe, has refused them, or cannot be asked.

        `exchange` is ours unless named (`""` is the broker's default one); `reason` goes along as a header.
        """
        if self.lost.done():
            return [Publication.REFUSED] * len(letters)
        publications = await publish(
            self._amqp,
            Basic.Publish(
                exchange=self._settings.exchange if exchange is None else exchange,
                routing_key=routing_key,
                mandatory=mandatory,
            ),
            Basic.Properties(
                content_type="application/json", delivery_mode=2, headers={"x-reason": reason} if reason else None
            ),
            letters,
            self.lost,
        )
        if Publication.RETURNED in publications:
            await self._declare_again()
        return publications

    async def dead_letter(self, queue: str, delivery: Delivery, reason: str) -> None:
        """Copy a message that its reader cannot use to the queue's dead-letter queue; the caller acknowledges it then.

        Without a confirm the channel is given up, the acknowledgement does nothing, and the message comes again.
        """
        metrics.DEAD_LETTERS.labels(queue).inc()
        log.error("amqp.dead_letter", queue=queue, reason=reason, size=len(delivery.body))
        dead = topology.dead_letter_queue(queue)
        letter = Letter(str(uuid4()), delivery.body)
        if await self.publish(dead, [letter], exchange="", reason=reason) != [Publication.CONFIRMED]:
            self.lose("dead letter not confirmed")

    async def consume(self, queue: str, prefetch: int, on_delivery: Callable[[Delivery], None]) -> str:
        """Subscribe with at most `prefetch` messages not acknowledged; return the consumer's tag.

        `on_delivery` only takes the message: aiormq cancels running callbacks when the channel closes. When the
        subscription fails, the channel is lost.
        """

        async def deliver(message: DeliveredMessage) -> None:
            if self._stood_still():
                return
            tag = message.delivery_tag or 0
            self._unacknowledged[tag] = None
            try:
                on_delivery(Delivery(self, tag, bool(message.redelivered), message.body))
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

    async def acknowledge(self, tags: Sequence[int]) -> None:
        """Acknowledge deliveries of this channel; nothing once it is lost.

        All that lie before the first delivery still at work go in one frame: a sixth of the broker's work.
        """
        if self.lost.done():
            return
        for tag in tags:
            del self._unacknowledged[tag]
        at_work = next(iter(self._unacknowledged), None)
        done = [tag for tag in tags if at_work is None or tag < at_work]
        frames = [encode_ack(self._amqp.number, max(done), multiple=True)] if done else []
        frames += [
            encode_ack(self._amqp.number, tag, multiple=False) for tag in tags if at_work is not None and tag > at_work
        ]
        try:
            async with asyncio.timeout(RPC_TIMEOUT_SECONDS):
                await self._amqp.write_queue.put(ChannelFrame(b"".join(frames), should_close=False))
        except TimeoutError as error:
            self.lose(f"acknowledge failed: {error!r}")

    async def ready_messages(self, queue: str) -> int | None:
        """Count the messages of a queue that no reader has taken yet; None when the broker cannot tell just now.

        The confirm of an unroutable publish shows that the broker accepts publishes; a passive declare counts.
        """
        probe = Letter(f"probe-{uuid4()}", b"")
        if await self.publish(f"{queue}.probe", [probe], mandatory=False) != [Publication.CONFIRMED]:
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
