"""Messages that have been brought, and their acknowledgement or return."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from messaging.frames import encode_ack, encode_nack


class Encode(Protocol):
    """Makes a frame for one delivery, or for all up to it."""

    def __call__(self, channel: int, tag: int, *, multiple: bool) -> bytes:
        """Encode it."""


class Carrier(Protocol):
    """The channel that has brought a message."""

    lost: asyncio.Future[str]

    def acknowledge(self, receipts: "Receipts", tags: Sequence[int]) -> None:
        """Acknowledge deliveries of this channel."""

    def give_back(self, receipts: "Receipts", tags: Sequence[int]) -> None:
        """Return deliveries of this channel to their queue."""

    async def dead_letter(self, queue: str, delivery: "Delivery", reason: str) -> None:
        """Copy a message that its reader cannot use to its queue's dead-letter queue."""


@dataclass(slots=True, eq=False)
class Delivery:
    """A message brought by one channel; its tag means nothing but among these receipts."""

    channel: Carrier = field(repr=False)
    receipts: "Receipts" = field(repr=False)
    tag: int
    body: bytes = field(repr=False)


def acknowledge(deliveries: Iterable[Delivery]) -> None:
    """Acknowledge deliveries. For one of a lost channel there is nothing to do: its message comes again."""
    for first, tags in _together(deliveries):
        first.channel.acknowledge(first.receipts, tags)


def give_back(deliveries: Iterable[Delivery]) -> None:
    """Return deliveries to their queue; one of a lost channel is there already. End the subscription first.

    Up to RabbitMQ 4.2 each return counts towards the queue's delivery limit, since 4.3 none does
    (https://www.rabbitmq.com/docs/4.3/nack). A task that is dead-lettered by it begins some seconds later than else.
    """
    for first, tags in _together(deliveries):
        first.channel.give_back(first.receipts, tags)


def _together(deliveries: Iterable[Delivery]) -> Iterator[tuple[Delivery, list[int]]]:
    """Group what can be settled together: the first of each group, and the tags of all."""
    current = (delivery for delivery in deliveries if not delivery.channel.lost.done())
    for _, group in groupby(current, lambda delivery: delivery.receipts):
        together = list(group)
        yield together[0], [delivery.tag for delivery in together]


class Receipts:
    """What one AMQP channel has brought, in order, by the deliveries' tags, until it is acknowledged or given back.

    All done ones that lie before the first delivery still at work are settled in one frame: a sixth of the broker's
    work.
    """

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._unsettled: OrderedDict[int, None] = OrderedDict()
        self.delivered = 0
        # Set while nothing is at work.
        self.settled = asyncio.Event()
        self.settled.set()

    def __len__(self) -> int:
        """Count what is not settled yet."""
        return len(self._unsettled)

    def add(self, tag: int) -> None:
        """Note a delivery."""
        self._unsettled[tag] = None
        self.delivered += 1
        self.settled.clear()

    def acknowledge(self, tags: Sequence[int]) -> bytes:
        """Take deliveries off the list; return the frames that acknowledge them."""
        return self._settle(tags, encode_ack)

    def give_back(self, tags: Sequence[int]) -> bytes:
        """Take deliveries off the list; return the frames that put them back into their queue."""
        return self._settle(tags, encode_nack)

    def _settle(self, tags: Sequence[int], encode: Encode) -> bytes:
        # "All up to this one" says nothing of those before it that were settled otherwise, by earlier frames.
        for tag in tags:
            del self._unsettled[tag]
        if not self._unsettled:
            self.settled.set()
        at_work = next(iter(self._unsettled), None)
        done = [tag for tag in tags if at_work is None or tag < at_work]
        frames = [encode(self._channel, max(done), multiple=True)] if done else []
        frames += [encode(self._channel, tag, multiple=False) for tag in tags if at_work is not None and tag > at_work]
        return b"".join(frames)
