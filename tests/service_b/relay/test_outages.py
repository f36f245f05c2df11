"""The relay while its database, its broker or the clock fails it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest
from aiormq.abc import AbstractChannel
from pydantic import SecretStr
from structlog.testing import capture_logs
from yarl import URL

from messaging.settings import BrokerSettings
from service_b.database import DatabaseSettings, create_pool
from service_b.tasks.clock import Clock
from tests.conftest import eventually, own_queues
from tests.proxy import Proxy
from tests.queues import is_blocked, metric
from tests.service_b.relay.relays import DEVICES, NEVER, Watch, are, attempts, begin_calls, channel_to, holds, relaying
from tests.system.postgres import PostgreSQL
from tests.system.rabbitmq import RabbitMQ
from tests.tasks import accept, row, states, step_clock


@pytest.fixture
async def own(own_rabbitmq: RabbitMQ) -> AsyncIterator[BrokerSettings]:
    """Queues on a broker to be stopped and told things; each test leaves it running."""
    async with own_queues(own_rabbitmq.url) as settings:
        yield settings


async def test_a_database_that_is_away_for_a_while_is_waited_for(
    own_postgres: PostgreSQL, broker: BrokerSettings, amqp: AbstractChannel
) -> None:
    database = DatabaseSettings(database_url=SecretStr(own_postgres.dsn()))
    async with create_pool(database) as pool, relaying(broker, pool):
        with capture_logs() as logs:
            await asyncio.to_thread(own_postgres.stop)
            await eventually(lambda: any(entry["event"] == "relay.storage_unavailable" for entry in logs))
            await asyncio.to_thread(own_postgres.start)
        [id_] = await accept(pool, "DEVICE1")
        await eventually(lambda: holds(amqp, broker, 1))
        assert await attempts(amqp, broker) == [(id_, 1)]


async def test_a_stop_does_not_wait_for_a_database_that_answers_no_more(
    service_url: str, watch: Watch, broker: BrokerSettings
) -> None:
    url = URL(service_url)
    async with Proxy("127.0.0.1", url.port or 0) as proxy:
        database = DatabaseSettings(database_url=SecretStr(str(url.with_port(proxy.url_port))))
        async with create_pool(database) as pool:
            with capture_logs() as logs:
                async with relaying(broker, pool, poll_seconds=NEVER) as running:
                    await eventually(lambda: watch.idle)
                    proxy.blackhole(True)
                    running.wake.set()
                    await eventually(lambda: pool.get_idle_size() < pool.get_size())
            proxy.blackhole(False)
    assert not [entry for entry in logs if entry["event"] == "relay.storage_unavailable"], "it looked no further"


async def test_with_the_broker_down_nothing_is_claimed_and_all_is_relayed_when_it_is_back(
    pool: asyncpg.Pool, own_rabbitmq: RabbitMQ, own: BrokerSettings, sql: asyncpg.Connection
) -> None:
    async with relaying(own, pool) as running:
        with capture_logs() as logs:
            await asyncio.to_thread(own_rabbitmq.stop)
            ids = await accept(pool, *DEVICES[:30])
            running.wake.set()
            await eventually(lambda: sum(entry["event"] == "amqp.connect_failed" for entry in logs) >= 2)
        assert set(await states(sql, ids)) == {"due"}
        assert await sql.fetchval("SELECT max(attempt) FROM task") == 0
        ids += await accept(pool, "DEVICEX")
        await asyncio.to_thread(own_rabbitmq.start)
        await eventually(lambda: running.session.current)
        async with channel_to(own) as channel:
            await eventually(lambda: holds(channel, own, 31))
            assert Counter(await attempts(channel, own)) == Counter((id_, 1) for id_ in ids)


async def test_what_the_broker_refuses_is_published_again(
    pool: asyncpg.Pool, watch: Watch, own_rabbitmq: RabbitMQ, own: BrokerSettings, sql: asyncpg.Connection
) -> None:
    policy = ("full", f"^{own.to_configure_queue}$", '{"max-length": 1, "overflow": "reject-publish"}')
    await asyncio.to_thread(own_rabbitmq.ctl, "set_policy", *policy, "--apply-to", "queues")
    async with relaying(own, pool), channel_to(own) as channel:
        published: list[tuple[UUID, int]] = []
        before = metric("tasks_dispatched_total", publication="refused")
        ids: list[UUID] = []

        def is_refused() -> bool:
            return metric("tasks_dispatched_total", publication="refused") > before

        async def is_published() -> bool:
            # What is refused is due again after a moment, and is dispatched for no longer than that.
            return is_refused() or await are(sql, ids, "dispatched")

        # A full queue refuses a little late.
        while not is_refused():
            ids.extend(await accept(pool, DEVICES[len(ids)]))
            await eventually(is_published)
        await asyncio.to_thread(own_rabbitmq.ctl, "clear_policy", "full")

        async def all_have_begun() -> bool:
            published.extend(await begin_calls(pool, channel, own))
            return set(await states(sql, ids)) == {"running"}

        await eventually(all_have_begun)
        await watch.until_idle()
    assert Counter(id_ for id_, _ in published) == Counter(ids), "each published once"
    assert max(attempt for _, attempt in published) > 1
    assert dict(published) == {id_: (await row(sql, id_))["attempt"] for id_ in ids}


async def test_a_broker_short_of_memory_is_given_nothing(
    pool: asyncpg.Pool, watch: Watch, own_rabbitmq: RabbitMQ, own: BrokerSettings, sql: asyncpg.Connection
) -> None:
    async with relaying(own, pool) as running, channel_to(own) as channel:
        await eventually(lambda: watch.idle)
        current = await running.session.channel()
        await asyncio.to_thread(own_rabbitmq.ctl, "set_vm_memory_high_watermark", "0")
        try:
            # A connection is told that it is blocked when it publishes.
            ids = await accept(pool, "DEVICE0")
            running.wake.set()
            await eventually(lambda: is_blocked(current))
            ids += await accept(pool, "DEVICE1")
            for _ in range(100):
                running.wake.set()
                assert await states(sql, ids) == ["dispatched", "due"]
        finally:
            await asyncio.to_thread(own_rabbitmq.ctl, "set_vm_memory_high_watermark", "0.4")
        await eventually(lambda: are(sql, ids, "dispatched"))
        await eventually(lambda: holds(channel, own, 2))
        assert await attempts(channel, own) == [(id_, 1) for id_ in ids]


async def test_what_is_due_only_by_a_jump_of_the_databases_clock_is_not_claimed(
    pool: asyncpg.Pool, watch: Watch, broker: BrokerSettings, amqp: AbstractChannel, sql: asyncpg.Connection
) -> None:
    internal = Clock(settle_seconds=0)
    await internal.look(sql)
    held, due = await accept(pool, "DEVICE1", "DEVICE2")
    await sql.execute("UPDATE task SET due_at = due_at + interval '30 min' WHERE id = $1", held)
    await step_clock(sql, 2000)
    async with relaying(broker, pool, internal=internal):
        await watch.until_idle()
    assert await attempts(amqp, broker) == [(due, 1)]
    assert await states(sql, [held]) == ["due"]
