"""Reports of lost calls, between a real database and a real broker.

Where time has to pass, the tests move what the table remembers into the past, instead of waiting.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg
import pytest
from aiohttp import web
from aiormq.abc import AbstractChannel, DeliveredMessage

from messaging.messages import ConfigureTask, Outcome, OutcomeKind
from messaging.session import Session
from messaging.settings import BrokerSettings
from runtime import clock
from service_b.app import POOL, Periods
from service_b.app import create_app as create_web_app
from service_b.database import DatabaseSettings
from service_b.maintenance.losses import report
from service_b.maintenance.reconciler import Reconciler
from service_b.results.app import create_app as create_results_app
from service_b.results.settings import Settings as ResultsSettings
from service_b.settings import Settings as WebSettings
from service_b.tasks import overdue
from service_b.tasks.claims import Dispatch
from service_b.tasks.clock import Clock
from service_b.tasks.overdue import Call
from tests.conftest import DEADLINE_SECONDS, eventually
from tests.queues import busy_reader, count_ready, declare, metric, queue_exists, take
from tests.tasks import A, B, accept, begin, claim, lease_of, let_time_pass, row, states

ROUND = 0.05
LIMIT = 5


@pytest.fixture
def database_url(emptied_database_url: str) -> str:
    return emptied_database_url


@dataclass
class Rig:
    """What reports lost calls, and is made to look once."""

    session: Session
    amqp: AbstractChannel
    pool: asyncpg.Pool
    sql: asyncpg.Connection
    broker: BrokerSettings
    clock: Clock = field(default_factory=lambda: Clock(settle_seconds=0))

    async def begin(self, *devices: str) -> list[Dispatch]:
        """Bring tasks to where service A is at work on them."""
        await accept(self.pool, *devices, timeout_seconds=LIMIT)
        return await claim(self.pool, 10)

    async def look(self) -> None:
        """Look once."""
        await self.clock.look(self.sql)
        await self.report()

    async def report(self) -> float:
        return await report(self.session, self.pool, self.broker, self.clock)

    async def take(self) -> list[Outcome]:
        """Take all reports."""
        return [Outcome.decode(message.body) for message in await take(self.amqp, self.broker.configured_queue)]

    async def count(self) -> int:
        """How many reports wait."""
        return await count_ready(self.amqp, self.broker.configured_queue)


@pytest.fixture
async def rig(
    pool: asyncpg.Pool, broker: BrokerSettings, amqp: AbstractChannel, sql: asyncpg.Connection
) -> AsyncIterator[Rig]:
    async with Session(broker, "losses") as session:
        await anext(session)
        yield Rig(session, amqp, pool, sql, broker)


async def test_a_call_is_reported_when_its_limit_and_a_margin_have_passed(rig: Rig) -> None:
    lost = metric("tasks_lost_calls_total")
    [dispatch] = await rig.begin(A)
    await let_time_pass(rig.sql, LIMIT + 9)
    await rig.look()
    assert await rig.count() == 0
    await let_time_pass(rig.sql, 1.1)
    await rig.look()
    [message] = await take(rig.amqp, rig.broker.configured_queue)
    outcome = Outcome.decode(message.body)
    assert (outcome.attempt, outcome.lease, outcome.kind) == (1, lease_of(dispatch), OutcomeKind.LOST)
    assert message.header.properties.delivery_mode == 2
    assert metric("tasks_lost_calls_total") == lost + 1
    assert await states(rig.sql, [outcome.task_id]) == ["running"], "the results process decides"


async def test_while_the_results_process_is_away_there_is_one_report_of_each(rig: Rig) -> None:
    """For a weekend: no heap of them; and new calls are reported all the while."""
    await rig.begin(A)
    await let_time_pass(rig.sql, LIMIT + 11)
    for _ in range(20):
        await rig.look()
        await let_time_pass(rig.sql, 31)
    assert await rig.count() == 1
    await rig.begin(B)
    await let_time_pass(rig.sql, LIMIT + 11)
    for _ in range(5):
        await rig.look()
        await let_time_pass(rig.sql, 31)
    assert len({outcome.task_id for outcome in await rig.take()}) == 2


async def test_a_report_that_is_nowhere_is_made_again(rig: Rig) -> None:
    """The queue was deleted, with all that was in it, and declared again."""
    await rig.begin(A)
    await let_time_pass(rig.sql, LIMIT + 11)
    await rig.look()
    assert await rig.count() == 1
    await rig.amqp.queue_delete(rig.broker.configured_queue)
    await declare(rig.amqp, rig.broker)
    await rig.look()
    assert await rig.count() == 0, "it was reported just now"
    await let_time_pass(rig.sql, 31)
    await rig.look()
    assert await rig.count() == 0, "nobody reads: the broker may not know what is in the queue"
    async with reader(rig.broker, rig.broker.configured_queue) as read:
        await let_time_pass(rig.sql, 31)
        await rig.look()
        await eventually(lambda: len(read) == 1)


@asynccontextmanager
async def reader(settings: BrokerSettings, queue: str) -> AsyncIterator[list[DeliveredMessage]]:
    """A consumer that takes everything."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(Session(settings, "reader"))
        channel = await anext(session)
        read: list[DeliveredMessage] = []
        await channel.consume(queue, 10, read.append)  # type: ignore[arg-type]
        yield read


async def test_channels_that_live_for_a_moment_are_enough(rig: Rig) -> None:
    """Nothing has to be observed for long. A report may come twice: a channel may be lost while it is on its way."""
    await rig.begin(A)
    await let_time_pass(rig.sql, LIMIT + 11)
    await rig.clock.look(rig.sql)
    reconciler = Reconciler(rig.pool, rig.clock, round_seconds=ROUND)
    reconciler.leading = True
    running = asyncio.create_task(reconciler.whenever_leading(rig.report))
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not await rig.count():
                channel = await anext(rig.session)
                await asyncio.sleep(2 * ROUND)
                channel.lose("a bad day")
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


# --- with the other processes


@asynccontextmanager
async def at_work(*apps: web.Application) -> AsyncIterator[None]:
    """The processes' apps, without their HTTP ports."""
    runners = [web.AppRunner(app) for app in apps]
    for runner in runners:
        await runner.setup()
    try:
        yield
    finally:
        for runner in reversed(runners):
            await runner.cleanup()


async def holds(channel: AbstractChannel, queue: str, messages: int) -> bool:
    return await count_ready(channel, queue) >= messages


async def test_a_purged_queue_heals_though_it_is_never_empty(
    broker: BrokerSettings, database: DatabaseSettings, amqp: AbstractChannel, sql: asyncpg.Connection
) -> None:
    """What waited in it is dispatched once more; nothing but old messages need be there, and no answer of A's."""
    settings = broker.model_dump() | database.model_dump()
    web_app = create_web_app(WebSettings(**settings), Periods(poll=0.1, round=ROUND))
    queue = broker.to_configure_queue
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(at_work(web_app, create_results_app(ResultsSettings(**settings))))
        await eventually(lambda: queue_exists(broker, queue))
        await stack.enter_async_context(busy_reader(broker, queue))
        devices = [f"DEVICE{number}" for number in range(20)]
        ids = await accept(web_app[POOL], *devices, A, A)
        await eventually(lambda: holds(amqp, queue, 21))
        await amqp.queue_purge(queue)
        await amqp.basic_publish(b"{}", routing_key=queue)
        await let_time_pass(sql, 11)
        await eventually(lambda: holds(amqp, queue, 22))
        messages = [message.body for message in await take(amqp, queue)]
        tasks = [ConfigureTask.decode(body) for body in messages if body != b"{}"]
        assert sorted(task.task_id for task in tasks) == sorted(ids[:21])
        assert {task.attempt for task in tasks} == {2}
        found = await row(sql, ids[0])
        assert (found["unknowns"], found["losts"]) == (0, 0), "nothing that had no lease counts"


async def test_a_lost_call_is_made_again(
    broker: BrokerSettings, database: DatabaseSettings, amqp: AbstractChannel, sql: asyncpg.Connection
) -> None:
    """Reported, decided and dispatched once more, by the real processes."""
    settings = broker.model_dump() | database.model_dump()
    web_app = create_web_app(WebSettings(**settings), Periods(poll=0.1, round=ROUND))
    results = create_results_app(ResultsSettings(**settings, retry_base_seconds=0.1))
    async with at_work(web_app, results):
        queue = broker.to_configure_queue
        await eventually(lambda: queue_exists(broker, queue))
        [id_] = await accept(web_app[POOL], A)
        await eventually(lambda: holds(amqp, queue, 1))
        [message] = [ConfigureTask.decode(message.body) for message in await take(amqp, queue)]
        await begin(web_app[POOL], Dispatch(id_, message.attempt, A, 1, 1, "{}"))
        await let_time_pass(sql, 12)

        async def is_dispatched_again() -> bool:
            return bool((await row(sql, id_))["attempt"] == 2)

        await eventually(is_dispatched_again)


async def test_a_slow_look_is_followed_by_a_long_pause(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while an old snapshot lives."""
    real, ahead = clock.now, 0.0
    monkeypatch.setattr(clock, "now", lambda: real() + ahead)
    take_lost = overdue.take_lost

    async def slow(pool: asyncpg.Pool, now: datetime, limit: int) -> Sequence[Call]:
        nonlocal ahead
        ahead += 1000
        return await take_lost(pool, now, limit)

    monkeypatch.setattr(overdue, "take_lost", slow)
    await rig.clock.look(rig.sql)
    assert await rig.report() >= 4000
