"""What the relay publishes, and when: between a real database and a real broker."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from aiormq.abc import AbstractChannel
from structlog.testing import capture_logs

from messaging.channel import Channel
from messaging.frames import Letter
from messaging.publishing import Publication
from messaging.sealing.sealer import Sealer
from messaging.settings import BrokerSettings
from service_b.database import DatabaseSettings
from service_b.tasks import inserts
from service_b.tasks.claims import Dispatch
from service_b.tasks.inserts import Wishes
from service_b.wakeup import CHECK_SECONDS, listen
from tests.conftest import eventually
from tests.queues import metric, queue_exists, take
from tests.seals import make_keys
from tests.service_b.relay.relays import DEVICES, NEVER, Watch, are, attempts, begin_calls, holds, relaying
from tests.tasks import accept, apply, claim, finish, give_back, new_task, states


async def test_a_task_is_published_as_it_was_accepted(
    pool: asyncpg.Pool, watch: Watch, broker: BrokerSettings, amqp: AbstractChannel, sql: asyncpg.Connection
) -> None:
    parameters = {
        "username": "\u00e9",
        "password": "\U0001f511",
        "vlan": 534,
        "interfaces": [1, 2],
        "x": {"y": [1.5, None]},
    }
    task = new_task("DEVICE1", timeout_seconds=14, parameters=json.dumps(parameters))
    published = metric("tasks_dispatched_total", publication="confirmed")
    await inserts.insert(pool, [task], grace_seconds=75, deadline_seconds=60)
    async with relaying(broker, pool):
        await watch.until_idle()
    [message] = await take(amqp, broker.to_configure_queue)
    assert json.loads(message.body) == {
        "v": 2,
        "task_id": str(task.id),
        "attempt": 1,
        "equipment_id": "DEVICE1",
        "timeout_in_seconds": 14,
        "time_limit_seconds": 89,
        "parameters": json.dumps(parameters),
    }
    properties = message.header.properties
    assert (properties.message_id, properties.delivery_mode) == (f"{task.id}:1", 2)
    assert properties.content_type == "application/json"
    assert await states(sql, [task.id]) == ["dispatched"]
    assert metric("tasks_dispatched_total", publication="confirmed") == published + 1


async def test_a_reader_that_cannot_open_sealed_parameters_refuses_their_message(
    pool: asyncpg.Pool, watch: Watch, broker: BrokerSettings, amqp: AbstractChannel, tmp_path: Path
) -> None:
    """Else a configurator of before would hand them to service A, during an upgrade."""
    task = new_task("DEVICE1")
    sealed = Sealer(make_keys(tmp_path).public).seal("{}", task.id, "DEVICE1")
    again = new_task("DEVICE2", parameters=sealed, wishes=Wishes(sealed_for=task.id))
    await inserts.insert(pool, [replace(task, parameters=sealed), again], grace_seconds=75, deadline_seconds=60)
    async with relaying(broker, pool):
        await watch.until_idle()
    told = [json.loads(message.body) for message in await take(amqp, broker.to_configure_queue)]
    first, second = sorted(told, key=lambda fields: str(fields["equipment_id"]))
    assert (first["v"], first["parameters"], first.get("sealed_for")) == (3, sealed, None)
    assert (second["v"], second["parameters"], second["sealed_for"]) == (4, sealed, str(task.id))


async def test_of_many_relays_one_publishes_each_attempt(
    pool: asyncpg.Pool, broker: BrokerSettings, amqp: AbstractChannel
) -> None:
    begun: list[tuple[UUID, int]] = []

    async def all_have_begun() -> bool:
        begun.extend(await begin_calls(pool, amqp, broker))
        return len(begun) >= 600

    async with relaying(broker, pool) as first, relaying(broker, pool) as second:
        chunks = [await accept(pool, *DEVICES[start : start + 50]) for start in range(0, 600, 50)]
        for running in (first, second):
            running.wake.set()
        await eventually(all_have_begun)
    assert Counter(begun) == Counter((id_, 1) for chunk in chunks for id_ in chunk)
    assert await attempts(amqp, broker) == []


async def test_only_the_first_task_of_a_device_is_published(
    pool: asyncpg.Pool, watch: Watch, broker: BrokerSettings, amqp: AbstractChannel, sql: asyncpg.Connection
) -> None:
    ids = await accept(pool, "DEVICE1", "DEVICE1", "DEVICE2")
    async with relaying(broker, pool):
        await watch.until_idle()
        assert await begin_calls(pool, amqp, broker) == [(ids[0], 1), (ids[2], 1)]
        await apply(pool, finish(Dispatch(ids[0], 1, "DEVICE1", 1, 1, "{}")))
        await watch.until_idle()
        assert await attempts(amqp, broker) == [(ids[1], 1)]


async def test_an_insert_wakes_the_relay(
    pool: asyncpg.Pool, watch: Watch, broker: BrokerSettings, amqp: AbstractChannel
) -> None:
    async with relaying(broker, pool, poll_seconds=NEVER) as running:
        await eventually(lambda: watch.idle)
        ids = await accept(pool, "DEVICE1")
        running.wake.set()
        await eventually(lambda: holds(amqp, broker, 1))
    assert await attempts(amqp, broker) == [(ids[0], 1)]


async def test_a_finish_in_another_process_wakes_the_relay(
    pool: asyncpg.Pool, watch: Watch, broker: BrokerSettings, amqp: AbstractChannel, database: DatabaseSettings
) -> None:
    ids = await accept(pool, "DEVICE1", "DEVICE1")
    [dispatch] = await claim(pool, 1)
    async with relaying(broker, pool, poll_seconds=NEVER) as running, _listening(database, running.wake):
        await eventually(lambda: watch.idle >= 2)  # Once by itself, once when the listener had begun.
        await apply(pool, finish(dispatch))
        await eventually(lambda: holds(amqp, broker, 1))
    assert await attempts(amqp, broker) == [(ids[1], 1)]


async def test_a_listener_whose_connection_dies_listens_again(
    watch: Watch,
    broker: BrokerSettings,
    database: DatabaseSettings,
    sql: asyncpg.Connection,
) -> None:
    pool = watch.pool
    async with (
        relaying(broker, pool, poll_seconds=NEVER) as running,
        _listening(database, running.wake, check_seconds=0.1),
    ):
        await eventually(lambda: watch.idle >= 2)
        ended = await sql.fetchval(
            """
            SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
              AND (query LIKE 'LISTEN%' OR query = 'SELECT 1')
            """
        )
        assert ended == 1
        ids = await accept(pool, "DEVICE1")  # Heard of only when the new listener wakes the relay as it begins.
        await eventually(lambda: are(sql, ids, "dispatched"))


@asynccontextmanager
async def _listening(
    database: DatabaseSettings, wake: asyncio.Event, check_seconds: float = CHECK_SECONDS
) -> AsyncIterator[None]:
    listening = asyncio.create_task(listen(database, wake, lambda _: None, check_seconds=check_seconds))
    try:
        yield
    finally:
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening


async def test_the_timer_finds_what_nobody_announced(
    pool: asyncpg.Pool, watch: Watch, broker: BrokerSettings, amqp: AbstractChannel, sql: asyncpg.Connection
) -> None:
    async with relaying(broker, pool):
        await eventually(lambda: watch.idle)
        [id_] = await accept(pool, "DEVICE1")
        await eventually(lambda: holds(amqp, broker, 1))
        assert await begin_calls(pool, amqp, broker) == [(id_, 1)]
        await apply(pool, give_back(Dispatch(id_, 1, "DEVICE1", 1, 1, "{}"), hold_seconds=0.5))
        await eventually(lambda: holds(amqp, broker, 1))
    assert await attempts(amqp, broker) == [(id_, 2)]


async def test_a_returned_message_brings_its_queue_back_and_is_published_again(
    pool: asyncpg.Pool, watch: Watch, broker: BrokerSettings, amqp: AbstractChannel, sql: asyncpg.Connection
) -> None:
    returned = metric("tasks_dispatched_total", publication="returned")
    async with relaying(broker, pool) as running:
        await amqp.queue_delete(broker.to_configure_queue)
        ids = await accept(pool, *DEVICES[:30])
        running.wake.set()
        await eventually(lambda: queue_exists(broker, broker.to_configure_queue))
        await eventually(lambda: holds(amqp, broker, 30))
        await watch.until_idle()
    assert Counter(await attempts(amqp, broker)) == Counter((id_, 2) for id_ in ids)
    assert metric("tasks_dispatched_total", publication="returned") == returned + 30


async def test_what_was_refused_is_due_again_at_once_unless_somebody_holds_its_row(
    watch: Watch,
    broker: BrokerSettings,
    amqp: AbstractChannel,
    sql: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish, somebody = Channel.publish, sql.transaction()

    async def refuse(_: Channel, routing_key: str, letters: Sequence[Letter]) -> list[Publication]:
        monkeypatch.setattr(Channel, "publish", publish)
        await somebody.start()
        await sql.execute("SELECT FROM task WHERE id = $1 FOR UPDATE", held)
        return [Publication.RETURNED] * len(letters)

    held, other = await accept(watch.pool, "DEVICE1", "DEVICE2")
    monkeypatch.setattr(Channel, "publish", refuse)
    async with relaying(broker, watch.pool):
        await eventually(lambda: holds(amqp, broker, 1))
        await watch.until_idle()
    await somebody.rollback()
    assert await attempts(amqp, broker) == [(other, 2)]
    assert await states(sql, [held]) == ["dispatched"], "the maintenance finds it"


async def test_what_may_have_reached_the_broker_is_published_again_at_once_and_called_once(
    watch: Watch,
    broker: BrokerSettings,
    amqp: AbstractChannel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish = Channel.publish

    async def uncertain(channel: Channel, routing_key: str, letters: Sequence[Letter]) -> list[Publication]:
        monkeypatch.setattr(Channel, "publish", publish)
        await publish(channel, routing_key, letters)
        return [Publication.UNCERTAIN] * len(letters)

    ids = await accept(watch.pool, "DEVICE1", "DEVICE2")
    monkeypatch.setattr(Channel, "publish", uncertain)
    async with relaying(broker, watch.pool):
        await eventually(lambda: holds(amqp, broker, 4))
        await watch.until_idle()
    assert await begin_calls(watch.pool, amqp, broker) == [(id_, 2) for id_ in ids]


async def test_an_uncertain_publish_whose_call_has_begun_is_not_repeated(
    watch: Watch,
    broker: BrokerSettings,
    amqp: AbstractChannel,
    sql: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish = Channel.publish

    async def uncertain(channel: Channel, routing_key: str, letters: Sequence[Letter]) -> list[Publication]:
        monkeypatch.setattr(Channel, "publish", publish)
        await publish(channel, routing_key, letters)
        assert await begin_calls(watch.pool, amqp, broker) == [(begun, 1)]
        return [Publication.UNCERTAIN]

    [begun] = await accept(watch.pool, "DEVICE1")
    monkeypatch.setattr(Channel, "publish", uncertain)
    async with relaying(broker, watch.pool):
        await watch.until_idle()
    assert await states(sql, [begun]) == ["running"]
    assert await attempts(amqp, broker) == []


async def test_a_row_that_cannot_be_encoded_does_not_spoil_its_batch(
    pool: asyncpg.Pool, watch: Watch, broker: BrokerSettings, amqp: AbstractChannel, sql: asyncpg.Connection
) -> None:
    bad = new_task("DEVICE0", parameters='{"x":' + "[" * 400 + "]" * 400 + "}")
    good = [new_task(device) for device in DEVICES[1:20]]
    await inserts.insert(pool, [bad, *good], grace_seconds=0, deadline_seconds=60)
    with capture_logs() as logs:
        async with relaying(broker, pool):
            await watch.until_idle()
    assert Counter(await attempts(amqp, broker)) == Counter((task.id, 1) for task in good)
    assert await states(sql, [bad.id]) == ["dispatched"], "it ends at its deadline"
    assert [entry["task_id"] for entry in logs if entry["event"] == "relay.unencodable"] == [str(bad.id)]


async def test_a_relay_that_stops_publishes_what_it_has_claimed_and_claims_nothing_more(
    pool: asyncpg.Pool, broker: BrokerSettings, amqp: AbstractChannel, sql: asyncpg.Connection
) -> None:
    devices = [f"DEVICE{number}" for number in range(3000)]
    await accept(pool, *devices)
    async with relaying(broker, pool):
        await eventually(lambda: holds(amqp, broker, 1))
    published = await attempts(amqp, broker)
    dispatched = await sql.fetch("SELECT id, attempt FROM task WHERE attempt > 0")
    assert sorted(published) == sorted((found["id"], found["attempt"]) for found in dispatched)
    assert 0 < len(published) <= 3000
