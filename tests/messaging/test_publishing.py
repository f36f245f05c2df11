"""What the broker says of published messages, matched to them."""

import asyncio

import pytest
from pamqp.commands import Basic

from messaging import asking, publishing
from messaging.frames import Letter
from messaging.publishing import Publication, Publisher
from messaging.transport import Transport
from tests.conftest import eventually

CONFIRMED, REFUSED, RETURNED, UNCERTAIN = Publication


class Wire(Transport):
    """Takes frames and sends them nowhere."""

    def __init__(self) -> None:
        super().__init__(1)
        self.batches = 0
        self.is_open = True
        self.is_stuck = False

    @property
    def is_full(self) -> bool:  # type: ignore[explicit-override]
        return self.is_stuck

    def write(self, frames: bytes) -> bool:  # type: ignore[explicit-override]
        self.batches += self.is_open
        return self.is_open


@pytest.fixture
async def wire() -> Wire:
    return Wire()


@pytest.fixture
async def lost() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


@pytest.fixture
async def publisher(wire: Wire, lost: asyncio.Future[str]) -> Publisher:
    return Publisher(wire, 1, 1000, lost, lambda *_: None, patience=3600)


async def begin(publisher: Publisher, wire: Wire, *names: str) -> asyncio.Task[list[Publication]]:
    """Publish letters of these names as one batch; return when it is written."""
    before = wire.batches
    letters = [Letter(name, b"{}") for name in names]
    batch = asyncio.create_task(publisher.publish(Basic.Publish(), Basic.Properties(), letters))
    await eventually(lambda: wire.batches > before)
    return batch


async def test_confirms_go_to_the_messages_that_they_count(publisher: Publisher, wire: Wire) -> None:
    first, second = await begin(publisher, wire, "a", "b"), await begin(publisher, wire, "c", "d", "e")
    publisher.on_confirm(4, multiple=False, accepted=True)
    publisher.on_confirm(3, multiple=True, accepted=True)
    assert await first == [CONFIRMED, CONFIRMED]
    assert not second.done()
    publisher.on_confirm(5, multiple=False, accepted=False)
    assert await second == [CONFIRMED, CONFIRMED, REFUSED]


async def test_many_may_be_refused_at_once(publisher: Publisher, wire: Wire) -> None:
    batch = await begin(publisher, wire, "a", "b", "c")
    publisher.on_confirm(1, multiple=False, accepted=True)
    publisher.on_confirm(3, multiple=True, accepted=False)
    assert await batch == [CONFIRMED, REFUSED, REFUSED]


async def test_a_returned_message_is_confirmed_and_yet_refused(publisher: Publisher, wire: Wire) -> None:
    batch = await begin(publisher, wire, "a", "b", "c")
    publisher.on_return("b", "NO_ROUTE")
    publisher.on_return("unknown", "NO_ROUTE")
    publisher.on_confirm(3, multiple=True, accepted=True)
    assert await batch == [CONFIRMED, RETURNED, CONFIRMED]


async def test_with_its_channel_a_batch_is_uncertain_but_for_what_was_said(
    publisher: Publisher, wire: Wire, lost: asyncio.Future[str]
) -> None:
    batch = await begin(publisher, wire, "a", "b", "c")
    publisher.on_confirm(2, multiple=False, accepted=True)
    lost.set_result("gone")
    assert await asyncio.wait_for(batch, 30) == [UNCERTAIN, CONFIRMED, UNCERTAIN]


async def test_late_confirms_of_what_was_given_up_count_for_nothing(wire: Wire, lost: asyncio.Future[str]) -> None:
    wire.reader.is_blocked = True
    publisher = Publisher(wire, 1, 1000, lost, lambda *_: None, patience=0)
    given_up = await (await begin(publisher, wire, "a", "b"))
    publisher._patience = 3600
    batch = await begin(publisher, wire, "c")
    publisher.on_confirm(1, multiple=False, accepted=True)
    publisher.on_confirm(2, multiple=True, accepted=False)
    await asyncio.sleep(0)
    assert not batch.done()
    assert given_up == [UNCERTAIN, UNCERTAIN]
    publisher.on_confirm(3, multiple=True, accepted=True)
    assert await batch == [CONFIRMED]


@pytest.mark.parametrize("earlier", [False, True])
async def test_confirms_of_earlier_batches_are_a_sign_that_one_moves_and_those_of_later_ones_are_not(
    wire: Wire, lost: asyncio.Future[str], monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    time = 0.0
    for module in (asking, publishing):
        monkeypatch.setattr(module, "now", lambda: time)
    publisher = Publisher(wire, 1, 1000, lost, lambda reason, _=None: lost.set_result(reason), patience=0.1)
    first, second = await begin(publisher, wire, "a"), await begin(publisher, wire, "b")
    time = 10.0  # Seen at the earliest when a timer of the batches has fired.
    publisher.on_confirm(1 if earlier else 2, multiple=False, accepted=True)
    assert await (first if earlier else second) == [CONFIRMED]
    if earlier:
        done, _ = await asyncio.wait({second}, timeout=0.3)
        assert not done
        publisher.on_confirm(2, multiple=False, accepted=True)
        assert await second == [CONFIRMED]
    else:
        await eventually(first.done, timeout=10)
        assert await first == [UNCERTAIN]
        assert lost.result() == "no confirm in time"


async def test_a_cancelled_batch_is_forgotten_and_the_next_one_counts_on(publisher: Publisher, wire: Wire) -> None:
    cancelled = await begin(publisher, wire, "a", "b")
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    batch = await begin(publisher, wire, "c")
    publisher.on_confirm(3, multiple=True, accepted=True)
    assert await batch == [CONFIRMED]


async def test_what_cannot_be_written_is_refused_and_takes_no_number(publisher: Publisher, wire: Wire) -> None:
    wire.is_open = False
    assert await publisher.publish(Basic.Publish(), Basic.Properties(), [Letter("a", b"")]) == [REFUSED]
    wire.is_open = True
    batch = await begin(publisher, wire, "b")
    publisher.on_confirm(1, multiple=False, accepted=True)
    assert await batch == [CONFIRMED]


async def test_what_would_wait_in_our_own_buffer_is_refused_and_takes_no_number(
    publisher: Publisher, wire: Wire
) -> None:
    wire.is_stuck = True
    assert await publisher.publish(Basic.Publish(), Basic.Properties(), [Letter("a", b"")]) == [REFUSED]
    assert not publisher.is_owed_confirms
    wire.is_stuck = False
    batch = await begin(publisher, wire, "b")
    publisher.on_confirm(1, multiple=False, accepted=True)
    assert await batch == [CONFIRMED]


@pytest.mark.parametrize("blocked", [False, True])
async def test_late_confirms_cost_the_channel_unless_the_broker_says_why(
    wire: Wire, lost: asyncio.Future[str], blocked: bool
) -> None:
    wire.reader.is_blocked = blocked
    owed: list[bool] = []

    def lose(reason: str, error: BaseException | None = None) -> None:
        lost.set_result(reason)
        owed.append(hasty.is_owed_confirms)

    hasty = Publisher(wire, 1, 1000, lost, lose, patience=0)
    assert await (await begin(hasty, wire, "a")) == [UNCERTAIN]
    assert (lost.done(), owed) == ((False, []) if blocked else (True, [True]))
    assert hasty.is_owed_confirms, "it may still lie in a buffer"
