"""Taking messages from a queue."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from uuid import uuid4

import aiormq
import structlog
from aiormq.abc import DeliveredMessage

from messaging.asking import Asker, Lose
from messaging.deliveries import Delivery, Receipts
from messaging.patience import Patience
from messaging.reader import Reader

log = structlog.stdlib.get_logger(__name__)

Take = Callable[[Delivery], None]
"""Is called with each message as it arrives, and must not fail."""


async def _never(_: DeliveredMessage) -> None:
    """Placeholder: aiormq insists on a callback, but `Reader` takes deliveries first."""


class Consumer:
    """Takes the messages of one queue at a time; a subscription that brings nothing for a while is begun anew.

    Nothing tells a queue without work from a broker that has lost the subscription: when a queue is deleted and
    declared again at once, RabbitMQ before 4.0 subscribes old channels to the new queue, and drops what it hands them
    (`rabbit_channel:handle_consuming_queue_down_or_eol`); after one deletion more they are subscribed to nothing.
    Only the end of its AMQP channel brings such messages back to the queue, so each subscription has one of its own;
    it stays open while deliveries of it are at work.

    `lost` is done when the connection can no longer be relied on; `lose` makes it so. `unblocked` waits while the
    broker answers nothing, short of memory or disk.
    """

    def __init__(
        self,
        connection: aiormq.Connection,
        reader: Reader,
        lost: asyncio.Future[str],
        lose: Lose,
        unblocked: Callable[[], Awaitable[None]],
        *,
        patience: Patience,
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._asker = Asker(reader, lose, patience.answer)
        self._lost = lost
        self._lose = lose
        self._unblocked = unblocked
        self._patience = patience
        # Who is handed each delivery; nobody before the first subscription.
        self._take: Take | None = None
        # What each AMQP channel of ours has brought, by its number.
        self.receipts: dict[int, Receipts] = {}
        # The one that brings messages now; None before the first subscription and after its end.
        self._amqp: aiormq.Channel | None = None
        self._changing = asyncio.Lock()
        # Renewals, and ends of channels whose deliveries are still at work.
        self._tasks: set[asyncio.Task[None]] = set()

    async def consume(self, queue: str, prefetch: int, take: Take) -> str:
        """Subscribe with at most `prefetch` messages not settled; return the subscription's tag."""
        self._take, tag = take, str(uuid4())
        await self._subscribe(queue, prefetch, tag)
        self._spawn(self._renew(queue, prefetch, tag))
        return tag

    async def cancel(self, tag: str) -> None:
        """End a subscription: when this returns, no further delivery comes."""
        async with self._changing:
            await self._unsubscribe(tag)

    def hand_over(self, delivery: Delivery) -> None:
        """Give a delivery to the subscription's reader."""
        if self._take is None:
            return
        delivery.receipts.add(delivery.tag)
        try:
            self._take(delivery)
        except Exception:
            log.exception("amqp.bug")
            self._lose("a delivery was not taken")

    def stop(self) -> None:
        """Renew nothing more."""
        for task in self._tasks:
            task.cancel()

    async def _renew(self, queue: str, prefetch: int, tag: str) -> None:
        while amqp := self._amqp:
            receipts = self.receipts[amqp.number]
            delivered = receipts.delivered
            await asyncio.wait({self._lost}, timeout=self._patience.idle)
            await self._unblocked()
            async with self._changing:
                if self._lost.done() or tag not in amqp.consumers:
                    return
                idle = receipts.delivered == delivered and not self._reader.is_amid
                if idle and len(receipts) < prefetch:
                    await self._unsubscribe(tag)
                    await self._subscribe(queue, prefetch, tag)

    async def _subscribe(self, queue: str, prefetch: int, tag: str) -> None:
        self._amqp = await self._asker.ask("consume", self._open(queue, prefetch, tag))

    async def _open(self, queue: str, prefetch: int, tag: str) -> aiormq.Channel:
        # aiormq's own choice of a number grows for ever.
        number = next(number for number in itertools.count(1) if number not in self._connection.channels)
        amqp = await self._connection.channel(number, publisher_confirms=False)
        assert isinstance(amqp, aiormq.Channel)  # noqa: S101 - aiormq promises only its abstract class.
        amqp.closing.add_done_callback(lambda _: self._on_closed(number))
        # The broker cancels a consumer whose queue or node is gone, and leaves channel and connection open.
        amqp.on_consumer_cancel_callbacks.add(lambda _: self._lose("consumer cancelled by the broker"))
        self.receipts[number] = Receipts(number)
        await amqp.basic_qos(prefetch_count=prefetch)
        await amqp.basic_consume(queue, _never, consumer_tag=tag)
        return amqp

    def _on_closed(self, number: int) -> None:
        if number in self.receipts:
            words = self._reader.said(number)
            self._lose(f"closed: {words}" if words else "closed")

    async def _unsubscribe(self, tag: str) -> None:
        amqp, self._amqp = self._amqp, None
        if amqp:
            await self._asker.ask("cancel", amqp.basic_cancel(tag))
            receipts = self.receipts[amqp.number]
            if len(receipts):
                self._spawn(self._close(amqp, receipts))
            else:
                await self._close(amqp, receipts)

    async def _close(self, amqp: aiormq.Channel, receipts: Receipts) -> None:
        await receipts.settled.wait()
        if not self._lost.done():
            del self.receipts[amqp.number]
            await self._asker.ask("close", amqp.close())

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
