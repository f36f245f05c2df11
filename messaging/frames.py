"""The frames of many publishes and acknowledgements at once (AMQP 0-9-1, sections 2.3.5 and 4.2).

aiormq encodes a message property by property and hands it to its writer alone: more work than all the rest of a task.
In a batch only the message's id, its body and their sizes differ, so a pattern is encoded once and filled in.

A message is three kinds of frames, each `type (u8), channel (u16), size (u32), payload, 0xCE`:

    METHOD  Basic.Publish: exchange, routing key, mandatory             the same for a whole batch
    HEADER  class, weight, body size | flags, properties | message id   _header_start | `listed` | the letter's own
    BODY    a piece of the body                                         none for an empty one, else one or more

An acknowledgement, or its opposite, is one METHOD frame: class, method, delivery tag (u64), bits (_settlement).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import pamqp.frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

HEADER, BODY, END = 2, 3, b"\xce"
_frame_start = struct.Struct(">BHI")  # type, channel, size
_header_start = struct.Struct(">BHIHHQ")  # the same, then class, weight, body size
_settlement = struct.Struct(">BHIHHQBB")
_METHOD, _SETTLEMENT_SIZE, _BASIC, _ACK, _NACK = 1, 13, 60, 80, 120
_MULTIPLE, _REQUEUE = 1, 2


@dataclass(frozen=True, slots=True)
class Letter:
    """A message to publish. `message_id` has at most 255 bytes and occurs once in a batch."""

    message_id: str
    body: bytes = field(repr=False)


def encode_publishes(
    channel: int, max_piece: int, publish: Basic.Publish, properties: Basic.Properties, letters: Sequence[Letter]
) -> bytes:
    """Encode a publish of each letter by the same route, with the same properties but for the message id.

    `max_piece`: bytes of a body that a frame may carry, as agreed with the broker. `properties` may name nothing that
    follows the message id on the wire (timestamp, type, user and app id): the pattern ends with it.
    """
    method = pamqp.frame.marshal(publish, channel)
    properties.message_id = "?"
    pattern = pamqp.frame.marshal(ContentHeader(properties=properties), channel)
    listed = pattern[_header_start.size : -len("\x01?") - len(END)]  # Flags and properties before the id.
    parts: list[bytes] = []
    for letter in letters:
        name, body = letter.message_id.encode(), letter.body
        size = _header_start.size - _frame_start.size + len(listed) + 1 + len(name)
        parts += (method, _header_start.pack(HEADER, channel, size, 60, 0, len(body)), listed)
        parts += (bytes((len(name),)), name, END)
        for start in range(0, len(body), max_piece):
            piece = body[start : start + max_piece]
            parts += (_frame_start.pack(BODY, channel, len(piece)), piece, END)
    return b"".join(parts)


def encode_ack(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Encode the acknowledgement of one delivery, or of all up to it."""
    return _settlement.pack(_METHOD, channel, _SETTLEMENT_SIZE, _BASIC, _ACK, tag, multiple and _MULTIPLE, END[0])


def encode_nack(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Encode the return of one delivery, or of all up to it, to its queue."""
    bits = _REQUEUE | (multiple and _MULTIPLE)
    return _settlement.pack(_METHOD, channel, _SETTLEMENT_SIZE, _BASIC, _NACK, tag, bits, END[0])
