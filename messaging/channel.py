"""One AMQP channel, from its opening to its loss."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar
from uuid import uuid4

import aiormq
import structlog
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPError
from pamqp.commands import Basic

from messaging import metrics, topology
from messaging.frames import Letter, encode_ack
from messaging.publishing import Publication, Publisher
from messaging.settings import BrokerSettings
from messaging.transport import Transport

log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

RPC_TIMEOUT_SECONDS = 10.0
CLOSE_TIMEOUT_SECONDS = 5.0
SUPPLY_SECONDS = 3.0


@dataclass(slots=True, eq=False)
class Delivery:
    """A message brought by one channel; its tag means nothing on any other."""

    channel: "Channel" = field(repr=False)
    tag: int
    redelivered: bool
    body: bytes = field(repr=False)


def acknowledge(deliveries: Iterable[Delivery]) -> None:
    """Acknowledge deliveries. For one of a lost channel there is nothing to do: its message comes again."""
    current = (delivery for delivery in deliveries if not delivery.channel.lost.done())
    for channel, group in groupby(current, lambda delivery: delivery.channel):
        channel.acknowledge([delivery.tag for delivery in group])


def raise_if_cancelled() -> None:
    """Tell our own cancellation from aiormq's: it swallows ours where it closes, and raises one where it loses."""
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError


async def _never(_: DeliveredMessage) -> None:
    """Stand where aiormq wants a consumer: messages are taken before they get to aiormq."""


class Channel:
    """A ready channel: topology declared, publisher confirms on.

    `lost` is done as soon as the channel can no longer be relied on; its result says why.
    """

    def __init__(
        self, connection: aiormq.Connection, amqp: aiormq.Channel, transport: Transport, settings: BrokerSettings
    ) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._connection = connection
        self._amqp = amqp
        self._transport = transport
        self._publisher = Publisher(transport, amqp.number, amqp.max_content_size, self.lost)
        self._settings = settings
        self._heartbeat = settings.heartbeat_seconds
        self._alive_at = time.monotonic()
        self._unacknowledged: OrderedDict[int, None] = OrderedDict()
        self._delivered = 0
        self._take: Callable[[Delivery], None] | None = None
        self._declaring: asyncio.Task[None] | None = None
        self._supply: asyncio.Task[None] | None = None
        self._watchdog = asyncio.create_task(self._watch())
        transport.reader.receiver = self
        amqp.closing.add_done_callback(lambda _: self.lose("closed"))
        connection.closing.add_done_callback(lambda _: self.lose("connection lost"))
        # The broker cancels a consumer whose queue or node is gone, and leaves channel and connection open.
        amqp.on_consumer_cancel_callbacks.add(lambda _: self.lose("consumer cancelled by the broker"))

    def lose(self, reason: str) -> None:
        """Give the channel up; the session opens another one."""
        if not self.lost.done():
            self.lost.set_result(reason)

    async def close(self) -> None:
        """Close the connection; the broker reads what is written before the end of it."""
        self.lose("closed by us")
        self._watchdog.cancel()
        if self._declaring:
            self._declaring.cancel()
        try:
            await self._connection.close(ConnectionError("closed by us"), timeout=CLOSE_TIMEOUT_SECONDS)
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
        if self.lost.done() or not letters:
            return [Publication.REFUSED] * len(letters)
        publications = await self._publisher.publish(
            Basic.Publish(
                exchange=self._settings.exchange if exchange is None else exchange,
                routing_key=routing_key,
                mandatory=mandatory,
            ),
            Basic.Properties(
                content_type="application/json", delivery_mode=2, headers={"x-reason": reason} if reason else None
            ),
            letters,
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

    async def consume(self, queue: str, prefetch: int, take: Callable[[Delivery], None]) -> str:
        """Subscribe with at most `prefetch` messages not acknowledged; return the consumer's tag.

        `take` is called with each as it arrives, and must not fail. When the subscription fails, the channel is lost.
        """
        self._take = take
        consumer_tag = str(uuid4())

        async def subscribe() -> None:
            await self._amqp.basic_qos(prefetch_count=prefetch, timeout=RPC_TIMEOUT_SECONDS)
            await self._amqp.basic_consume(queue, _never, consumer_tag=consumer_tag, timeout=RPC_TIMEOUT_SECONDS)

        await self._ask("consume", subscribe())
        self._supply = asyncio.create_task(self._watch_supply(consumer_tag, queue, prefetch))
        return consumer_tag

    async def cancel(self, consumer_tag: str) -> None:
        """End a subscription: when this returns, no further delivery comes."""
        await self._ask("cancel", self._amqp.basic_cancel(consumer_tag, timeout=RPC_TIMEOUT_SECONDS))

    def acknowledge(self, tags: Sequence[int]) -> None:
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
        self._transport.write(b"".join(frames))

    def on_delivery(self, tag: int, body: bytes, *, redelivered: bool) -> None:
        """Take a message from the transport."""
        if self._stood_still() or self._take is None:
            return
        self._unacknowledged[tag] = None
        self._delivered += 1
        try:
            self._take(Delivery(self, tag, redelivered, body))
        except Exception:
            log.exception("amqp.bug")
            self.lose("a delivery was not taken")

    def on_return(self, message_id: str, reason: str) -> None:
        """Hand on what the broker says of a message of ours."""
        self._publisher.on_return(message_id, reason)

    def on_confirm(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Hand on what the broker says of messages of ours."""
        self._publisher.on_confirm(tag, multiple=multiple, accepted=accepted)

    async def accepts_publishes(self) -> bool:
        """Tell whether the broker takes messages now; one short of memory or disk does not. Reaches no queue."""
        probe = Letter(f"probe-{uuid4()}", b"")
        return await self.publish("probe", [probe], mandatory=False) == [Publication.CONFIRMED]

    async def ready_messages(self, queue: str) -> int | None:
        """Count the messages of a queue that no reader has taken yet; None when the broker cannot tell just now.

        A quorum queue that does not answer within 250 ms is said to have no messages, and no consumers either
        (`rabbit_quorum_queue:stat`): a queue without consumers is taken for one that did not answer.
        """
        messages, consumers = await self._count(queue)
        return messages if consumers else None

    async def _count(self, queue: str) -> tuple[int, int]:
        declaring = self._amqp.queue_declare(queue, passive=True, timeout=RPC_TIMEOUT_SECONDS)
        answer = await self._ask("passive declare", declaring)
        return (answer.message_count or 0, answer.consumer_count or 0) if answer else (0, 0)

    async def _declare_again(self) -> None:
        """After a returned message: its queue or binding is gone. One declaration serves a whole batch of returns."""
        if self._declaring is None or self._declaring.done():
            self._declaring = asyncio.create_task(self._ask("declare", topology.declare(self._amqp, self._settings)))
        await asyncio.wait({self._declaring})

    async def _ask(self, what: str, question: Coroutine[Any, Any, T]) -> T | None:
        """Ask the broker. Without an answer the channel is lost.

        aiormq ends what waits on a connection that breaks with many an exception: a bare one, and CancelledError.
        """
        try:
            return await question
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - `lost` tells it, and the session logs it.
            raise_if_cancelled()
            self.lose(f"{what} failed: {error!r}")
            return None

    async def _watch_supply(self, consumer_tag: str, queue: str, prefetch: int) -> None:
        """Leave a channel that brings nothing though there is something to bring; ends with the subscription.

        When a queue is deleted and declared again at once, RabbitMQ 3.10 may take old subscriptions for ones of the
        new queue, and drop its messages as those that they have seen.
        """
        starving = False
        while True:
            delivered = self._delivered
            await asyncio.wait({self.lost}, timeout=SUPPLY_SECONDS)
            await self.unblocked()
            if self.lost.done() or consumer_tag not in self._amqp.consumers:
                return
            hungry = self._delivered == delivered and len(self._unacknowledged) < prefetch
            waiting = hungry and (await self._count(queue))[0] > 0 and self._delivered == delivered
            if starving and waiting:
                self.lose("the queue has messages and brings none")
            starving = waiting

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
