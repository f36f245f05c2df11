"""Publishing a batch of messages and learning what became of each."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import structlog
from pamqp.commands import Basic

from messaging import metrics
from messaging.asking import Lose, outlast
from messaging.frames import Letter, encode_publishes
from messaging.transport import Transport
from runtime.clock import now

log = structlog.stdlib.get_logger(__name__)


class Publication(Enum):
    """What became of a published message."""

    CONFIRMED = auto()
    REFUSED = auto()
    """It certainly did not reach a queue: never sent, refused by the broker, or `RETURNED`."""
    RETURNED = auto()
    """Refused, because the exchange knows no queue for it."""
    UNCERTAIN = auto()
    """It may have reached its queue: no confirm came."""

    @property
    def is_refused(self) -> bool:
        """Whether it may be published again at once."""
        return self in (Publication.REFUSED, Publication.RETURNED)


@dataclass(slots=True, eq=False)
class Batch:
    """Letters published together, and what is known of each so far."""

    letters: Sequence[Letter]
    tags: range
    publications: list[Publication]
    unconfirmed: int
    moved_at: float
    """When the broker has said something last of one of these, or of one before them."""
    concluded: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Publisher:
    """Publishes over one channel, in confirm mode from its beginning, and matches what the broker says to it.

    `max_piece`: bytes of a body that a frame may carry. `lost`: done when nothing of this channel is to be waited for
    any more; `lose` makes it so. `patience`: seconds that a confirm may take after
    the one before it: a slow line takes long for a batch.
    """

    def __init__(
        self,
        transport: Transport,
        channel: int,
        max_piece: int,
        lost: asyncio.Future[str],
        lose: Lose,
        *,
        patience: float,
    ) -> None:
        self._transport = transport
        self._channel = channel
        self._max_piece = max_piece
        self._lost = lost
        self._lose = lose
        self._patience = patience
        # The broker counts publishes from the channel's opening on, and so do we: its confirms name the number.
        self._published = 0
        # Where each number that is not confirmed yet belongs: its batch, and its position there. In order.
        self._unconfirmed: OrderedDict[int, tuple[Batch, int]] = OrderedDict()
        # Those that are waited for, in order.
        self._batches: list[Batch] = []
        # Whether a batch was given up: it may still lie in a buffer.
        self._has_forgotten = False

    @property
    def is_owed_confirms(self) -> bool:
        """Whether anything that was written may still be on its way to the broker."""
        return self._has_forgotten or bool(self._unconfirmed)

    async def publish(
        self, route: Basic.Publish, properties: Basic.Properties, letters: Sequence[Letter]
    ) -> list[Publication]:
        """Publish all letters by one route in one write, and tell what became of each once the broker has answered.

        What would lie in our own buffer for long is refused: nobody could say when it goes out.
        """
        if self._transport.is_full:
            return [Publication.REFUSED] * len(letters)
        frames = encode_publishes(self._channel, self._max_piece, route, properties, letters)
        if not self._transport.write(frames):
            return [Publication.REFUSED] * len(letters)
        tags = range(self._published + 1, self._published + 1 + len(letters))
        self._published += len(letters)
        batch = Batch(letters, tags, [Publication.UNCERTAIN] * len(letters), len(letters), now())
        self._batches.append(batch)
        self._unconfirmed.update((tag, (batch, position)) for position, tag in enumerate(tags))
        either: list[asyncio.Future[None] | asyncio.Future[str]] = [batch.concluded, self._lost]
        try:
            done = await outlast(either, self._patience, lambda: batch.moved_at)
            if not done and not self._transport.reader.is_blocked:
                self._lose("no confirm in time")
        finally:
            self._batches.remove(batch)
            if batch.unconfirmed:
                self._forget(batch)
        return batch.publications

    def on_return(self, message_id: str, reason: str) -> None:
        """Remember that a message reached no queue; the broker confirms it all the same, right after."""
        for batch, position in self._unconfirmed.values():
            if batch.letters[position].message_id == message_id:
                log.warning("amqp.returned", message_id=message_id, reason=reason)
                batch.publications[position] = Publication.RETURNED
                return

    def on_confirm(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Conclude one message, or all up to it."""
        for batch in reversed(self._batches):
            if batch.tags[-1] < tag:
                break
            batch.moved_at = now()
        if not multiple:
            self._conclude(tag, accepted=accepted)
            return
        while self._unconfirmed and (first := next(iter(self._unconfirmed))) <= tag:
            self._conclude(first, accepted=accepted)

    def _conclude(self, tag: int, *, accepted: bool) -> None:
        batch, position = self._unconfirmed.pop(tag, (None, 0))
        if batch is None:
            return  # Given up already.
        if not accepted:
            log.warning("amqp.refused", message_id=batch.letters[position].message_id)
            batch.publications[position] = Publication.REFUSED
        elif batch.publications[position] is Publication.UNCERTAIN:
            batch.publications[position] = Publication.CONFIRMED
        batch.unconfirmed -= 1
        if not batch.unconfirmed:
            batch.concluded.set_result(None)

    def _forget(self, batch: Batch) -> None:
        self._has_forgotten = True
        for tag, letter in zip(batch.tags, batch.letters, strict=True):
            if self._unconfirmed.pop(tag, None):
                log.debug("amqp.unconfirmed", message_id=letter.message_id)
        metrics.UNCONFIRMED.inc(batch.unconfirmed)
