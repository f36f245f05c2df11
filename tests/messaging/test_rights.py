"""What there is, what is absent, and what a process with few rights can do about it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aiormq
import pytest
from aiormq.exceptions import ChannelAccessRefused
from pydantic import SecretStr
from structlog.testing import capture_logs

from messaging import declaring
from messaging.channel import Channel
from messaging.definitions import rights
from messaging.deliveries import Delivery, acknowledge
from messaging.frames import Letter
from messaging.publishing import Publication
from messaging.session import Session
from messaging.settings import BrokerSettings
from messaging.topology import Exchange, Queue, dead_letter_queue, queues
from tests.conftest import DEADLINE_SECONDS, eventually
from tests.queues import as_user, count_ready, declare, names, queue_exists, users_for_tests
from tests.system.rabbitmq import RabbitMQ

USERS = tuple(rights(BrokerSettings()))
CONFIRMED, RETURNED = [Publication.CONFIRMED], [Publication.RETURNED]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A broker with a user for each of our processes, who may do what the README says and no more."""
    with RabbitMQ(tmp_path_factory.mktemp("node"), definitions=users_for_tests()) as started:
        yield started


@pytest.fixture
async def own(node: RabbitMQ) -> BrokerSettings:
    """Names that nobody else uses; what is made under them stays until the broker ends."""
    return BrokerSettings.model_validate({"amqp_url": SecretStr(node.url), **names(uuid4().hex[:12])})


@pytest.fixture
async def amqp(node: RabbitMQ) -> AsyncIterator[aiormq.abc.AbstractChannel]:
    """The administrator's channel."""
    connection = await aiormq.connect(node.url)
    yield await connection.channel()
    await connection.close()


@asynccontextmanager
async def _as(user: str, settings: BrokerSettings) -> AsyncIterator[Session]:
    url = as_user(str(settings.nodes[0]), user)
    async with Session(BrokerSettings(**settings.model_dump() | {"amqp_url": SecretStr(url)}), user) as session:
        yield session


@asynccontextmanager
async def _kept_out(user: str, settings: BrokerSettings, why: str) -> AsyncIterator[None]:
    """A process of this user is not ready, and says why."""
    async with _as(user, settings) as session:
        connecting = asyncio.create_task(anext(session))
        await eventually(lambda: why in (session.unready or ""))
        yield
        connecting.cancel()
        await asyncio.wait({connecting})


async def _next(session: Session) -> Channel:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await anext(session)


async def _consume(channel: Channel, queue: str) -> list[Delivery]:
    deliveries: list[Delivery] = []
    await channel.consume(queue, 10, deliveries.append)
    return deliveries


async def test_three_users_with_no_more_rights_than_they_need(
    own: BrokerSettings, amqp: aiormq.abc.AbstractChannel
) -> None:
    """The web process, the configurator and the results process, each under a user of its own."""
    await declare(amqp, own)
    task, rubbish = [Letter("1", b"task")], [Letter("2", b"rubbish")]
    async with (
        _as("web", own) as web_session,
        _as("configurator", own) as configurator_session,
        _as("results", own) as results_session,
    ):
        web, configurator, results = [
            await _next(session) for session in (web_session, configurator_session, results_session)
        ]
        work = await _consume(configurator, own.to_configure_queue)
        outcomes = await _consume(results, own.configured_queue)
        for publisher, key in (
            (web, own.to_configure_key),
            (web, own.configured_key),
            (configurator, own.configured_key),
        ):
            assert await publisher.publish(key, task) == CONFIRMED
        assert await web.publish(own.to_configure_key, rubbish) == CONFIRMED
        assert await web.publish(own.configured_key, rubbish) == CONFIRMED
        assert await web.ready_messages(own.to_configure_queue) == 0
        await eventually(lambda: (len(work), len(outcomes)) == (2, 3))
        await configurator.dead_letter(own.to_configure_queue, work[1], "rubbish")
        await results.dead_letter(own.configured_queue, outcomes[2], "rubbish")
        acknowledge([*work, *outcomes])
        for queue in (own.to_configure_queue, own.configured_queue):
            assert await count_ready(amqp, dead_letter_queue(queue)) == 1
        assert not any(channel.lost.done() for channel in (web, configurator, results))
        assert all(session.unready is None for session in (web_session, configurator_session, results_session))


async def test_what_a_newer_broker_hides_is_taken_as_there(
    own: BrokerSettings, amqp: aiormq.abc.AbstractChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ 4.3 refuses to look for what this user has no right to at all; the one of the tests is older."""
    await declare(amqp, own)
    ask = declaring._declare

    async def ask_newer(
        amqp: aiormq.abc.AbstractChannel, item: Exchange | Queue, *arguments: Any, passive: bool = False
    ) -> None:
        if passive and item.name not in (own.exchange, own.to_configure_queue):
            raise ChannelAccessRefused
        await ask(amqp, item, *arguments, passive=passive)

    monkeypatch.setattr(declaring, "_declare", ask_newer)
    async with _as("web", own) as session:
        channel = await _next(session)
        assert await channel.publish(own.to_configure_key, [Letter("1", b"task")]) == CONFIRMED


@pytest.mark.parametrize("user", USERS)
async def test_what_is_absent_and_may_not_be_declared_is_named(
    own: BrokerSettings, amqp: aiormq.abc.AbstractChannel, user: str
) -> None:
    await declare(amqp, own)
    await amqp.queue_delete(own.to_configure_queue)
    why = (
        f"broker: queue '{own.to_configure_queue}' is absent, and this user may not declare it (ACCESS_REFUSED -"
        f" access to queue '{own.to_configure_queue}' in vhost '/' refused for user '{user}')"
    )
    async with _kept_out(user, own, why):
        await declare(amqp, own)


async def test_a_binding_that_may_not_be_made_is_named_until_it_is_there(
    own: BrokerSettings, amqp: aiormq.abc.AbstractChannel
) -> None:
    await declare(amqp, own)
    await amqp.queue_unbind(own.configured_queue, own.exchange, routing_key=own.configured_key)
    async with _as("configurator", own) as session:
        channel = await _next(session)
        with capture_logs() as logs:
            assert await channel.publish(own.configured_key, [Letter("1", b"")]) == RETURNED
        why = session.unready or ""
        assert why.startswith(f"broker: queue '{own.configured_queue}' may not be bound, and so perhaps is not, to")
        assert "ACCESS_REFUSED" in why
        assert [entry["error"] for entry in logs if entry["event"] == "amqp.undeclared"]
        assert not channel.lost.done(), "its deliveries may be hours of work"
        await amqp.queue_bind(own.configured_queue, own.exchange, routing_key=own.configured_key)
        assert await channel.publish(own.configured_key, [Letter("2", b"")]) == CONFIRMED
        assert session.unready is None


@pytest.mark.parametrize("kind", ["queue", "dead-letter queue", "exchange"])
async def test_what_is_not_as_it_must_be_is_named_with_the_difference_and_what_to_do(
    own: BrokerSettings, amqp: aiormq.abc.AbstractChannel, kind: str
) -> None:
    match kind:
        case "queue":
            name, difference = own.configured_queue, "inequivalent arg 'x-dead-letter-exchange'"
            await amqp.queue_declare(name, durable=True)
        case "dead-letter queue":
            name, difference = dead_letter_queue(own.configured_queue), "inequivalent arg 'durable'"
            await amqp.queue_declare(name, durable=False)
        case _:
            name, difference = own.exchange, "received 'direct' but current is 'fanout'"
            await amqp.exchange_declare(name, exchange_type="fanout", durable=True)
    async with _as("guest", own) as session:
        connecting = asyncio.create_task(anext(session))
        await eventually(lambda: "is not as it must be" in (session.unready or ""))
        connecting.cancel()
        why = session.unready or ""
    assert f"'{name}'" in why
    assert difference in why
    assert f"name another one ({'EXCHANGE' if kind == 'exchange' else 'CONFIGURED_QUEUE'})" in why


async def test_queues_of_an_earlier_version_go_on_and_their_lack_is_named(
    own: BrokerSettings, amqp: aiormq.abc.AbstractChannel
) -> None:
    """As they were made before dead letters had an exchange of ours."""
    for queue in queues(own):
        await amqp.queue_declare(queue.name, durable=True, arguments=dict(queue.earlier))
    await amqp.exchange_declare(own.exchange, durable=True)
    await amqp.queue_bind(own.configured_queue, own.exchange, routing_key=own.configured_key)
    with capture_logs() as logs:
        async with _as("guest", own) as session:
            channel = await _next(session)
            deliveries = await _consume(channel, own.configured_queue)
            assert await channel.publish(own.configured_key, [Letter("1", b"")]) == CONFIRMED
            await eventually(lambda: deliveries)
            await channel.dead_letter(own.configured_queue, deliveries[0], "rubbish")
            assert not channel.lost.done()
    older = {entry["queue"]: entry["lacking"] for entry in logs if entry["event"] == "amqp.older_queue"}
    assert older == {
        dead_letter_queue(queue): "grows without bound" for queue in (own.to_configure_queue, own.configured_queue)
    }


async def test_the_broker_itself_dead_letters_by_our_exchange(
    own: BrokerSettings, amqp: aiormq.abc.AbstractChannel
) -> None:
    await declare(amqp, own)
    await amqp.basic_publish(b"rejected", exchange=own.exchange, routing_key=own.configured_key)
    message = await amqp.basic_get(own.configured_queue)
    assert isinstance(message.delivery, aiormq.spec.Basic.GetOk)
    await amqp.basic_reject(message.delivery.delivery_tag or 0, requeue=False)

    async def arrived() -> bool:
        return await count_ready(amqp, dead_letter_queue(own.configured_queue)) == 1

    await eventually(arrived)


async def test_dead_letters_are_bounded_in_number_and_age_the_oldest_go_first(
    own: BrokerSettings, amqp: aiormq.abc.AbstractChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = dead_letter_queue(own.configured_queue)
    [queue] = [queue for queue in queues(own) if queue.name == dead]
    assert queue.arguments["x-max-length"] == 10_000
    assert queue.arguments["x-message-ttl"] == 14 * 24 * 3600 * 1000
    small: dict[str, Any] = {**queue.arguments, "x-max-length": 3}
    await amqp.queue_declare(dead, durable=True, arguments=small)
    for number in range(10):
        await amqp.basic_publish(str(number).encode(), routing_key=dead)
    kept = [(await amqp.basic_get(dead, no_ack=True)).body for _ in range(3)]
    assert kept == [b"7", b"8", b"9"]
    short: dict[str, Any] = {**queue.arguments, "x-message-ttl": 1}
    await amqp.queue_delete(dead)
    await amqp.queue_declare(dead, durable=True, arguments=short)
    await amqp.basic_publish(b"old", routing_key=dead)

    async def gone() -> bool:
        return await count_ready(amqp, dead) == 0

    await eventually(gone)


async def test_a_name_without_a_queue_is_found_absent_and_made(own: BrokerSettings) -> None:
    assert not await queue_exists(own, own.configured_queue)
    async with _as("guest", own) as session:
        assert await (await _next(session)).publish(own.configured_key, [Letter("1", b"")]) == CONFIRMED
    assert await queue_exists(own, own.configured_queue)
