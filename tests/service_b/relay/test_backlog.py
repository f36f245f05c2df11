"""How much the relay keeps in the queue, and of whose: room, lanes, turns, and sparing service A."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from uuid import UUID

import asyncpg
import pytest
from aiormq.abc import AbstractChannel, DeliveredMessage
from structlog.testing import capture_logs

from messaging.messages import ConfigureTask
from messaging.settings import BrokerSettings
from service_b.database import Queries
from service_b.relay import EXTRA
from service_b.room import LEAST
from service_b.tasks import leases, restraint
from service_b.tasks.claims import Dispatch
from service_b.tasks.inserts import Wishes
from service_b.tasks.states import DISPATCHED
from tests.conftest import eventually
from tests.queues import count_ready, metric
from tests.service_b.relay.relays import DEVICES, NEVER, attempts, begin_calls, channel_to, holds, relaying
from tests.tasks import accept, apply, call_lease, finish, states


@asynccontextmanager
async def configuring(
    pool: asyncpg.Pool, settings: BrokerSettings, *, slots: int, call_seconds: float
) -> AsyncIterator[list[UUID]]:
    """Slots that take a task each, begin its call and end it; the tasks that were configured."""
    done: list[UUID] = []

    async def work(message: DeliveredMessage) -> None:
        task = ConfigureTask.decode(message.body)
        [answer] = await leases.grant(pool, [(task.task_id, task.attempt, call_lease(task.task_id, task.attempt))])
        if answer == "granted":
            await asyncio.sleep(call_seconds)
            await apply(pool, finish(Dispatch(task.task_id, task.attempt, "", 1, 1, "{}")))
            done.append(task.task_id)
        await message.channel.basic_ack(message.delivery_tag or 0)

    async with channel_to(settings) as channel:
        await channel.basic_qos(prefetch_count=slots)
        tag = (await channel.basic_consume(settings.to_configure_queue, work)).consumer_tag
        yield done
        await channel.basic_cancel(tag or "")


async def under_way(sql: asyncpg.Connection) -> int:
    dispatched: int = await sql.fetchval(f"SELECT count(*) FROM task WHERE {DISPATCHED}")
    return dispatched


@pytest.mark.parametrize("relays", [1, 2])
async def test_few_slots_leave_the_backlog_in_the_table(
    pool: asyncpg.Pool, broker: BrokerSettings, amqp: AbstractChannel, sql: asyncpg.Connection, relays: int
) -> None:
    for start in range(0, 10_000, 1000):
        await accept(pool, *(f"DEVICE{number}" for number in range(start, start + 1000)))
    most = 0

    async def has_worked() -> bool:
        nonlocal most
        most = max(most, await count_ready(amqp, broker.to_configure_queue), await under_way(sql))
        return len(done) > 3 * LEAST

    async with AsyncExitStack() as stack:
        for _ in range(relays):
            await stack.enter_async_context(relaying(broker, pool))
        done = await stack.enter_async_context(configuring(pool, broker, slots=2, call_seconds=0.1))
        await eventually(has_worked)
    assert LEAST // 2 < most <= relays * LEAST + 2


async def test_what_is_not_in_the_queue_obeys_the_table_at_once(
    pool: asyncpg.Pool, broker: BrokerSettings, amqp: AbstractChannel, sql: asyncpg.Connection
) -> None:
    ids = await accept(pool, *DEVICES[: LEAST + 10])
    begun: list[tuple[UUID, int]] = []

    async def all_others_have_begun() -> bool:
        begun.extend(await begin_calls(pool, amqp, broker))
        return len(begun) >= len(ids) - 2

    async with relaying(broker, pool):
        await eventually(lambda: holds(amqp, broker, LEAST))
        due = [id_ for id_ in ids if await states(sql, [id_]) == ["due"]]
        later, never = due[0], due[-1]
        await sql.execute("UPDATE task SET due_at = now() + interval '1 hour' WHERE id = $1", later)
        await sql.execute("UPDATE task SET deadline_at = now() WHERE id = $1", never)
        await eventually(all_others_have_begun)
    assert {id_ for id_, _ in begun} == {*ids} - {later, never}
    assert await states(sql, [later, never]) == ["due", "due"]


async def test_the_relay_looks_again_and_again_only_while_more_is_due_than_there_is_room_for(
    pool: asyncpg.Pool, broker: BrokerSettings, amqp: AbstractChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    async def count_look(connection: Queries, since: datetime | None) -> restraint.Look:
        nonlocal looks
        looks += 1
        return await look(connection, since)

    look = restraint.look
    monkeypatch.setattr(restraint, "look", count_look)
    await accept(pool, *DEVICES[: LEAST + 1])
    async with relaying(broker, pool, poll_seconds=NEVER) as running:
        await eventually(lambda: looks > 5)
        assert not running.wake._waiters
        await begin_calls(pool, amqp, broker)
        await eventually(lambda: holds(amqp, broker, 1))
        await eventually(lambda: running.wake._waiters, every=0.001)


@pytest.mark.parametrize("in_turn", [False, True])
async def test_a_queue_that_is_full_of_bulk_takes_single_tasks_all_the_same(
    pool: asyncpg.Pool, broker: BrokerSettings, amqp: AbstractChannel, in_turn: bool
) -> None:
    """Though nobody takes anything from it: but not any number, and of the bulk no more."""
    await accept(pool, *DEVICES[:100], wishes=Wishes(bulk=True), submitted_by="oss")
    async with relaying(broker, pool, in_turn=in_turn):
        await eventually(lambda: holds(amqp, broker, LEAST))
        singles = await accept(pool, *(f"SINGLE{number}" for number in range(EXTRA + 1)), submitted_by="other")
        await eventually(lambda: holds(amqp, broker, LEAST + EXTRA))
        published = [id_ for id_, _ in await attempts(amqp, broker)]
    assert set(published[LEAST : LEAST + EXTRA]) < set(singles)


@pytest.fixture
async def silent_a(sql: asyncpg.Connection) -> AsyncIterator[None]:
    """Service A answers nobody."""
    await sql.execute("UPDATE service_a SET silent_ends = 20, let_through_at = NULL")
    yield
    await sql.execute("UPDATE service_a SET silent_ends = 0, let_through_at = NULL")


@pytest.mark.usefixtures("silent_a")
async def test_service_a_is_spared_until_it_answers(
    pool: asyncpg.Pool, broker: BrokerSettings, amqp: AbstractChannel, sql: asyncpg.Connection
) -> None:
    await accept(pool, *DEVICES[:20])
    with capture_logs() as logs:
        async with relaying(broker, pool, sparing_seconds=NEVER), relaying(broker, pool, sparing_seconds=NEVER):
            await eventually(lambda: sum(entry["event"] == "service_a.spared" for entry in logs) == 2)
            await eventually(lambda: holds(amqp, broker, 1))
            assert metric("service_a_spared") == 1
            assert await under_way(sql) == 1, "of all relays one lets one through"
            await sql.execute("UPDATE service_a SET silent_ends = 0")
            await eventually(lambda: holds(amqp, broker, 20))
            await eventually(lambda: sum(entry["event"] == "service_a.answers" for entry in logs) == 2)
    assert metric("service_a_spared") == 0


@pytest.mark.usefixtures("silent_a")
async def test_while_it_is_spared_one_task_after_the_other_is_let_through(
    pool: asyncpg.Pool, broker: BrokerSettings, amqp: AbstractChannel
) -> None:
    await accept(pool, *DEVICES[:20])
    async with relaying(broker, pool, sparing_seconds=0.01):
        await eventually(lambda: holds(amqp, broker, 2))


async def test_one_client_does_not_wait_for_anothers_thousands(
    pool: asyncpg.Pool, broker: BrokerSettings, amqp: AbstractChannel
) -> None:
    bulk = await accept(pool, *(f"BULK{number:06}" for number in range(4000)), submitted_by="bulk")
    [single] = await accept(pool, "SINGLE1", submitted_by="single")
    async with relaying(broker, pool, in_turn=True):
        await eventually(lambda: holds(amqp, broker, LEAST))
        published = [id_ for id_, _ in await attempts(amqp, broker)]
    assert single in published[:LEAST]
    assert set(published) <= {single, *bulk}
