"""What the broker sends, frame by frame.

aiormq awaits three times for each frame, and takes three frames and a task for each message: most of what one costs. So
what comes by the hundred, messages and confirms, is taken here as it arrives; aiormq gets all the rest.

A frame (AMQP 0-9-1, section 4.2.3), and the frames of a message, one after the other:

    type  channel  size   payload            end        METHOD  Basic.Deliver: consumer's tag, delivery tag, ...
    +----+--------+------+------------------+------+    HEADER  class, weight, size of the body, properties
    | u8 |  u16   | u32  | `size` bytes     | 0xCE |    BODY    a piece of the body, none or many
    +----+--------+------+------------------+------+
           _START          a method's payload begins with its class and its number, u16 each: _METHOD
"""

import asyncio
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import pamqp.frame
from pamqp.commands import Basic, Channel, Connection
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from runtime.clock import now

METHOD, HEADER, BODY, HEARTBEAT, END = 1, 2, 3, 8, 0xCE
DELIVER, RETURN, ACK, NACK = (60 << 16 | method for method in (60, 50, 80, 120))


class Method(IntEnum):
    """What is overheard: class and method."""

    CONNECTION_CLOSE = 10 << 16 | 50
    BLOCKED = 10 << 16 | 60
    UNBLOCKED = 10 << 16 | 61
    CHANNEL_OPEN_OK = 20 << 16 | 11
    CHANNEL_CLOSE = 20 << 16 | 40


_START = struct.Struct(">BHI")  # type, channel, size
_METHOD = struct.Struct(">I")  # class and method
_CONFIRM = struct.Struct(">QB")  # delivery tag, bits
_TAG = _SIZE = struct.Struct(">Q")


@dataclass(slots=True)
class _Content:
    """A return, or a delivery's tag; what has arrived of its body, and how many bytes are left to come."""

    method: Basic.Return | int
    pieces: list[bytes] = field(default_factory=list)
    left: int = 0


class Receiver(Protocol):
    """Who takes what the broker sends by the channels of a connection; called in the order of arrival."""

    def on_delivery(self, channel: int, tag: int, body: bytes) -> None:
        """Take a message."""

    def on_return(self, message_id: str, reason: str) -> None:
        """Learn that a message of ours reached no queue; its confirm follows."""

    def on_confirm(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Learn that the broker has a message safe, or refused it; with `multiple` all up to it."""


class Reader(asyncio.StreamReader):
    """What aiormq reads from: the frames that nobody has taken before."""

    def __init__(self) -> None:
        super().__init__()
        self.receiver: Receiver | None = None
        # The beginning of a frame whose rest has not arrived.
        self._rest = b""
        # By channel, the delivery or return whose header and body frames come next.
        self._contents: dict[int, _Content] = {}
        # With what words the broker closed a channel, by its number; 0 is the connection.
        self._said: dict[int, str] = {}
        # When anything but a heartbeat has come last, a piece of a frame included.
        self.moved_at = now()
        # Whether the broker, short of memory or disk, has said that it takes no publishes.
        self.is_blocked = False

    def said(self, channel: int) -> str | None:
        """Why the broker has closed the connection, or this channel: its reply code and text."""
        return self._said.get(0) or self._said.get(channel)

    @property
    def is_amid(self) -> bool:
        """Whether a frame or a message has come in part."""
        return bool(self._rest or self._contents)

    def feed_data(self, data: bytes) -> None:  # type: ignore[explicit-override, override]
        """Take what has arrived, and pass on what is not for the receiver."""
        data = self._rest + data
        at, passed, taken, moved = 0, [], False, False
        while len(data) >= at + _START.size:
            kind, channel, size = _START.unpack_from(data, at)
            start, end = at + _START.size, at + _START.size + size
            if kind > HEARTBEAT:  # The broker speaks another protocol, and says so without frames.
                end = len(data) - 1
            moved = moved or kind != HEARTBEAT
            if len(data) <= end:
                break
            if data[end] == END and self._intercept(kind, channel, data, start, end):
                taken = True
            else:
                if kind == METHOD and size >= _METHOD.size and data[end] == END:
                    self._overhear(channel, data, start, end)
                passed.append(data[at : end + 1])
            at = end + 1
        self._rest = data[at:]
        if moved:
            self.moved_at = now()
        if taken or (self.receiver and not passed):  # aiormq takes a connection for dead that brings it nothing.
            passed.append(Heartbeat().marshal())
        if passed:
            super().feed_data(b"".join(passed))

    def _intercept(self, kind: int, channel: int, data: bytes, start: int, end: int) -> bool:
        """Take a frame's payload, from `start` to `end`, unless it is aiormq's."""
        receiver = self.receiver
        if receiver is None:
            return False
        if kind == METHOD:
            return self._intercept_method(receiver, channel, data, start, end)
        content = self._contents.get(channel)
        if content is None or kind not in (HEADER, BODY):
            return False
        if kind == HEADER:
            (content.left,) = _SIZE.unpack_from(data, start + 4)
            if isinstance(content.method, Basic.Return):
                _, _, header = pamqp.frame.unmarshal(data[start - _START.size : end + 1])
                assert isinstance(header, ContentHeader)  # noqa: S101 - the frame's type says so.
                receiver.on_return(header.properties.message_id or "", content.method.reply_text)
        else:
            content.left -= end - start
            content.pieces.append(data[start:end])
        if content.left == 0:
            del self._contents[channel]
            if not isinstance(content.method, Basic.Return):
                receiver.on_delivery(channel, content.method, b"".join(content.pieces))
        return True

    def _intercept_method(self, receiver: Receiver, channel: int, data: bytes, start: int, end: int) -> bool:
        (method,) = _METHOD.unpack_from(data, start)
        if method == DELIVER:
            # The consumer's tag comes first, a byte for its length before it.
            (tag,) = _TAG.unpack_from(data, start + 5 + data[start + 4])
            self._contents[channel] = _Content(tag)
        elif method in (ACK, NACK):
            tag, bits = _CONFIRM.unpack_from(data, start + 4)
            receiver.on_confirm(tag, multiple=bool(bits & 1), accepted=method == ACK)
        elif method == RETURN:
            _, _, returned = pamqp.frame.unmarshal(data[start - _START.size : end + 1])
            assert isinstance(returned, Basic.Return)  # noqa: S101 - class and method say so.
            self._contents[channel] = _Content(returned)
        else:
            return False
        return True

    def _overhear(self, channel: int, data: bytes, start: int, end: int) -> None:
        """Note what the broker says of the connection and its channels; it is aiormq's, too."""
        match _METHOD.unpack_from(data, start)[0]:
            case Method.CONNECTION_CLOSE | Method.CHANNEL_CLOSE:
                _, _, close = pamqp.frame.unmarshal(data[start - _START.size : end + 1])
                assert isinstance(close, Connection.Close | Channel.Close)  # noqa: S101 - class and method say so.
                self._said[channel] = f"{close.reply_code} {close.reply_text}"
            case Method.CHANNEL_OPEN_OK:  # The number is used again.
                self._said.pop(channel, None)
            case Method.BLOCKED:
                self.is_blocked = True
            case Method.UNBLOCKED:
                self.is_blocked = False
