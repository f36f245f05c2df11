"""Publishing a batch of messages and learning what became of each."""

import asyncio
from collections.abc import Sequence
from enum import Enum, auto

import aiormq
import structlog
from aiormq.abc import ChannelFrame
from aiormq.exceptions import ChannelInvalidStateError, DeliveryError, PublishError
from pamqp.commands import Basic

from messaging import metrics
from messaging.frames import Letter, encode_publishes

log = structlog.stdlib.get_logger(__name__)

WRITE_TIMEOUT_SECONDS = 5.0
CONFIRM_TIMEOUT_SECONDS = 30.0

Confirm = asyncio.Future[Basic.Ack]


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


async def publish(
    amqp: aiormq.Channel,
    route: Basic.Publish,
    properties: Basic.Properties,
    letters: Sequence[Letter],
    lost: asyncio.Future[str],
) -> list[Publication]:
    """Publish all letters by one route in one write, and tell what became of each once the broker has answered.

    `lost`: done when nothing of this channel is to be waited for any more.
    """
    confirms: list[Confirm] = [asyncio.get_running_loop().create_future() for _ in letters]
    payload = encode_publishes(amqp.number, amqp.max_content_size, route, properties, letters)
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_SECONDS):
            await _write(amqp, payload, letters, confirms)
    except (ChannelInvalidStateError, TimeoutError) as error:
        log.warning("amqp.not_written", messages=len(letters), error=repr(error))
        return [Publication.REFUSED] * len(letters)

    def give_up(_: object) -> None:
        for confirm in confirms:
            confirm.cancel()

    lost.add_done_callback(give_up)
    try:
        await asyncio.wait(confirms, timeout=CONFIRM_TIMEOUT_SECONDS)
    finally:
        lost.remove_done_callback(give_up)
        give_up(None)
        for letter in letters:
            amqp.message_id_delivery_tag.pop(letter.message_id, None)
    return [_read(letter, confirm) for letter, confirm in zip(letters, confirms, strict=True)]


async def _write(amqp: aiormq.Channel, payload: bytes, letters: Sequence[Letter], confirms: Sequence[Confirm]) -> None:
    """Hand the frames to aiormq's writer, and let it match returns and confirms as if it had made them itself."""
    async with amqp.lock:
        before = amqp.delivery_tag
        amqp.delivery_tag += len(letters)
        for tag, (letter, confirm) in enumerate(zip(letters, confirms, strict=True), before + 1):
            amqp.confirmations[tag] = confirm
            amqp.message_id_delivery_tag[letter.message_id] = tag
        try:
            await amqp.write_queue.put(ChannelFrame(payload, should_close=False))
        except BaseException:
            # The broker has not seen them: their numbers go to what is published next.
            amqp.delivery_tag = before
            for tag, letter in enumerate(letters, before + 1):
                del amqp.confirmations[tag], amqp.message_id_delivery_tag[letter.message_id]
            raise


def _read(letter: Letter, confirm: Confirm) -> Publication:
    if confirm.cancelled():
        log.debug("amqp.unconfirmed", message_id=letter.message_id)
        metrics.UNCONFIRMED.inc()
        return Publication.UNCERTAIN
    match confirm.exception():
        case None:
            return Publication.CONFIRMED
        case PublishError() as error:
            log.warning("amqp.returned", message_id=letter.message_id, reason=str(error))
            return Publication.RETURNED
        case DeliveryError() as error:
            log.warning("amqp.refused", message_id=letter.message_id, reason=str(error))
            return Publication.REFUSED
        case error:
            raise error
