"""Our batches of frames are, byte for byte, what pamqp makes of the same messages one by one."""

from typing import Any

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from messaging.frames import Letter, encode_ack, encode_nack, encode_publishes

MAX_PIECE = 40
ROUTE: dict[str, Any] = {"exchange": "exchange", "routing_key": "key", "mandatory": True}
ids = st.text(min_size=1, max_size=60).filter(lambda text: len(text.encode()) <= 255)


def one_by_one(channel: int, properties: dict[str, Any], letters: list[Letter]) -> bytes:
    frames: list[Frame | ContentHeader | ContentBody] = []
    for letter in letters:
        own = Basic.Properties(**properties, message_id=letter.message_id)
        frames += [Basic.Publish(**ROUTE), ContentHeader(properties=own, body_size=len(letter.body))]
        frames += [
            ContentBody(letter.body[start : start + MAX_PIECE]) for start in range(0, len(letter.body), MAX_PIECE)
        ]
    return b"".join(pamqp.frame.marshal(frame, channel) for frame in frames)


@pytest.mark.parametrize("headers", [None, {"x-reason": "it is garbage, é"}])
@given(channel=st.integers(1, 65535), letters=st.lists(st.builds(Letter, ids, st.binary(max_size=130)), max_size=5))
def test_publishes(headers: dict[str, Any] | None, channel: int, letters: list[Letter]) -> None:
    properties: dict[str, Any] = {"content_type": "application/json", "delivery_mode": 2, "headers": headers}
    batch = encode_publishes(channel, MAX_PIECE, Basic.Publish(**ROUTE), Basic.Properties(**properties), letters)
    assert batch == one_by_one(channel, properties, letters)


@given(channel=st.integers(1, 65535), tag=st.integers(1, 2**63 - 1), multiple=st.booleans())
def test_acknowledgements(channel: int, tag: int, multiple: bool) -> None:
    assert encode_ack(channel, tag, multiple=multiple) == pamqp.frame.marshal(
        Basic.Ack(delivery_tag=tag, multiple=multiple), channel
    )


@given(channel=st.integers(1, 65535), tag=st.integers(1, 2**63 - 1), multiple=st.booleans())
def test_returns_to_the_queue(channel: int, tag: int, multiple: bool) -> None:
    assert encode_nack(channel, tag, multiple=multiple) == pamqp.frame.marshal(
        Basic.Nack(delivery_tag=tag, multiple=multiple, requeue=True), channel
    )
