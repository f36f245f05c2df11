"""One AMQP channel, from its opening to its loss."""

import asyncio
from collections.abc import Sequence
from uuid import uuid4

import aiormq
import structlog
from aiormq.exceptions import AMQPError
from pamqp.commands import Basic

from messaging import metrics, topology
from messaging.asking import Asker, describe, unless_lost
from messaging.consuming import Consumer, Take
from messaging.deliveries import Delivery, Receipts
from messaging.frames import Letter
from messaging.patience import Patience
from messaging.publishing import Publication, Publisher
from messaging.repair import Repair
from messaging.settings import BrokerSettings
from messaging.transport import Transport

log = structlog.stdlib.get_logger(__name__)


class Channel:
    """A ready channel: topology declared, publisher confirms on.

    `lost` is done as soon as the channel can no longer be relied on; its result says why.
    """

    def __init__(
        self,
        connection: aiormq.Connection,
        amqp: aiormq.Channel,
        transport: Transport,
        settings: BrokerSettings,
        patience: Patience,
    ) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._settings = settings
        self._patience = patience
        # aiormq's connection and its one channel: for all that is not by the hundred.
        self._connection = connection
        self._amqp = amqp
        # What is by the hundred goes past aiormq: publishes, confirms, deliveries, acknowledgements.
        self._transport = transport
        confirm = settings.silence_seconds if patience.confirm is None else patience.confirm
        self._publisher = Publisher(
            transport, amqp.number, amqp.max_content_size, self.lost, self.lose, patience=confirm
        )
        self._consumer = Consumer(connection, transport.reader, self.lost, self.lose, self.unblocked, patience=patience)
        self._asker = Asker(transport.reader, self.lose, patience.answer)
        self.repair = Repair(connection, settings, self._asker)
        transport.reader.receiver = self
        amqp.closing.add_done_callback(lambda _: self.lose("closed"))
        connection.closing.add_done_callback(lambda _: self.lose("connection lost"))

    def lose(self, reason: str, error: BaseException | None = None) -> None:
        """Give the channel up; the session opens another one. The broker's own words say more than any error.

        What was published and not confirmed is told to be uncertain now, and must not go out later: a closed transport
        still sends what is in its buffer, an aborted one does not.
        """
        if self.lost.done():
            return
        why = self._transport.reader.said(self._amqp.number) or (error and describe(error))
        self.lost.set_result(f"{reason}: {why}" if why else reason)
        if self._publisher.is_owed_confirms:
            self._transport.abort()

    async def close(self) -> None:
        """Close the connection; where no confirm is owed, the broker reads what is written before the end of it."""
        self.lose("closed by us")
        self._consumer.stop()
        self.repair.cancel()
        try:
            await self._connection.close(ConnectionError("closed by us"), timeout=self._patience.close)
        except (TimeoutError, OSError, AMQPError) as error:
            log.debug("amqp.close_failed", error=repr(error))

    async def unblocked(self) -> None:
        """Wait while the broker, short of memory or disk, does not accept publishes."""
        await unless_lost(self._connection.ready(), self.lost)

    async def publish(
        self,
        routing_key: str,
        letters: Sequence[Letter],
        *,
        exchange: str | None = None,
        reason: str | None = None,
    ) -> list[Publication]:
        """Publish persistent messages; answer when the broker has them safe, has refused them, or cannot be asked.

        `exchange` is ours unless named; `reason` goes along as a header.
        """
        if self.lost.done() or not letters:
            return [Publication.REFUSED] * len(letters)
        exchange = exchange or self._settings.exchange
        publications = await self._publisher.publish(
            Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True),
            Basic.Properties(
                content_type="application/json", delivery_mode=2, headers={"x-reason": reason} if reason else None
            ),
            letters,
        )
        if Publication.RETURNED in publications:
            await self.repair.run(exchange, routing_key)
        elif Publication.CONFIRMED in publications:
            self.repair.fault = None
        return publications

    async def dead_letter(self, queue: str, delivery: Delivery, reason: str) -> None:
        """Copy a message that its reader cannot use to the queue's dead-letter queue; the caller acknowledges it then.

        Without a confirm the channel is given up, the acknowledgement does nothing, and the message comes again.
        """
        metrics.DEAD_LETTERS.labels(queue).inc()
        log.error("amqp.dead_letter", queue=queue, reason=reason, size=len(delivery.body))
        dead = topology.dead_letter_queue(queue)
        exchange = topology.dead_letter_exchange(self._settings.exchange)
        letter = Letter(str(uuid4()), delivery.body)
        if await self.publish(dead, [letter], exchange=exchange, reason=reason) != [Publication.CONFIRMED]:
            self.lose("dead letter not confirmed")

    async def consume(self, queue: str, prefetch: int, take: Take) -> str:
        """Subscribe with at most `prefetch` messages not acknowledged; return the subscription's tag.

        When the subscription fails, the channel is lost.
        """
        return await self._consumer.consume(queue, prefetch, take)

    async def cancel(self, consumer_tag: str) -> None:
        """End a subscription: when this returns, no further delivery comes."""
        await self._consumer.cancel(consumer_tag)

    def acknowledge(self, receipts: Receipts, tags: Sequence[int]) -> None:
        """Acknowledge deliveries of this channel; nothing once it is lost."""
        if not self.lost.done():
            self._transport.write(receipts.acknowledge(tags))

    def give_back(self, receipts: Receipts, tags: Sequence[int]) -> None:
        """Return deliveries of this channel to their queue; nothing once it is lost: they are there already."""
        if not self.lost.done():
            self._transport.write(receipts.give_back(tags))

    def on_delivery(self, channel: int, tag: int, body: bytes) -> None:
        """Hand a message from the transport over to the subscription's reader."""
        receipts = self._consumer.receipts.get(channel)
        if receipts is not None and not self.lost.done():
            self._consumer.hand_over(Delivery(self, receipts, tag, body))

    def on_return(self, message_id: str, reason: str) -> None:
        """Hand on what the broker says of a message of ours."""
        self._publisher.on_return(message_id, reason)

    def on_confirm(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Hand on what the broker says of messages of ours."""
        self._publisher.on_confirm(tag, multiple=multiple, accepted=accepted)

    async def ready_messages(self, queue: str) -> int | None:
        """Count the messages of a queue that no reader has taken yet; None when the broker cannot tell just now.

        A quorum queue that does not answer within 250 ms is said to have no messages, and no consumers either
        (`rabbit_quorum_queue:stat`): a queue with neither is taken for one that did not answer.
        """
        count = await self._asker.ask("passive declare", self._amqp.queue_declare(queue, passive=True))
        return count.message_count if count and (count.message_count or count.consumer_count) else None
