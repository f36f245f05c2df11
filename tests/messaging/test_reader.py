"""What the broker sends, in whatever pieces it arrives: messages and confirms are taken, aiormq gets the rest."""

import asyncio
import itertools
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Connection, Queue
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from messaging.reader import Reader

tags = st.integers(1, 2**63 - 1)
short = st.text(max_size=40).filter(lambda text: len(text.encode()) <= 255)
bodies = st.lists(st.binary(min_size=1, max_size=60), max_size=4)


class Seen:
    """A receiver that writes down what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def on_delivery(self, channel: int, tag: int, body: bytes) -> None:
        self.events.append(("delivery", channel, tag, body))

    def on_return(self, message_id: str, reason: str) -> None:
        self.events.append(("return", message_id, reason))

    def on_confirm(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        self.events.append(("confirm", tag, multiple, accepted))


def marshal(*frames: Any, channel: int = 1) -> bytes:
    return b"".join(pamqp.frame.marshal(frame, channel) for frame in frames)


def content(method: Any, pieces: list[bytes], message_id: str | None = None) -> bytes:
    properties = Basic.Properties(message_id=message_id, headers={"x-death": "no"}) if message_id else None
    header = ContentHeader(body_size=sum(map(len, pieces)), properties=properties)
    return marshal(method, header, *map(ContentBody, pieces))


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[bytes, Any]:
    tag, pieces, again = draw(tags), draw(bodies), draw(st.booleans())
    method = Basic.Deliver(
        consumer_tag=draw(short), delivery_tag=tag, redelivered=again, exchange="e", routing_key=draw(short)
    )
    return content(method, pieces), ("delivery", 1, tag, b"".join(pieces))


@st.composite
def returns(draw: st.DrawFn) -> tuple[bytes, Any]:
    message_id = draw(short.filter(bool))
    method = Basic.Return(reply_code=312, reply_text="NO_ROUTE", exchange="e", routing_key=draw(short))
    return content(method, draw(bodies), message_id), ("return", message_id, "NO_ROUTE")


@st.composite
def confirms(draw: st.DrawFn) -> tuple[bytes, Any]:
    tag, multiple, accepted = draw(tags), draw(st.booleans()), draw(st.booleans())
    method = (Basic.Ack if accepted else Basic.Nack)(delivery_tag=tag, multiple=multiple)
    return marshal(method), ("confirm", tag, multiple, accepted)


OTHERS = (
    marshal(Queue.DeclareOk(queue="q", message_count=1, consumer_count=2)),
    marshal(Basic.Cancel(consumer_tag="c")),
    marshal(Channel.CloseOk()),
    Heartbeat().marshal(),
)
others = st.sampled_from(OTHERS).map(lambda frame: (frame, None))


async def read(reader: Reader) -> bytes:
    reader.feed_eof()
    return await reader.read()


@given(
    said=st.lists(st.one_of(deliveries(), returns(), confirms(), others), max_size=12),
    cuts=st.lists(st.integers(1, 50), min_size=1, max_size=10),
)
def test_nothing_is_lost_and_nothing_is_told_twice(said: list[tuple[bytes, Any]], cuts: list[int]) -> None:
    async def arrive() -> tuple[list[Any], bytes]:
        reader, seen = Reader(), Seen()
        reader.receiver = seen
        stream, number = b"".join(frames for frames, _ in said), 0
        while stream:
            size = cuts[number % len(cuts)]
            reader.feed_data(stream[:size])
            stream, number = stream[size:], number + 1
        return seen.events, await read(reader)

    events, passed = asyncio.run(arrive())
    assert events == [event for _, event in said if event]
    beat = Heartbeat().marshal()
    assert passed.replace(beat, b"") == b"".join(frames for frames, event in said if not event).replace(beat, b"")
    if events:
        assert beat in passed, "aiormq would take the connection for dead"


async def test_messages_of_two_channels_may_come_frame_by_frame() -> None:
    reader, seen = Reader(), Seen()
    reader.receiver = seen
    deliver = Basic.Deliver(consumer_tag="c", delivery_tag=1, exchange="", routing_key="q")
    messages = [
        [marshal(frame, channel=channel) for frame in (deliver, ContentHeader(body_size=2), *pieces)]
        for channel, pieces in ((1, [ContentBody(b"ab")]), (2, [ContentBody(b"c"), ContentBody(b"d")]))
    ]
    for one, two in itertools.zip_longest(*messages, fillvalue=b""):
        reader.feed_data(one + two)
    assert seen.events == [("delivery", 1, 1, b"ab"), ("delivery", 2, 1, b"cd")]


@pytest.mark.parametrize("cut", [1, 7, 8, 1000])
async def test_without_a_receiver_aiormq_gets_everything(cut: int) -> None:
    stream = OTHERS[0] + content(Basic.Deliver(consumer_tag="c", delivery_tag=1, exchange="", routing_key="q"), [b"a"])
    reader = Reader()
    for start in range(0, len(stream), cut):
        reader.feed_data(stream[start : start + cut])
    assert await read(reader) == stream


async def test_what_is_no_frame_is_for_aiormq_to_refuse() -> None:
    reader, seen = Reader(), Seen()
    reader.receiver = seen
    broken = bytearray(marshal(Basic.Ack(delivery_tag=1)))
    broken[-1] = 0
    for stream in (b"AMQP\x00\x00\x09\x01", bytes(broken)):
        reader.feed_data(stream)
    assert await read(reader) == b"AMQP\x00\x00\x09\x01" + broken
    assert not seen.events


async def test_what_is_overheard_is_aiormqs_too() -> None:
    reader = Reader()
    closes = pamqp.frame.marshal(
        Channel.Close(reply_code=404, reply_text="NOT_FOUND - no queue", class_id=50, method_id=10), 2
    )
    opened = pamqp.frame.marshal(Channel.OpenOk(), 2)
    blocked, unblocked = (pamqp.frame.marshal(said, 0) for said in (Connection.Blocked("low"), Connection.Unblocked()))
    ended = pamqp.frame.marshal(
        Connection.Close(reply_code=320, reply_text="CONNECTION_FORCED - bye", class_id=0, method_id=0), 0
    )
    cut_short = b"\x01\x00\x01\x00\x00\x00\x02\x00\x0a\xce"
    stream = closes + blocked + cut_short
    reader.feed_data(stream)
    assert (reader.said(2), reader.said(1), reader.is_blocked) == ("404 NOT_FOUND - no queue", None, True)
    reader.feed_data(opened + unblocked)
    assert (reader.said(2), reader.is_blocked) == (None, False), "the number is used again"
    reader.feed_data(ended)
    assert reader.said(1) == reader.said(2) == "320 CONNECTION_FORCED - bye"
    assert await read(reader) == stream + opened + unblocked + ended
