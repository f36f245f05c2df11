"""Which deliveries the frames settle that a channel writes: as a broker reads them."""

import pamqp.frame
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic

from messaging.deliveries import Receipts

turns = st.permutations(range(1, 13)).flatmap(
    lambda tags: st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=6).map(
        lambda sizes: [
            (acknowledged, tags[start : start + size])
            for (acknowledged, size), start in zip(sizes, _starts(sizes), strict=True)
        ]
    )
)
"""Deliveries settled together, in any order and each once: whether acknowledged, and their tags."""


def _starts(sizes: list[tuple[bool, int]]) -> list[int]:
    return [sum(size for _, size in sizes[:position]) for position in range(len(sizes))]


class Broker:
    """What a broker makes of the frames."""

    def __init__(self, tags: range) -> None:
        self.held = set(tags)
        self.acknowledged: set[int] = set()
        self.given_back: set[int] = set()
        self.frames = 0

    def read(self, frames: bytes) -> None:
        while frames:
            size, _, frame = pamqp.frame.unmarshal(frames)
            frames = frames[size:]
            assert isinstance(frame, Basic.Ack | Basic.Nack)
            assert frame.delivery_tag in self.held, "it would close the channel: unknown delivery tag"
            settled = range(frame.delivery_tag + 1) if frame.multiple else (frame.delivery_tag,)
            meant = self.held.intersection(settled)
            self.held -= meant
            if isinstance(frame, Basic.Ack):
                self.acknowledged |= meant
            else:
                assert frame.requeue
                self.given_back |= meant
            self.frames += 1


@given(turns)
def test_what_is_given_back_is_never_acknowledged_nor_the_other_way_round(turns: list[tuple[bool, list[int]]]) -> None:
    receipts, broker = Receipts(1), Broker(range(1, 13))
    for tag in range(1, 13):
        receipts.add(tag)
    expected: dict[bool, set[int]] = {True: set(), False: set()}
    for acknowledged, tags in turns:
        broker.read(receipts.acknowledge(tags) if acknowledged else receipts.give_back(tags))
        expected[acknowledged].update(tags)
        assert (broker.acknowledged, broker.given_back) == (expected[True], expected[False])
        assert len(receipts) == len(broker.held)


def test_all_at_once_is_one_frame() -> None:
    for settle in (Receipts.acknowledge, Receipts.give_back):
        receipts, broker = Receipts(1), Broker(range(1, 101))
        for tag in range(1, 101):
            receipts.add(tag)
        broker.read(settle(receipts, [*range(100, 0, -1)]))
        assert (broker.frames, broker.held) == (1, set())
