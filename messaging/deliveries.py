"""Messages that have been brought, and their acknowledgement."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from messaging.frames import encode_ack


class Carrier(Protocol):
    """The channel that has brought a message."""

    lost: asyncio.Future[str]

    def acknowledge(self, tags: Sequence[int]) -> None:
        """Acknowledge deliveries of this channel."""

    async def dead_letter(self, queue: str, delivery: "Delivery", reason: str) -> None:
        """Copy a message that its reader cannot use to its queue's dead-letter queue."""


@dataclass(slots=True, eq=False)
class Delivery:
    """A message brought by one channel; its tag means nothing on any other."""

    channel: Carrier = field(repr=False)
    tag: int
    redelivered: bool
    body: bytes = field(repr=False)


def acknowledge(deliveries: Iterable[Delivery]) -> None:
    """Acknowledge deliveries. For one of a lost channel there is nothing to do: its message comes again."""
    current = (delivery for delivery in deliveries if not delivery.channel.lost.done())
    for channel, group in groupby(current, lambda delivery: delivery.channel):
        channel.acknowledge([delivery.tag for delivery in group])


class Receipts:
    """What one channel has brought, in order, by the deliveries' tags.

    All done ones that lie before the first delivery still at work are acknowledged in one frame: a sixth of the
    broker's work.
    """

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._unacknowledged: OrderedDict[int, None] = OrderedDict()
        self.delivered = 0

    def __len__(self) -> int:
        """Count what is not acknowledged yet."""
        return len(self._unacknowledged)

    def add(self, tag: int) -> None:
        """Note a delivery."""
        self._unacknowledged[tag] = None
        self.delivered += 1

    def tick_off(self, tags: Sequence[int]) -> bytes:
        """Take deliveries off the list; return the frames that acknowledge them."""
        for tag in tags:
            del self._unacknowledged[tag]
        at_work = next(iter(self._unacknowledged), None)
        done = [tag for tag in tags if at_work is None or tag < at_work]
        frames = [encode_ack(self._channel, max(done), multiple=True)] if done else []
        frames += [
            encode_ack(self._channel, tag, multiple=False) for tag in tags if at_work is not None and tag > at_work
        ]
        return b"".join(frames)
