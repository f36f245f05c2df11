"""The reconciler between a real database and a real broker.

Where time has to pass, the tests move what the table and the watermark remember into the past, instead of waiting.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest
from aiohttp import web
from aiormq.abc import AbstractChannel
from pydantic import SecretStr
from typing_extensions import override

from messaging.channel import Channel
from messaging.messages import ConfigureTask, Outcome, OutcomeKind
from messaging.patience import Patience
from messaging.session import Session
from messaging.settings import BrokerSettings
from service_b.app import POOL, Periods
from service_b.app import create_app as create_web_app
from service_b.database import DatabaseSettings
from service_b.maintenance.reconciler import Reconciler
from service_b.maintenance.watermark import Watermark
from service_b.relay import Relay
from service_b.results.app import create_app as create_results_app
from service_b.results.settings import Settings as ResultsSettings
from service_b.settings import Settings as WebSettings
from service_b.tasks import claims
from service_b.tasks.claims import Dispatch
from service_b.tasks.clock import Clock
from tests.conftest import eventually
from tests.queues import busy_reader, count_ready, metric, queue_exists, take
from tests.system.rabbitmq import RabbitMQ
from tests.tasks import accept, apply, end_by_hand, finish, let_time_pass, row, states

A, B, C = "DEVICE0A", "DEVICE0B", "DEVICE0C"
LATENESS = 11
"""Of a broker with heartbeats of two seconds."""


@pytest.fixture
def database_url(emptied_database_url: str) -> str:
    return emptied_database_url


@dataclass
class Rig:
    """A reconciler that is made to look once, and a clock that can be turned on."""

    channel: Channel
    amqp: AbstractChannel
    pool: asyncpg.Pool
    sql: asyncpg.Connection
    broker: BrokerSettings
    reconciler: Reconciler
    watermark: Watermark = field(default_factory=Watermark)

    async def dispatch(self, *devices: str) -> list[Dispatch]:
        """Accept one task per device, claim and publish them, one after the other."""
        dispatches = []
        for device in devices:
            await accept(self.pool, device)
            dispatches += await self.redispatch()
        return dispatches

    async def redispatch(self) -> list[Dispatch]:
        relay = Relay(Session(self.broker, "unused"), self.pool, self.broker, asyncio.Event(), Clock())
        dispatches = await claims.claim(self.pool, 10)
        await relay._dispatch(self.channel, dispatches)
        return dispatches

    async def take(self, count: int | None = None) -> list[ConfigureTask]:
        """Take so many messages as a configurator, or all."""
        queue = self.broker.to_configure_queue
        if count is None:
            return [ConfigureTask.decode(message.body) for message in await take(self.amqp, queue)]
        return [ConfigureTask.decode((await self.amqp.basic_get(queue, no_ack=True)).body) for _ in range(count)]

    async def pass_time(self, seconds: float) -> None:
        """Move everything that was dispatched and seen into the past."""
        await let_time_pass(self.sql, seconds)
        past = timedelta(seconds=seconds)
        seen = [(then - seconds, before - past) for then, before in self.watermark.observed]
        self.watermark.observed.clear()
        self.watermark.observed.extend(seen)
        canaries = [replace(canary, dispatched_at=canary.dispatched_at - past) for canary in self.watermark.canaries]
        self.watermark.canaries.clear()
        self.watermark.canaries.extend(canaries)
        self.reconciler._reported = {key: then - seconds for key, then in self.reconciler._reported.items()}

    async def look(self) -> list[UUID]:
        """Look once; return the tasks that were reported as unknown."""
        await self.reconciler._report_overdue(self.channel, self.watermark)
        reported = [Outcome.decode(message.body) for message in await take(self.amqp, self.broker.configured_queue)]
        assert all((outcome.kind, outcome.hold_seconds) == (OutcomeKind.UNKNOWN, 0) for outcome in reported)
        return [outcome.task_id for outcome in reported]

    async def look_long(self) -> list[UUID]:
        """Look again and again while an hour passes."""
        return [task for _ in range(12) for task in [*await self.look(), *await self._skip(300)]]

    async def _skip(self, seconds: float) -> Sequence[UUID]:
        await self.pass_time(seconds)
        return ()


@pytest.fixture
async def rig(
    pool: asyncpg.Pool,
    broker: BrokerSettings,
    amqp: AbstractChannel,
    sql: asyncpg.Connection,
) -> AsyncIterator[Rig]:
    assert broker.lateness_seconds == LATENESS
    async with Session(broker, "reconciler") as session:
        channel = await anext(session)
        async with busy_reader(broker, broker.to_configure_queue):
            yield Rig(channel, amqp, pool, sql, broker, Reconciler(session, pool, broker, Clock()))


async def test_a_message_that_was_taken_is_overdue_when_its_call_may_not_last_any_longer(rig: Rig) -> None:
    overdue = metric("tasks_overdue_total")
    [dispatch] = await rig.dispatch(A)
    assert await rig.look() == []
    await rig.take()
    assert await rig.look() == []
    await rig.pass_time(LATENESS + 0.5)
    assert await rig.look() == [], "only now it is known to have been taken"
    await rig.pass_time(dispatch.time_limit_seconds + LATENESS - 1)
    assert await rig.look() == []
    await rig.pass_time(1.1)
    assert await rig.look() == [dispatch.id]
    assert metric("tasks_overdue_total") == overdue + 1
    assert await states(rig.sql, [dispatch.id]) == ["dispatched"], "the results process decides"


async def test_a_report_is_made_again_only_after_a_while(rig: Rig) -> None:
    """It may wait in its queue while the results process is away: no heap of reports, and none is lost for ever."""
    [dispatch] = await rig.dispatch(A)
    await rig.take()
    await rig.pass_time(100)
    assert await rig.look() == []
    await rig.pass_time(100)
    assert await rig.look() == [dispatch.id]
    for _ in range(5):
        await rig.pass_time(1)
        assert await rig.look() == []
    await rig.pass_time(LATENESS)
    assert await rig.look() == [dispatch.id]


async def test_each_attempt_is_reported_anew(rig: Rig) -> None:
    [dispatch] = await rig.dispatch(A)
    for attempt in (1, 2):
        await rig.take()
        await rig.pass_time(LATENESS + 1)
        assert await rig.look() == []
        await rig.pass_time(100)
        await rig.reconciler._report_overdue(rig.channel, rig.watermark)
        [message] = await take(rig.amqp, rig.broker.configured_queue)
        outcome = Outcome.decode(message.body)
        assert (outcome.task_id, outcome.attempt) == (dispatch.id, attempt)
        assert message.header.properties.delivery_mode == 2
        await claims.make_due_again(rig.pool, [(dispatch.id, attempt)])
        await rig.redispatch()


async def test_a_message_that_still_waits_is_never_reported_however_old(rig: Rig) -> None:
    [dispatch] = await rig.dispatch(A)
    assert await rig.look_long() == []
    await rig.take()
    await rig.pass_time(LATENESS + 1)
    assert await rig.look() == [], "its call may have begun just now"
    await rig.pass_time(dispatch.time_limit_seconds + LATENESS)
    assert await rig.look() == [dispatch.id]


async def test_in_a_backlog_that_never_ends_a_later_answer_shows_what_was_lost(rig: Rig) -> None:
    [lost] = await rig.dispatch(A)
    await rig.take()
    assert await rig.look() == []
    await rig.pass_time(LATENESS + 1)
    [later] = await rig.dispatch(B)
    assert await rig.look() == [], "the later one becomes a canary"
    await rig.pass_time(LATENESS + 1)
    waiting = await rig.dispatch(C, "DEVICE0D")
    assert [message.task_id for message in await rig.take(1)] == [later.id]
    assert await rig.look_long() == [], "nothing of it is answered"
    assert await count_ready(rig.amqp, rig.broker.to_configure_queue) == 2
    await apply(rig.pool, replace(finish(later), lease=None))
    assert await rig.look() == []
    await rig.pass_time(lost.time_limit_seconds + LATENESS + 1)
    assert await rig.look() == [lost.id]
    assert await states(rig.sql, [dispatch.id for dispatch in waiting]) == ["dispatched"] * 2
    assert set(await rig.look_long()) == {lost.id}, "what came after the canary still waits"


async def test_an_answer_says_nothing_of_what_was_dispatched_about_the_same_time(rig: Rig) -> None:
    """A publish may be late by so much: the one dispatched first may stand behind in the queue."""
    [first] = await rig.dispatch(A)
    await rig.take()
    await rig.pass_time(LATENESS - 5)
    [second] = await rig.dispatch(B)
    await rig.look()
    await rig.dispatch(C)
    await rig.take(1)
    await apply(rig.pool, replace(finish(second), lease=None))
    assert first.id not in await rig.look_long()


async def test_while_the_broker_accepts_no_publishes_nothing_is_observed_and_the_past_is_void(
    own_rabbitmq: RabbitMQ, pool: asyncpg.Pool
) -> None:
    """An empty queue proves nothing then: publishes of before, and outcomes, may wait in front of the broker."""
    settings = BrokerSettings(amqp_url=SecretStr(own_rabbitmq.url))
    await accept(pool, A)
    await claims.claim(pool, 1)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(Session(settings, "reconciler", Patience(confirm=0.5)))
        channel = await anext(session)
        await stack.enter_async_context(busy_reader(settings, settings.to_configure_queue))
        reconciler = Reconciler(session, pool, settings, Clock())
        watermark = Watermark()

        async def observes() -> bool:
            await reconciler._look_at_queue(channel, watermark)
            return bool(watermark.observed)

        await eventually(observes)
        await asyncio.to_thread(own_rabbitmq.ctl, "set_vm_memory_high_watermark", "0")

        async def is_blocked() -> bool:
            return not await channel.accepts_publishes()

        await eventually(is_blocked)
        assert not await observes()
        await asyncio.to_thread(own_rabbitmq.ctl, "set_vm_memory_high_watermark", "0.4")
        await eventually(observes)


# --- at work

ROUND = 0.05


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is late only for a moment."""
    monkeypatch.setattr(BrokerSettings, "lateness_seconds", 0.5)


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


@pytest.mark.usefixtures("hurried")
async def test_a_purged_queue_heals(
    broker: BrokerSettings, database: DatabaseSettings, amqp: AbstractChannel, sql: asyncpg.Connection
) -> None:
    """All that waited in it is reported, decided and dispatched once more, by the real processes."""
    settings = broker.model_dump() | database.model_dump()
    web_app = create_web_app(WebSettings(**settings), Periods(poll=0.1, round=0.05))
    queue = broker.to_configure_queue
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(at_work(web_app, create_results_app(ResultsSettings(**settings))))
        await eventually(lambda: queue_exists(broker, queue))
        await stack.enter_async_context(busy_reader(broker, queue))
        devices = [f"DEVICE{number}" for number in range(30)]
        ids = await accept(web_app[POOL], *devices, A, A)
        await eventually(lambda: _holds(amqp, queue, 31))
        await amqp.queue_purge(queue)
        await eventually(lambda: _holds(amqp, queue, 31))
        messages = [ConfigureTask.decode(message.body) for message in await take(amqp, queue)]
        assert sorted(message.task_id for message in messages) == sorted(ids[:31])
        assert {message.attempt for message in messages} == {2}
        assert [(await row(sql, id_))["unknowns"] for id_ in (ids[0], ids[30], ids[31])] == [0, 0, 0]


async def _holds(channel: AbstractChannel, queue: str, messages: int) -> bool:
    with suppress(Exception):
        return await count_ready(channel, queue) >= messages
    return False


class CountingReconciler(Reconciler):
    """Counts its rounds."""

    rounds = 0
    failure: Exception | None = None

    @override
    async def _expire(self) -> int:
        self.rounds += 1
        if self.failure:
            failure, self.failure = self.failure, None
            raise failure
        return await super()._expire()


@asynccontextmanager
async def reconciling(
    pool: asyncpg.Pool, broker: BrokerSettings
) -> AsyncIterator[tuple[CountingReconciler, asyncio.Task[None]]]:
    """A reconciler at work, without a broker."""
    reconciler = CountingReconciler(Session(broker, "never opened"), pool, broker, Clock(), round_seconds=ROUND)
    running = asyncio.create_task(reconciler.run())
    try:
        yield reconciler, running
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.mark.usefixtures("hurried")
async def test_deadlines_and_stranded_tasks_are_looked_after_without_a_broker(
    pool: asyncpg.Pool, broker: BrokerSettings, sql: asyncpg.Connection
) -> None:
    expired, stranded = metric("tasks_expired_total"), metric("tasks_stranded_total")
    finished = metric("tasks_finished_total", code="500")
    old = await accept(pool, A, A, A, deadline_seconds=0.05)
    new = await accept(pool, A, B, B)
    await end_by_hand(sql, "equipment_id = $1 AND active", B)
    async with reconciling(pool, broker):

        async def all_is_well() -> bool:
            return await states(sql, [*old, *new]) == ["error"] * 3 + ["due", "error", "due"]

        await eventually(all_is_well)
        # Counted a moment after the commit that we see.
        await eventually(lambda: metric("tasks_stranded_total") == stranded + 1)
    assert metric("tasks_expired_total") == expired + 3
    assert metric("tasks_finished_total", code="500") == finished + 3


def rounds_of(*reconcilers: CountingReconciler, more: int = 3) -> Callable[[], bool]:
    """A condition: so many rounds more than now."""

    def rounds() -> int:
        return sum(reconciler.rounds for reconciler in reconcilers)

    target = rounds() + more
    return lambda: rounds() >= target


async def test_one_reconciler_leads_and_another_takes_over(
    pool: asyncpg.Pool, broker: BrokerSettings, sql: asyncpg.Connection
) -> None:
    async with reconciling(pool, broker) as (first, running):
        await eventually(rounds_of(first))
        async with reconciling(pool, broker) as (second, _):
            await eventually(rounds_of(first, more=20))
            assert second.rounds == 0
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await sql.execute("UPDATE maintenance SET until = until - interval '16 s'")
            await eventually(rounds_of(second))
            assert second.leading


async def test_who_does_the_maintenance_and_when_it_was_done_are_shown(
    pool: asyncpg.Pool, broker: BrokerSettings, sql: asyncpg.Connection
) -> None:
    async with reconciling(pool, broker) as (reconciler, _):
        await eventually(rounds_of(reconciler))
        assert metric("maintenance_leading") == 1
        assert 0 <= metric("maintenance_round_age_seconds") < 60
        await sql.execute("UPDATE maintenance SET holder = gen_random_uuid()")
        await eventually(lambda: metric("maintenance_leading") == 0)


@pytest.mark.parametrize("by", [3600, -3600, 40, -40])
async def test_who_leads_corrects_a_jump_of_the_databases_clock(
    pool: asyncpg.Pool, broker: BrokerSettings, sql: asyncpg.Connection, by: float
) -> None:
    jumps = metric("clock_jumps_total")
    async with reconciling(pool, broker) as (reconciler, _), reconciling(pool, broker) as (other, _):
        await eventually(rounds_of(reconciler, other))
        await sql.execute("UPDATE task_clock SET correction = make_interval(secs => $1)", by)
        await eventually(lambda: metric("clock_jumps_total") == jumps + 1)
        await eventually(rounds_of(reconciler, other))
        correction = await sql.fetchval("SELECT correction FROM task_clock")
        assert abs(correction.total_seconds()) < 1
        assert metric("clock_jumps_total") == jumps + 1


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("failure", [asyncpg.PostgresConnectionError("gone"), ZeroDivisionError("a bug")])
async def test_a_reconciler_goes_on_after_any_failure(
    pool: asyncpg.Pool, broker: BrokerSettings, failure: Exception
) -> None:
    async with reconciling(pool, broker) as (reconciler, running):
        await eventually(rounds_of(reconciler))
        reconciler.failure = failure
        await eventually(lambda: reconciler.failure is None)
        await eventually(rounds_of(reconciler))
        assert not running.done()


@pytest.mark.usefixtures("hurried")
async def test_what_a_lost_channel_has_seen_is_void(
    pool: asyncpg.Pool, broker: BrokerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outcomes that waited for the broker must get the time to arrive first."""
    watermarks: list[Watermark] = []

    async def note(_: Reconciler, channel: Channel, watermark: Watermark) -> None:
        if not any(watermark is noted for noted in watermarks):
            watermarks.append(watermark)

    monkeypatch.setattr(Reconciler, "_report_overdue", note)
    async with Session(broker, "reconciler") as session:
        reconciler = Reconciler(session, pool, broker, Clock(), round_seconds=ROUND)
        running = asyncio.create_task(reconciler.run())
        await anext(session)
        await eventually(lambda: len(watermarks) == 1)
        await anext(session)
        await eventually(lambda: len(watermarks) == 2)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
