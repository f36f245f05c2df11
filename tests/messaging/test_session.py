"""The AMQP session against a real broker that refuses, cancels, blocks, restarts and falls silent."""

import asyncio
import itertools
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiormq
import pytest
import trustme
from pydantic import SecretStr
from yarl import URL

from messaging import declaring
from messaging.channel import Channel
from messaging.deliveries import Delivery, acknowledge, give_back
from messaging.frames import Letter
from messaging.patience import Patience
from messaging.publishing import Publication
from messaging.session import Session
from messaging.settings import BrokerSettings
from messaging.topology import TO_CONFIGURE_LIMIT
from tests.conftest import DEADLINE_SECONDS, eventually
from tests.proxy import Proxy
from tests.queues import is_blocked
from tests.system.rabbitmq import RabbitMQ
from tests.system.spawning import free_port

PREFETCH = 500


def _at(settings: BrokerSettings, *urls: URL | str, heartbeat: int = 2) -> BrokerSettings:
    """Change where the broker is."""
    nodes = ",".join(str(URL(url).update_query(heartbeat=heartbeat)) for url in urls)
    return BrokerSettings(**settings.model_dump() | {"amqp_url": SecretStr(nodes)})


def _own(own_rabbitmq: RabbitMQ, name: str) -> BrokerSettings:
    """Name an exchange and queues on a broker of the test's own."""
    settings = BrokerSettings(exchange=name, to_configure_queue=f"{name}_tasks", configured_queue=f"{name}_outcomes")
    return _at(settings, own_rabbitmq.url)


@asynccontextmanager
async def _through_proxy(
    settings: BrokerSettings, patience: Patience | None = None, *, heartbeat: int = 2
) -> AsyncIterator[tuple[Session, Proxy]]:
    url = settings.nodes[0]
    async with Proxy(url.host or "", url.port or 0) as proxy:
        there = _at(settings, url.with_host("127.0.0.1").with_port(proxy.url_port), heartbeat=heartbeat)
        async with Session(there, "test", patience) as session:
            yield session, proxy


async def _next(session: Session) -> Channel:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await anext(session)


async def _lost(channel: Channel) -> str:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await asyncio.shield(channel.lost)


async def _publish(channel: Channel, settings: BrokerSettings, body: bytes = b"{}") -> Publication:
    """Publish an outcome; a publish that hangs or is cancelled fails the test."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        [publication] = await channel.publish(settings.configured_key, [_letter(body)])
        return publication


def _letter(body: bytes) -> Letter:
    return Letter(f"id-{body.decode()}", body)


async def _consume(channel: Channel, settings: BrokerSettings) -> list[Delivery]:
    deliveries: list[Delivery] = []
    await channel.consume(settings.configured_queue, PREFETCH, deliveries.append)
    return deliveries


async def _ready(amqp: aiormq.abc.AbstractChannel, queue: str) -> int:
    return (await amqp.queue_declare(queue, passive=True)).message_count or 0


async def _ready_is(amqp: aiormq.abc.AbstractChannel, queue: str, count: int) -> bool:
    return await _ready(amqp, queue) == count


async def test_a_routed_message_is_confirmed_and_persistent(
    session: Session, broker: BrokerSettings, amqp: aiormq.abc.AbstractChannel
) -> None:
    channel = await _next(session)
    assert await _publish(channel, broker, b"[1]") is Publication.CONFIRMED
    message = await amqp.basic_get(broker.configured_queue, no_ack=True)
    properties = message.header.properties
    assert (message.body, properties.message_id, properties.delivery_mode) == (b"[1]", "id-[1]", 2)
    assert properties.content_type == "application/json"


async def test_unroutable_messages_are_refused_and_their_queue_is_declared_again(
    session: Session, broker: BrokerSettings, amqp: aiormq.abc.AbstractChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = await _next(session)
    declared = []
    ensure = declaring.ensure

    async def count(there: aiormq.Connection, settings: BrokerSettings, *, returned: tuple[str, str]) -> None:
        declared.append(settings)
        await ensure(there, settings, returned=returned)

    monkeypatch.setattr(declaring, "ensure", count)
    await amqp.queue_delete(broker.configured_queue)
    batch = [_letter(str(number).encode()) for number in range(50)]
    assert set(await channel.publish(broker.configured_key, batch)) == {Publication.RETURNED}
    assert len(declared) < 5, "a batch of returns is not a storm of declarations"
    assert await _publish(channel, broker) is Publication.CONFIRMED
    assert not channel.lost.done()


async def test_a_deleted_exchange_costs_the_channel_and_the_next_one_declares_it_again(
    session: Session, broker: BrokerSettings, amqp: aiormq.abc.AbstractChannel
) -> None:
    channel = await _next(session)
    await amqp.exchange_delete(broker.exchange)
    assert await _publish(channel, broker) is not Publication.CONFIRMED
    await _lost(channel)
    assert await _publish(await _next(session), broker) is Publication.CONFIRMED


async def test_a_closed_channel_refuses_publishes_and_ignores_acknowledgements(
    session: Session, broker: BrokerSettings, amqp: aiormq.abc.AbstractChannel
) -> None:
    channel = await _next(session)
    deliveries = await _consume(channel, broker)
    await _publish(channel, broker)
    await eventually(lambda: deliveries)
    await channel.close()
    assert await channel.lost == "closed by us"
    assert session.current is None
    assert session.unready == "broker: closed by us"
    assert await _publish(channel, broker) is Publication.REFUSED
    acknowledge(deliveries[:1])
    await eventually(lambda: _ready(amqp, broker.configured_queue))


async def test_a_session_waits_for_its_channel_and_hands_out_the_next_one_after_a_loss(session: Session) -> None:
    waiting = asyncio.create_task(session.channel())
    first = await _next(session)
    assert await waiting is first
    assert session.unready is None
    first.lose("test")
    await eventually(lambda: session.unready == "broker: test")
    waiting = asyncio.create_task(session.channel())
    second = await _next(session)
    assert await waiting is second
    assert second is not first
    assert session.current is second


async def test_a_broker_is_reached_by_tls_if_its_certificate_is_good(broker: BrokerSettings, tmp_path: Path) -> None:
    authority, tls = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    url = broker.nodes[0]
    async with Proxy(url.host or "", url.port or 0, tls) as proxy:
        there = url.with_scheme("amqps").with_host("localhost").with_port(proxy.url_port)
        async with Session(_at(broker, there.update_query(cafile=str(tmp_path / "authority.pem"))), "test") as session:
            channel = await _next(session)
            deliveries = await _consume(channel, broker)
            assert await _publish(channel, broker, b"over TLS") is Publication.CONFIRMED
            await eventually(lambda: [delivery.body for delivery in deliveries] == [b"over TLS"])
        async with Session(_at(broker, there), "test") as distrustful:
            connecting = asyncio.create_task(_next(distrustful))
            await eventually(lambda: "CERTIFICATE_VERIFY_FAILED" in (distrustful.unready or ""))
            connecting.cancel()


async def test_a_dead_node_is_passed_over(broker: BrokerSettings) -> None:
    settings = _at(broker, f"amqp://127.0.0.1:{free_port()}/", broker.nodes[0])
    async with Session(settings, "test") as session:
        session._nodes = itertools.cycle(settings.nodes)
        channel = await _next(session)
        assert await _publish(channel, settings) is Publication.CONFIRMED
        channel.lose("test")
        assert await _publish(await _next(session), settings) is Publication.CONFIRMED


async def test_a_consumer_whose_queue_is_deleted_loses_the_channel_and_the_next_one_consumes(
    session: Session, broker: BrokerSettings, amqp: aiormq.abc.AbstractChannel
) -> None:
    channel = await _next(session)
    await _consume(channel, broker)
    await amqp.queue_delete(broker.configured_queue)
    assert await _lost(channel) == "consumer cancelled by the broker"
    channel = await _next(session)
    deliveries = await _consume(channel, broker)
    assert await _publish(channel, broker, b"[2]") is Publication.CONFIRMED
    await eventually(lambda: deliveries)
    assert deliveries[0].body == b"[2]"


async def test_a_subscription_that_fails_loses_the_channel(
    session: Session, broker: BrokerSettings, amqp: aiormq.abc.AbstractChannel
) -> None:
    channel = await _next(session)
    await amqp.queue_delete(broker.configured_queue)
    await _consume(channel, broker)
    await _lost(channel)
    assert await _publish(await _next(session), broker) is Publication.CONFIRMED


async def test_after_a_subscription_is_cancelled_nothing_more_is_delivered(
    session: Session, broker: BrokerSettings, amqp: aiormq.abc.AbstractChannel
) -> None:
    channel = await _next(session)
    for number in range(300):
        await amqp.basic_publish(str(number).encode(), exchange=broker.exchange, routing_key=broker.configured_key)
    deliveries: list[Delivery] = []
    consumer = await channel.consume(broker.configured_queue, PREFETCH, deliveries.append)
    await channel.cancel(consumer)
    taken = len(deliveries)
    acknowledge(deliveries)
    await channel.close()
    assert len(deliveries) == taken
    await eventually(lambda: _ready_is(amqp, broker.configured_queue, 300 - taken))


async def test_a_reader_that_fails_loses_the_channel_and_the_message_comes_again(
    session: Session, broker: BrokerSettings
) -> None:
    channel = await _next(session)

    def fail(delivery: Delivery) -> None:
        raise LookupError("a bug")

    await channel.consume(broker.configured_queue, PREFETCH, fail)
    await _publish(channel, broker)
    assert await _lost(channel) == "a delivery was not taken"
    deliveries = await _consume(await _next(session), broker)
    await eventually(lambda: deliveries)


async def test_acknowledgements_written_right_before_the_close_are_not_lost(
    session: Session, broker: BrokerSettings, amqp: aiormq.abc.AbstractChannel
) -> None:
    # More than aiormq's write queue holds (10), fewer than a quorum queue's client in the broker puts aside (32).
    channel = await _next(session)
    deliveries = await _consume(channel, broker)
    for number in range(20):
        await amqp.basic_publish(str(number).encode(), exchange=broker.exchange, routing_key=broker.configured_key)
    await eventually(lambda: len(deliveries) == 20)
    for delivery in reversed(deliveries):
        acknowledge([delivery])
    await channel.close()
    channel = await _next(session)
    again = await _consume(channel, broker)
    await _publish(channel, broker, b"last")
    await eventually(lambda: again)
    assert again[0].body == b"last"


@pytest.mark.parametrize(
    "turns",
    [
        [[0, 1, 2]],
        [[0], [1], [2], [3]],
        [[3], [1], [0], [2]],
        [[5, 1, 3], [0, 4]],
        [[2, 4], [0, 3, 1]],
        [[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]],
        [[0, 2, 4, 6, 8], [1, 3, 5, 7]],
    ],
)
async def test_in_whatever_order_acknowledged_what_was_not_comes_again_and_nothing_else(
    session: Session, broker: BrokerSettings, turns: list[list[int]]
) -> None:
    channel = await _next(session)
    deliveries = await _consume(channel, broker)
    await channel.publish(broker.configured_key, [_letter(str(number).encode()) for number in range(10)])
    await eventually(lambda: len(deliveries) == 10)
    for turn in turns:
        acknowledge(deliveries[number] for number in turn)
    await channel.close()
    assert await channel.lost == "closed by us", "a tag acknowledged twice would have cost the channel"
    channel = await _next(session)
    again = await _consume(channel, broker)
    await _publish(channel, broker, b"last")
    left = [str(number) for number in range(10) if not any(number in turn for turn in turns)]
    await eventually(lambda: any(delivery.body == b"last" for delivery in again))
    assert [delivery.body.decode() for delivery in again] == [*left, "last"]


async def test_what_is_given_back_comes_again_to_another_and_what_is_acknowledged_does_not(
    session: Session, broker: BrokerSettings
) -> None:
    channel = await _next(session)
    deliveries: list[Delivery] = []
    consumer = await channel.consume(broker.configured_queue, PREFETCH, deliveries.append)
    await channel.publish(broker.configured_key, [_letter(str(number).encode()) for number in range(10)])
    await eventually(lambda: len(deliveries) == 10)
    await channel.cancel(consumer)
    async with Session(broker, "another") as another:
        again = await _consume(await _next(another), broker)
        give_back(deliveries[number] for number in (1, 2, 8))
        await eventually(lambda: len(again) == 3)
        acknowledge(deliveries[number] for number in (0, 3, 9))
        give_back(deliveries[number] for number in (4, 5, 7))
        await eventually(lambda: len(again) == 6)
        acknowledge([deliveries[6]])
        await channel.close()
        assert await channel.lost == "closed by us", "a tag settled twice would have cost the channel"
        await _publish(await another.channel(), broker, b"last")
        await eventually(lambda: len(again) == 7)
    assert sorted(delivery.body.decode() for delivery in again) == ["1", "2", "4", "5", "7", "8", "last"]


async def test_what_a_lost_channel_brought_is_not_given_back_by_another(
    session: Session, broker: BrokerSettings
) -> None:
    old = await _consume(await _next(session), broker)
    await (await session.channel()).publish(broker.configured_key, [_letter(b"1"), _letter(b"2")])
    await eventually(lambda: len(old) == 2)
    (await session.channel()).lose("test")
    channel = await _next(session)
    new = await _consume(channel, broker)
    await eventually(lambda: len(new) == 2)
    give_back(old)
    acknowledge(new)
    await _publish(channel, broker, b"last")
    await eventually(lambda: len(new) == 3)
    assert new[2].body == b"last"
    assert not channel.lost.done()


async def test_a_message_that_is_given_back_often_is_never_lost(
    session: Session, broker: BrokerSettings, amqp: aiormq.abc.AbstractChannel
) -> None:
    """Up to RabbitMQ 4.2 the queue's limit dead-letters it; the task's next message is another one."""
    channel = await _next(session)
    await channel.publish(broker.to_configure_key, [_letter(b"often")])
    comes = 0

    def take(delivery: Delivery) -> None:
        nonlocal comes
        comes += 1
        if comes <= TO_CONFIGURE_LIMIT + 5:
            give_back([delivery])

    async def is_kept() -> bool:
        return comes > TO_CONFIGURE_LIMIT + 5 or await _ready_is(amqp, f"{broker.to_configure_queue}.dead", 1)

    await channel.consume(broker.to_configure_queue, PREFETCH, take)
    await eventually(is_kept)
    assert comes > TO_CONFIGURE_LIMIT


async def test_deliveries_of_two_channels_are_acknowledged_where_they_can_be(
    session: Session, broker: BrokerSettings
) -> None:
    """What a lost channel brought comes again by the next one, and both deliveries belong to one call then."""
    old = await _consume(await _next(session), broker)
    await (await session.channel()).publish(broker.configured_key, [_letter(b"1"), _letter(b"2")])
    await eventually(lambda: len(old) == 2)
    (await session.channel()).lose("test")
    channel = await _next(session)
    new = await _consume(channel, broker)
    await eventually(lambda: len(new) == 2)
    acknowledge([old[0], new[0], old[1], new[1]])
    await _publish(channel, broker, b"last")
    await eventually(lambda: len(new) == 3)
    assert new[2].body == b"last"
    assert not channel.lost.done()


async def test_a_large_batch_of_large_messages_arrives_whole_and_in_order(
    session: Session, broker: BrokerSettings
) -> None:
    """Larger than a frame, than the socket's buffer, and than aiormq's write queue would hold one by one."""
    channel = await _next(session)
    deliveries = await _consume(channel, broker)
    bodies = [str(number).encode() * size for number, size in enumerate([0, 1, 131_064, 200_000, 65_536] * 20)]
    letters = [Letter(f"{number}", body) for number, body in enumerate(bodies)]
    assert set(await channel.publish(broker.configured_key, letters)) == {Publication.CONFIRMED}
    await eventually(lambda: len(deliveries) == len(bodies))
    assert [delivery.body for delivery in deliveries] == bodies
    acknowledge(deliveries)


async def test_ready_messages_counts_what_no_reader_has_taken(
    session: Session, broker: BrokerSettings, amqp: aiormq.abc.AbstractChannel
) -> None:
    channel = await _next(session)
    assert await channel.ready_messages(broker.configured_queue) is None, "with neither nothing is certain"
    for number in range(3):
        await _publish(channel, broker, str(number).encode())
    assert await channel.ready_messages(broker.configured_queue) == 3
    await channel.consume(broker.configured_queue, 1, lambda _: None)
    await eventually(lambda: _ready_is(amqp, broker.configured_queue, 2))
    assert await channel.ready_messages(broker.configured_queue) == 2
    await amqp.queue_delete(broker.configured_queue)
    assert await channel.ready_messages(broker.configured_queue) is None
    await _lost(channel)
    channel = await _next(session)
    await _consume(channel, broker)
    assert await channel.ready_messages(broker.configured_queue) == 0


def _bringer(channel: Channel) -> int:
    """Tell by which AMQP channel messages come."""
    assert channel._consumer._amqp
    return channel._consumer._amqp.number


async def test_what_a_subscription_does_not_bring_is_brought_by_the_next_one(
    session: Session, broker: BrokerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ 3.10 may drop what it hands to a subscription whose queue was deleted and declared again at once."""
    session._patience = Patience(idle=0.1)
    channel = await _next(session)
    deliveries: list[Delivery] = []
    await channel.consume(broker.configured_queue, 2, deliveries.append)
    dead, on_delivery = channel._consumer.receipts[_bringer(channel)], channel.on_delivery
    dropped: list[int] = []

    def drop(number: int, tag: int, body: bytes) -> None:
        if channel._consumer.receipts.get(number) is dead:
            dropped.append(tag)
        else:
            on_delivery(number, tag, body)

    monkeypatch.setattr(channel, "on_delivery", drop)
    await channel.publish(broker.configured_key, [_letter(str(number).encode()) for number in range(5)])
    for count in (2, 4, 5):
        await eventually(lambda count=count: len(deliveries) == count)
        acknowledge(deliveries[-2:] if count < 5 else deliveries[4:])
    assert dropped
    assert sorted(delivery.body for delivery in deliveries) == [b"0", b"1", b"2", b"3", b"4"]
    assert not channel.lost.done()


async def test_a_subscription_whose_reader_has_all_that_it_may_have_is_left_alone(
    session: Session, broker: BrokerSettings
) -> None:
    session._patience = Patience(idle=0.01)
    channel = await _next(session)
    deliveries: list[Delivery] = []
    await channel.consume(broker.configured_queue, 2, deliveries.append)
    await channel.publish(broker.configured_key, [_letter(str(number).encode()) for number in range(4)])
    await eventually(lambda: len(deliveries) == 2)
    async with channel._consumer._changing:  # A renewal may have begun before they came.
        amqp = channel._consumer._amqp
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert channel._consumer._amqp is amqp
    acknowledge(deliveries)
    await eventually(lambda: len(deliveries) == 4)


async def test_renewals_lose_no_message_and_use_no_more_than_a_few_channels(
    session: Session, broker: BrokerSettings
) -> None:
    session._patience = Patience(idle=0.01)
    channel = await _next(session)
    deliveries: list[Delivery] = []
    await channel.consume(broker.configured_queue, PREFETCH, deliveries.append)
    numbers, begun = set(), set()
    for number in range(100):
        numbers.add(_bringer(channel)) if channel._consumer._amqp else None
        begun.add(channel._consumer._amqp)
        await _publish(channel, broker, str(number).encode())
        await eventually(lambda number=number: len(deliveries) > number)
        if number >= 3:  # Some are always at work.
            acknowledge([deliveries[number - 3]])
        await asyncio.sleep(0.02)
    assert [int(delivery.body) for delivery in deliveries] == [*range(100)]
    assert len(begun) > 10
    assert max(numbers) < 20
    acknowledge(deliveries[-3:])
    await eventually(lambda: len(channel._connection.channels) <= 3)
    assert not channel.lost.done()


async def test_what_is_at_work_when_a_subscription_is_renewed_is_acknowledged_where_it_came_from(
    session: Session, broker: BrokerSettings
) -> None:
    session._patience = Patience(idle=0.1)
    channel = await _next(session)
    deliveries: list[Delivery] = []
    await channel.consume(broker.configured_queue, PREFETCH, deliveries.append)
    await channel.publish(broker.configured_key, [_letter(b"1"), _letter(b"2")])
    await eventually(lambda: len(deliveries) == 2)
    first = deliveries[0].receipts
    await eventually(lambda: channel._consumer._amqp and channel._consumer.receipts[_bringer(channel)] is not first)
    await _publish(channel, broker, b"3")
    await eventually(lambda: len(deliveries) == 3)
    acknowledge([deliveries[2], deliveries[0]])
    give_back([deliveries[1]])
    await eventually(lambda: len(deliveries) == 4)
    acknowledge([deliveries[3]])
    assert [delivery.body for delivery in deliveries] == [b"1", b"2", b"3", b"2"]
    await eventually(lambda: first not in channel._consumer.receipts.values())
    await channel.close()
    assert await channel.lost == "closed by us"
    again = await _consume(await _next(session), broker)
    await _publish(await session.channel(), broker, b"last")
    await eventually(lambda: again)
    assert again[0].body == b"last"


async def test_a_subscription_ends_in_the_middle_of_a_renewal(session: Session, broker: BrokerSettings) -> None:
    """It must not cost the channel, and so all calls that run."""
    session._patience = Patience(idle=0)
    channel = await _next(session)
    for turn in range(20):
        consumer = await channel.consume(broker.configured_queue, PREFETCH, lambda _: None)
        for _ in range(turn):
            await asyncio.sleep(0)
        await channel.cancel(consumer)
    assert not channel.lost.done()
    assert await _publish(channel, broker) is Publication.CONFIRMED


class BrokenAnswer(Exception):  # noqa: N818 - as bare as what aiormq raises
    """Stands for whatever aiormq raises when a connection breaks at a bad moment."""


@pytest.mark.parametrize("error", [Exception(), asyncio.CancelledError(), BrokenAnswer(), TimeoutError()])
@pytest.mark.parametrize("what", ["consume", "cancel", "ready"])
async def test_whatever_aiormq_raises_costs_the_channel_and_nothing_else(
    session: Session, broker: BrokerSettings, monkeypatch: pytest.MonkeyPatch, what: str, error: BaseException
) -> None:
    channel = await _next(session)
    consumer = await channel.consume(broker.configured_queue, PREFETCH, lambda _: None)

    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(channel._connection, "channel", fail)
    monkeypatch.setattr(channel._consumer._amqp, "basic_cancel", fail)
    monkeypatch.setattr(channel._amqp, "queue_declare", fail)
    match what:
        case "consume":
            await channel.consume(broker.configured_queue, PREFETCH, lambda _: None)
        case "cancel":
            await channel.cancel(consumer)
        case _:
            assert await channel.ready_messages(broker.configured_queue) is None
    assert "failed" in await _lost(channel)
    assert await _publish(await _next(session), broker) is Publication.CONFIRMED


@pytest.mark.parametrize("error", [Exception(), asyncio.CancelledError()])
async def test_whatever_aiormq_raises_while_it_connects_is_tried_again(
    session: Session, broker: BrokerSettings, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    ensure = declaring.ensure
    failed: list[BaseException] = []

    async def fail_once(there: aiormq.Connection, settings: BrokerSettings) -> None:
        if not failed:
            failed.append(error)
            raise error
        await ensure(there, settings)

    monkeypatch.setattr(declaring, "ensure", fail_once)
    assert await _publish(await _next(session), broker) is Publication.CONFIRMED
    assert failed


async def test_an_empty_batch_is_no_work(session: Session, broker: BrokerSettings) -> None:
    assert await (await _next(session)).publish(broker.configured_key, []) == []


async def test_a_dead_letter_keeps_its_bytes_and_says_why(
    session: Session, broker: BrokerSettings, amqp: aiormq.abc.AbstractChannel
) -> None:
    channel = await _next(session)
    deliveries = await _consume(channel, broker)
    await _publish(channel, broker, b"garbage")
    await eventually(lambda: deliveries)
    await channel.dead_letter(broker.configured_queue, deliveries[0], "it is garbage")
    acknowledge(deliveries[:1])
    message = await amqp.basic_get(f"{broker.configured_queue}.dead", no_ack=True)
    assert message.body == b"garbage"
    assert (message.header.properties.headers or {})["x-reason"] == "it is garbage"
    await channel.close()
    assert await _ready(amqp, broker.configured_queue) == 0


async def test_a_dead_letter_that_is_not_confirmed_leaves_the_message_where_it_is(
    session: Session, broker: BrokerSettings, amqp: aiormq.abc.AbstractChannel
) -> None:
    channel = await _next(session)
    deliveries = await _consume(channel, broker)
    await _publish(channel, broker, b"garbage")
    await eventually(lambda: deliveries)
    await amqp.queue_delete(f"{broker.configured_queue}.dead")
    await channel.dead_letter(broker.configured_queue, deliveries[0], "it is garbage")
    acknowledge(deliveries[:1])
    assert channel.lost.done()
    again = await _consume(await _next(session), broker)
    await eventually(lambda: again)
    assert again[0].body == b"garbage"


async def test_a_message_whose_reader_lost_its_connection_comes_again(broker: BrokerSettings) -> None:
    async with _through_proxy(broker) as (session, proxy):
        channel = await _next(session)
        deliveries = await _consume(channel, broker)
        await _publish(channel, broker)
        await eventually(lambda: deliveries)
        proxy.cut()
        await _lost(channel)
        again = await _consume(await _next(session), broker)
        await eventually(lambda: again)


async def test_publishes_while_the_network_breaks_are_confirmed_or_uncertain_but_end(broker: BrokerSettings) -> None:
    async with _through_proxy(broker) as (session, proxy):
        channel = await _next(session)
        proxy.blackhole(True)
        pending = [asyncio.create_task(_publish(channel, broker, str(number).encode())) for number in range(200)]
        await asyncio.sleep(0)
        proxy.cut()
        assert set(await asyncio.gather(*pending)) <= {Publication.UNCERTAIN, Publication.REFUSED}
        await _lost(channel)
        proxy.blackhole(False)
        assert await _publish(await _next(session), broker) is Publication.CONFIRMED


async def test_a_silent_network_is_noticed_by_heartbeats_and_left_when_it_speaks_again(broker: BrokerSettings) -> None:
    async with _through_proxy(broker, Patience(connect=0.5, close=0.5), heartbeat=1) as (session, proxy):
        channel = await _next(session)
        deliveries = await _consume(channel, broker)
        await _publish(channel, broker)
        await eventually(lambda: deliveries)
        proxy.blackhole(True)
        assert await _publish(channel, broker) is Publication.UNCERTAIN
        await _lost(channel)
        reconnecting = asyncio.create_task(_next(session))
        await eventually(lambda: session.unready == "broker: no answer in time")
        assert not reconnecting.done()
        proxy.blackhole(False)
        again = await _consume(await reconnecting, broker)
        await eventually(lambda: again)


async def test_publishes_pending_when_the_broker_closes_the_connection_are_uncertain(own_rabbitmq: RabbitMQ) -> None:
    settings = _own(own_rabbitmq, "closed")
    async with Session(settings, "test") as session, _memory_alarm(own_rabbitmq):
        channel = await _next(session)
        pending = [asyncio.create_task(_publish(channel, settings, str(number).encode())) for number in range(200)]
        await eventually(lambda: is_blocked(channel))
        await asyncio.to_thread(own_rabbitmq.ctl, "close_all_connections", "a test")
        assert Publication.UNCERTAIN in await asyncio.gather(*pending)
        assert (await _lost(channel)).endswith("320 CONNECTION_FORCED - a test")
    async with Session(settings, "test") as session:
        assert await _publish(await _next(session), settings) is Publication.CONFIRMED


async def test_a_blocked_broker_is_waited_for_and_takes_publishes_afterwards(own_rabbitmq: RabbitMQ) -> None:
    settings = _own(own_rabbitmq, "blocked")
    async with Session(settings, "test", Patience(confirm=0.5)) as session:
        channel = await _next(session)
        async with _memory_alarm(own_rabbitmq):
            pokes = await _until_blocked(channel, settings)
            waiting = asyncio.create_task(channel.unblocked())
            ended, _ = await asyncio.wait({waiting}, timeout=0.2)
            assert not ended
        await asyncio.wait_for(waiting, DEADLINE_SECONDS)
        await asyncio.gather(*pokes)
        channel._publisher._patience = DEADLINE_SECONDS
        assert not channel.lost.done(), "a blocked connection is not a lost one"
        assert await _publish(channel, settings) is Publication.CONFIRMED


async def test_waiting_for_a_blocked_broker_ends_with_the_channel(own_rabbitmq: RabbitMQ) -> None:
    settings = _own(own_rabbitmq, "blocked")
    async with Session(settings, "test") as session, _memory_alarm(own_rabbitmq):
        channel = await _next(session)
        pokes = await _until_blocked(channel, settings)
        waiting = asyncio.create_task(channel.unblocked())
        channel.lose("test")
        await asyncio.wait_for(waiting, DEADLINE_SECONDS)
        await channel.close()
        await asyncio.gather(*pokes)


async def _until_blocked(channel: Channel, settings: BrokerSettings) -> list[asyncio.Task[Publication]]:
    """The broker says that it is short of memory only to those who publish, and not at once."""
    pokes: list[asyncio.Task[Publication]] = []

    def poke() -> bool:
        pokes.append(asyncio.create_task(_publish(channel, settings)))
        return is_blocked(channel)

    await eventually(poke, every=0.2)
    return pokes


@asynccontextmanager
async def _memory_alarm(own_rabbitmq: RabbitMQ) -> AsyncIterator[None]:
    await asyncio.to_thread(own_rabbitmq.ctl, "set_vm_memory_high_watermark", "0.000001")
    try:
        yield
    finally:
        await asyncio.to_thread(own_rabbitmq.ctl, "set_vm_memory_high_watermark", "0.4")


async def test_what_was_given_up_does_not_reach_the_broker_later(own_rabbitmq: RabbitMQ) -> None:
    """More than the kernel holds: without the abort, all of it goes out once the broker reads again."""
    settings = _at(_own(own_rabbitmq, "late"), own_rabbitmq.url, heartbeat=60)
    letters = [Letter(str(number), bytes(1 << 19)) for number in range(64)]
    assert own_rabbitmq._process
    async with Session(settings, "test", Patience(confirm=0.5, close=0.5)) as session:
        channel = await _next(session)
        own_rabbitmq._process.send_signal(signal.SIGSTOP)
        try:
            assert set(await channel.publish(settings.configured_key, letters)) == {Publication.UNCERTAIN}
            assert await _lost(channel) == "no confirm in time"
            await session.__aexit__(None, None, None)
        finally:
            own_rabbitmq._process.send_signal(signal.SIGCONT)

    async def no_connections() -> bool:
        return not await asyncio.to_thread(own_rabbitmq.ctl, "list_connections", "pid")

    await eventually(no_connections, every=0.5)
    connection = await aiormq.connect(settings.nodes[0])
    assert await _ready(await connection.channel(), settings.configured_queue) < len(letters)
    await connection.close()
