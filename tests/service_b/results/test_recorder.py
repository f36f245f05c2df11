"""The results process between a real broker and a real database: outcomes in, final statuses and retries out."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from aiohttp import web
from aiormq.abc import AbstractChannel
from structlog.testing import capture_logs
from yarl import URL

from messaging.messages import Outcome, OutcomeKind
from messaging.settings import BrokerSettings
from messaging.topology import dead_letter_queue
from service_b.database import DatabaseSettings
from service_b.results.app import create_app
from service_b.results.settings import Settings
from tests.conftest import DEADLINE_SECONDS, eventually
from tests.proxy import Proxy
from tests.queues import count_ready, declare, metric, send, take
from tests.tasks import accept, call_lease, claim, row, states

DEVICES = [f"DEVICE{number:02}" for number in range(40)]


@pytest.fixture(autouse=True)
async def queues(amqp: AbstractChannel, broker: BrokerSettings) -> None:
    await declare(amqp, broker)


@asynccontextmanager
async def recording(broker: BrokerSettings, database: DatabaseSettings, **changed: Any) -> AsyncIterator[None]:
    """The process's app, without its HTTP port."""
    settings = Settings(**broker.model_dump() | database.model_dump() | changed)
    # No stop waits for so long: without a database outcomes are given back.
    runner = web.AppRunner(create_app(settings, pause_seconds=0.05, stop_seconds=3600))
    await runner.setup()
    try:
        yield
    finally:
        await runner.cleanup()


async def running(pool: asyncpg.Pool, *devices: str) -> list[UUID]:
    """Accept a task for each device, and begin those that are due."""
    ids = await accept(pool, *devices)
    await claim(pool, 1000)
    return ids


def outcome(id_: UUID, kind: OutcomeKind = OutcomeKind.SUCCESS, *, attempt: int = 1, **more: Any) -> bytes:
    """What a configurator says of a call, under the lease that `running` has asked for."""
    lease = call_lease(id_, attempt)
    return Outcome.model_validate({"task_id": id_, "attempt": attempt, "lease": lease, "kind": kind} | more).encode()


async def ended(sql: asyncpg.Connection, ids: Sequence[UUID], *wanted: str) -> None:
    """Wait until the tasks are in these states; one given is for all."""

    async def reached() -> bool:
        return await states(sql, ids) == list(wanted if len(wanted) > 1 else wanted * len(ids))

    await eventually(reached)


async def left(amqp: AbstractChannel, broker: BrokerSettings, number: int) -> None:
    """After the process has stopped: the broker has back so many outcomes that were not acknowledged."""

    async def are_left() -> bool:
        return await count_ready(amqp, broker.configured_queue) == number

    await eventually(are_left)


async def test_each_kind_of_outcome_does_to_its_task_what_the_design_says(
    pool: asyncpg.Pool,
    broker: BrokerSettings,
    database: DatabaseSettings,
    amqp: AbstractChannel,
    sql: asyncpg.Connection,
) -> None:
    kinds = list(OutcomeKind)
    ids = await running(pool, *DEVICES[: len(kinds)])
    async with recording(broker, database):
        await send(amqp, broker, [outcome(id_, kind, hold_seconds=60) for id_, kind in zip(ids, kinds, strict=True)])
        await ended(sql, ids, "success", "error", "error", "error", "due", "due", "error", "due")
    codes = [(await row(sql, id_))["code"] for id_ in ids]
    assert codes == [200, 404, 500, 500, None, None, 500, None]
    again = [await row(sql, id_) for id_, code in zip(ids, codes, strict=True) if code is None]
    assert [(each["chances"], each["losts"]) for each in again] == [(None, 0), (2, 0), (None, 1)]
    await left(amqp, broker, 0)


async def test_what_is_handed_back_is_due_at_once_and_a_finished_device_goes_on_with_its_next_task(
    pool: asyncpg.Pool,
    broker: BrokerSettings,
    database: DatabaseSettings,
    amqp: AbstractChannel,
    sql: asyncpg.Connection,
) -> None:
    first, second, other = await running(pool, "DEVICE1", "DEVICE1", "DEVICE2")
    async with recording(broker, database):
        await send(amqp, broker, [outcome(first), outcome(other, OutcomeKind.UNAVAILABLE, retry_after_seconds=0)])
        await ended(sql, [first, second, other], "success", "due", "due")
    assert (await row(sql, other))["due_in"] <= 0


async def test_the_fifth_lost_call_of_a_task_ends_it_and_is_counted_so(
    pool: asyncpg.Pool,
    broker: BrokerSettings,
    database: DatabaseSettings,
    amqp: AbstractChannel,
    sql: asyncpg.Connection,
) -> None:
    fourth, fifth = await running(pool, "DEVICE1", "DEVICE2")
    await sql.execute("UPDATE task SET attempt = 5, losts = CASE id WHEN $1 THEN 3 ELSE 4 END", fourth)
    finished = metric("tasks_finished_total", code="500")
    async with recording(broker, database):
        await send(
            amqp,
            broker,
            [outcome(id_, OutcomeKind.LOST, attempt=5, lease=call_lease(id_, 1)) for id_ in (fourth, fifth)],
        )
        await ended(sql, [fourth, fifth], "due", "error")
        await eventually(lambda: metric("tasks_finished_total", code="500") == finished + 1)


async def test_what_ends_tell_of_service_a_is_noted(
    pool: asyncpg.Pool,
    broker: BrokerSettings,
    database: DatabaseSettings,
    amqp: AbstractChannel,
    sql: asyncpg.Connection,
) -> None:
    ids = await running(pool, *DEVICES[:5])
    async with recording(broker, database):
        await send(amqp, broker, [outcome(ids[0])])
        await eventually(lambda: noted(sql, 1, 0))
        await send(amqp, broker, [outcome(ids[1], OutcomeKind.UNKNOWN), outcome(uuid4(), OutcomeKind.UNKNOWN)])
        await eventually(lambda: noted(sql, 1, 1))
        await send(amqp, broker, [outcome(ids[2], OutcomeKind.LOST)])
        await send(amqp, broker, [outcome(ids[3], OutcomeKind.UNAVAILABLE, retry_after_seconds=0)])
        await send(amqp, broker, [outcome(ids[4], OutcomeKind.UNAVAILABLE)])
        await eventually(lambda: noted(sql, 1, 2))


async def noted(sql: asyncpg.Connection, answers: int, silent_ends: int) -> bool:
    return tuple(await sql.fetchrow("SELECT answers, silent_ends FROM service_a") or ()) == (answers, silent_ends)


async def test_late_repeated_and_unknown_outcomes_change_nothing_and_are_counted(
    pool: asyncpg.Pool,
    broker: BrokerSettings,
    database: DatabaseSettings,
    amqp: AbstractChannel,
    sql: asyncpg.Connection,
) -> None:
    ids = await running(pool, *DEVICES[:3])
    ignored = metric("outcomes_total", kind="ignored")
    finished = metric("tasks_finished_total", code="200")
    async with recording(broker, database):
        await send(amqp, broker, [outcome(ids[0], OutcomeKind.FAILED)])
        await ended(sql, ids, "error", "running", "running")
        await send(
            amqp,
            broker,
            [
                outcome(ids[0]),
                outcome(ids[1], OutcomeKind.FAILED, attempt=7),
                outcome(ids[1]),
                outcome(ids[1], OutcomeKind.UNKNOWN, hold_seconds=9),
                outcome(uuid4()),
                outcome(ids[2], OutcomeKind.FAILED, lease=uuid4()),
                outcome(ids[2]),
                outcome(ids[2], OutcomeKind.FAILED, lease=None),
            ],
        )
        await ended(sql, ids, "error", "success", "success")
        await eventually(lambda: metric("outcomes_total", kind="ignored") == ignored + 6)
    assert metric("tasks_finished_total", code="200") == finished + 2
    await left(amqp, broker, 0)


async def test_what_cannot_be_read_or_stored_goes_to_the_dead_letters_and_its_neighbours_are_recorded(
    pool: asyncpg.Pool,
    broker: BrokerSettings,
    database: DatabaseSettings,
    amqp: AbstractChannel,
    sql: asyncpg.Connection,
) -> None:
    ids = await running(pool, *DEVICES)
    bodies = [outcome(id_) for id_ in ids]
    bodies[7] = outcome(ids[7], reason="a NUL \x00")
    bodies[9:9] = [b"garbage", b'{"v":2}']
    dead = metric("amqp_dead_letters_total", queue=broker.configured_queue)
    async with recording(broker, database):
        await send(amqp, broker, bodies)
        await ended(sql, [*ids[:7], *ids[8:]], "success")
        await eventually(lambda: metric("amqp_dead_letters_total", queue=broker.configured_queue) == dead + 3)
    assert await states(sql, [ids[7]]) == ["running"], "the maintenance ends it"
    letters = await take(amqp, dead_letter_queue(broker.configured_queue))
    assert {message.body for message in letters} == {bodies[7], b"garbage", b'{"v":2}'}
    reasons = sorted(str((message.header.properties.headers or {})["x-reason"]) for message in letters)
    assert "refused: " in reasons[1] or "refused: " in reasons[2]
    await left(amqp, broker, 0)


async def test_an_outcome_whose_row_somebody_holds_waits_unacknowledged_and_no_other_does(
    pool: asyncpg.Pool,
    broker: BrokerSettings,
    database: DatabaseSettings,
    amqp: AbstractChannel,
    sql: asyncpg.Connection,
) -> None:
    held, *others = await running(pool, *DEVICES)
    async with recording(broker, database), pool.acquire() as somebody:
        async with somebody.transaction():
            await somebody.execute("SELECT FROM task WHERE id = $1 FOR UPDATE", held)
            with capture_logs() as logs:
                await send(amqp, broker, [outcome(id_) for id_ in (held, *others)])
                await ended(sql, others, "success")
                await eventually(lambda: sum(entry["event"] == "recorder.held" for entry in logs) >= 2)
            assert await states(sql, [held]) == ["running"]
        await ended(sql, [held], "success")
    await left(amqp, broker, 0)


async def test_a_stop_gives_back_the_outcome_whose_row_somebody_holds(
    pool: asyncpg.Pool,
    broker: BrokerSettings,
    database: DatabaseSettings,
    amqp: AbstractChannel,
    sql: asyncpg.Connection,
) -> None:
    held, other = await running(pool, *DEVICES[:2])
    async with pool.acquire() as somebody, somebody.transaction():
        await somebody.execute("SELECT FROM task WHERE id = $1 FOR UPDATE", held)
        async with recording(broker, database):
            await send(amqp, broker, [outcome(held), outcome(other)])
            await ended(sql, [other], "success")
        await left(amqp, broker, 1)


async def test_outcomes_wait_unacknowledged_for_a_database_that_is_away(
    pool: asyncpg.Pool,
    broker: BrokerSettings,
    database: DatabaseSettings,
    amqp: AbstractChannel,
    sql: asyncpg.Connection,
) -> None:
    assert database.database_url
    there = URL(database.database_url.get_secret_value())
    ids = await running(pool, *DEVICES)
    async with asyncio.timeout(DEADLINE_SECONDS), Proxy(there.host or "", there.port or 0) as proxy:
        by_proxy = there.with_host("127.0.0.1").with_port(proxy.url_port)
        with capture_logs() as logs:
            async with recording(broker, database, database_url=str(by_proxy)):
                recorded = metric("outcomes_total", kind="success")
                await send(amqp, broker, [outcome(ids[0])])
                await eventually(lambda: metric("outcomes_total", kind="success") == recorded + 1)
                await proxy.stop()
                await send(amqp, broker, [outcome(id_) for id_ in ids[1:]])
                await eventually(lambda: any(entry["event"] == "recorder.storage_unavailable" for entry in logs))
                assert set(await states(sql, ids[1:])) == {"running"}
    await left(amqp, broker, len(ids) - 1)
    async with recording(broker, database):
        await ended(sql, ids, "success")
    await left(amqp, broker, 0)


async def test_a_stop_records_what_was_taken(
    pool: asyncpg.Pool,
    broker: BrokerSettings,
    database: DatabaseSettings,
    amqp: AbstractChannel,
    sql: asyncpg.Connection,
) -> None:
    ids = await running(pool, *DEVICES)
    await send(amqp, broker, [outcome(id_) for id_ in ids])

    async def taken() -> bool:
        return await count_ready(amqp, broker.configured_queue) < len(ids)

    async with recording(broker, database):
        await eventually(taken)
    await left(amqp, broker, (await states(sql, ids)).count("running"))
