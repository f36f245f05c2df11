"""A line of some kilobytes a second: what moves is waited for, however long; what does not is given up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import SecretStr

from messaging.deliveries import Delivery, acknowledge
from messaging.frames import Letter
from messaging.patience import Patience
from messaging.publishing import Publication
from messaging.session import Session
from messaging.settings import BrokerSettings
from tests.conftest import eventually
from tests.proxy import Proxy

RATE = 30_000
"""Bytes a second."""


@asynccontextmanager
async def _line(settings: BrokerSettings, patience: Patience) -> AsyncIterator[tuple[Session, Proxy]]:
    url = settings.nodes[0]
    async with Proxy(url.host or "", url.port or 0) as proxy:
        proxy.throttle(RATE)
        there = url.with_host("127.0.0.1").with_port(proxy.url_port).update_query(heartbeat=1)
        slow = BrokerSettings(**settings.model_dump() | {"amqp_url": SecretStr(str(there))})
        async with Session(slow, "slow", patience) as session:
            yield session, proxy


async def test_a_batch_is_confirmed_though_it_takes_longer_than_a_confirm_may(broker: BrokerSettings) -> None:
    async with _line(broker, Patience(confirm=1)) as (session, _):
        channel = await anext(session)
        letters = [Letter(str(number), bytes(1000)) for number in range(80)]
        assert set(await channel.publish(broker.configured_key, letters)) == {Publication.CONFIRMED}
        assert not channel.lost.done()


async def test_a_question_behind_a_batch_is_answered_though_it_takes_longer_than_an_answer_may(
    broker: BrokerSettings,
) -> None:
    async with _line(broker, Patience(answer=1)) as (session, _):
        channel = await anext(session)
        letters = [Letter(str(number), bytes(1000)) for number in range(80)]
        publishing = asyncio.create_task(channel.publish(broker.configured_key, letters))
        await eventually(lambda: channel._publisher._unconfirmed)
        assert await channel.ready_messages(broker.configured_queue) is not None
        assert set(await publishing) == {Publication.CONFIRMED}


async def test_a_message_arrives_though_it_takes_longer_than_a_connection_may_be_silent(
    session: Session, broker: BrokerSettings
) -> None:
    body = bytes(131_000)
    assert await (await anext(session)).publish(broker.configured_key, [Letter("large", body)])
    async with _line(broker, Patience(answer=1, idle=0.5)) as (slow, _):
        channel = await anext(slow)
        deliveries: list[Delivery] = []
        await channel.consume(broker.configured_queue, 10, deliveries.append)
        await eventually(lambda: deliveries)
        acknowledge(deliveries)
        assert [len(delivery.body) for delivery in deliveries] == [len(body)]
        assert not channel.lost.done()


async def test_a_publish_of_which_nothing_moves_is_uncertain_and_does_not_go_out_later(broker: BrokerSettings) -> None:
    async with _line(broker, Patience(confirm=1, close=0.5)) as (session, proxy):
        channel = await anext(session)
        proxy.blackhole(True)
        letters = [Letter(str(number), bytes(1000)) for number in range(80)]
        assert set(await channel.publish(broker.configured_key, letters)) == {Publication.UNCERTAIN}
        assert await channel.lost == "no confirm in time"
        proxy.blackhole(False)
        await eventually(lambda: proxy.resets == 1)
