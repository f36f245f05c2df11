"""Taking messages from a queue."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import uuid4

import aiormq
import structlog
from aiormq.abc import DeliveredMessage

from messaging.asking import Lose, ask, count
from messaging.deliveries import Delivery, Receipts
from messaging.patience import Patience

log = structlog.stdlib.get_logger(__name__)

Take = Callable[[Delivery], None]
"""Is called with each message as it arrives, and must not fail."""


async def _never(_: DeliveredMessage) -> None:
    """Placeholder: aiormq insists on a callback, but `Reader` takes deliveries first."""


class Consumer:
    """Takes the messages of one queue at a time over one channel, and notices when none come.

    `lost` is done when the channel can no longer be relied on; `lose` makes it so. `unblocked` waits while the broker
    answers nothing, short of memory or disk.
    """

    def __init__(
        self,
        amqp: aiormq.Channel,
        lost: asyncio.Future[str],
        lose: Lose,
        unblocked: Callable[[], Awaitable[None]],
        patience: Patience,
    ) -> None:
        self._amqp = amqp
        self._lost = lost
        self._lose = lose
        self._unblocked = unblocked
        self._patience = patience
        self.receipts = Receipts(amqp.number)
        # Who is handed each delivery; nobody before the first subscription.
        self._take: Take | None = None
        # The look at the subscription's supply, kept from the garbage collector.
        self._supply: asyncio.Task[None] | None = None

    async def consume(self, queue: str, prefetch: int, take: Take) -> str:
        """Subscribe with at most `prefetch` messages not acknowledged; return the subscription's tag."""
        self._take = take
        tag, timeout = str(uuid4()), self._patience.answer

        async def subscribe() -> None:
            await self._amqp.basic_qos(prefetch_count=prefetch, timeout=timeout)
            await self._amqp.basic_consume(queue, _never, consumer_tag=tag, timeout=timeout)

        await ask("consume", subscribe(), self._lose)
        self._supply = asyncio.create_task(self._watch_supply(tag, queue, prefetch))
        return tag

    async def cancel(self, tag: str) -> None:
        """End a subscription: when this returns, no further delivery comes."""
        await ask("cancel", self._amqp.basic_cancel(tag, timeout=self._patience.answer), self._lose)

    def hand_over(self, delivery: Delivery) -> None:
        """Give a delivery to the subscription's reader."""
        if self._take is None:
            return
        self.receipts.add(delivery.tag)
        try:
            self._take(delivery)
        except Exception:
            log.exception("amqp.bug")
            self._lose("a delivery was not taken")

    async def _watch_supply(self, tag: str, queue: str, prefetch: int) -> None:
        """Leave a channel that brings nothing though there is something to bring; ends with the subscription.

        When a queue is deleted and declared again at once, RabbitMQ 3.10 may take old subscriptions for ones of the
        new queue, and drop its messages as those that they have seen.
        """
        starving = False
        while True:
            delivered = self.receipts.delivered
            await asyncio.wait({self._lost}, timeout=self._patience.supply)
            await self._unblocked()
            if self._lost.done() or tag not in self._amqp.consumers:
                return
            hungry = self.receipts.delivered == delivered and len(self.receipts) < prefetch
            waiting = hungry and await self._is_filled(queue) and self.receipts.delivered == delivered
            if starving and waiting:
                self._lose("the queue has messages and brings none")
            starving = waiting

    async def _is_filled(self, queue: str) -> bool:
        messages, _ = await count(self._amqp, queue, self._lose, self._patience.answer)
        return messages > 0
