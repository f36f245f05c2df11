"""The relay between a real database and a real broker."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import aiormq
import asyncpg
import pytest
from aiormq.abc import AbstractChannel, DeliveredMessage
from pydantic import SecretStr
from structlog.testing import capture_logs

from messaging.channel import Channel
from messaging.frames import Letter
from messaging.messages import ConfigureTask
from messaging.publishing import Publication
from messaging.sealing.sealer import Sealer
from messaging.session import Session
from messaging.settings import BrokerSettings
from service_b import relay as relay_module
from service_b.database import DatabaseSettings, Queries, create_pool
from service_b.relay import EXTRA, POLL_SECONDS, SPARING_SECONDS, Relay
from service_b.room import LEAST
from service_b.tasks import claims, inserts, leases, restraint
from service_b.tasks.claims import Dispatch
from service_b.tasks.clock import Clock
from service_b.tasks.inserts import Wishes
from service_b.tasks.lanes import Lanes
from service_b.tasks.states import DISPATCHED
from service_b.wakeup import CHECK_SECONDS, listen
from tests.conftest import eventually
from tests.queues import count_ready, is_blocked, metric, patient, queue_exists, take
from tests.seals import make_keys
from tests.system.postgres import PostgreSQL
from tests.system.rabbitmq import RabbitMQ
from tests.tasks import accept, apply, call_lease, claim, finish, give_back, new_task, row, states, step_clock

DEVICES = [f"DEVICE{number}" for number in range(600)]


class Watch:
    """Counts claims that found nothing, so that a test knows when the relay has nothing left to do."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.idle = 0

    async def claim(self, connection: Queries, limit: int, lanes: Lanes, **others: Any) -> list[Dispatch]:
        claimed = await claims.claim(connection, limit, lanes, **others)
        self.idle += not claimed
        return claimed

    async def until_idle(self) -> None:
        """Return when the relay has looked twice more, and found nothing."""
        idle = self.idle
        await eventually(lambda: self.idle > idle)


NEVER = 3600.0
"""The timer never comes: what is relayed was announced."""


@dataclass
class Running:
    relay: Relay
    session: Session
    wake: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def relaying(
    settings: BrokerSettings,
    pool: asyncpg.Pool,
    *,
    poll_seconds: float = POLL_SECONDS,
    sparing_seconds: float = SPARING_SECONDS,
    internal: Clock | None = None,
    in_turn: bool = False,
) -> AsyncIterator[Running]:
    """A relay at work on a channel; at the end it must stop by itself, if it has a broker."""
    wake = asyncio.Event()
    internal = internal or Clock(settle_seconds=0)
    async with Session(settings, "relay") as session:
        relay = Relay(
            session,
            pool,
            settings,
            wake,
            internal,
            in_turn=in_turn,
            poll_seconds=poll_seconds,
            sparing_seconds=sparing_seconds,
        )
        running = asyncio.create_task(relay.run())
        try:
            await eventually(lambda: session.current)
            yield Running(relay, session, wake)
            relay.stop()
            if session.current:
                async with asyncio.timeout(60):
                    await running
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


@pytest.fixture
def database_url(emptied_database_url: str) -> str:
    return emptied_database_url


@pytest.fixture
def watch(pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch(pool)
    monkeypatch.setattr(relay_module, "claims", SimpleNamespace(**vars(claims) | {"claim": watch.claim}))
    return watch


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A broker to be stopped and told things; each test leaves it running."""
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as broker:
        yield broker


@asynccontextmanager
async def channel_to(settings: BrokerSettings) -> AsyncIterator[AbstractChannel]:
    connection = await aiormq.connect(patient(settings))
    yield await connection.channel()
    await connection.close()


async def attempts(channel: AbstractChannel, settings: BrokerSettings) -> list[tuple[UUID, int]]:
    """Take what was published: which attempts at which tasks."""
    bodies = [ConfigureTask.decode(message.body) for message in await take(channel, settings.to_configure_queue)]
    return [(message.task_id, message.attempt) for message in bodies]


async def begin_calls(pool: asyncpg.Pool, channel: AbstractChannel, settings: BrokerSettings) -> list[tuple[UUID, int]]:
    """Take what was published and ask for leases, as configurators with any number of slots do; return what began."""
    taken = await attempts(channel, settings)
    answers = await leases.grant(pool, [(id_, number, call_lease(id_, number)) for id_, number in taken])
    return [attempt for attempt, answer in zip(taken, answers, strict=True) if answer == "granted"]


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


async def _holds(channel: AbstractChannel, settings: BrokerSettings, messages: int) -> bool:
    return await count_ready(channel, settings.to_configure_queue) >= messages


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
        await eventually(lambda: _holds(amqp, broker, 1))
    assert await attempts(amqp, broker) == [(ids[0], 1)]


async def test_a_finish_in_another_process_wakes_the_relay(
    pool: asyncpg.Pool, watch: Watch, broker: BrokerSettings, amqp: AbstractChannel, database: DatabaseSettings
) -> None:
    ids = await accept(pool, "DEVICE1", "DEVICE1")
    [dispatch] = await claim(pool, 1)
    async with relaying(broker, pool, poll_seconds=NEVER) as running, _listening(database, running.wake):
        await eventually(lambda: watch.idle >= 2)  # Once by itself, once when the listener had begun.
        await apply(pool, finish(dispatch))
        await eventually(lambda: _holds(amqp, broker, 1))
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
        await eventually(lambda: _are(sql, ids, "dispatched"))


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
        await eventually(lambda: _holds(amqp, broker, 1))
        assert await begin_calls(pool, amqp, broker) == [(id_, 1)]
        await apply(pool, give_back(Dispatch(id_, 1, "DEVICE1", 1, 1, "{}"), hold_seconds=0.5))
        await eventually(lambda: _holds(amqp, broker, 1))
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
        await eventually(lambda: _holds(amqp, broker, 30))
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
        await eventually(lambda: _holds(amqp, broker, 1))
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
        await eventually(lambda: _holds(amqp, broker, 4))
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


async def _are(sql: asyncpg.Connection, ids: list[UUID], state: str) -> bool:
    return set(await states(sql, ids)) == {state}


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
        await eventually(lambda: _holds(amqp, broker, 1))
    published = await attempts(amqp, broker)
    dispatched = await sql.fetch("SELECT id, attempt FROM task WHERE attempt > 0")
    assert sorted(published) == sorted((found["id"], found["attempt"]) for found in dispatched)
    assert 0 < len(published) <= 3000


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
        await eventually(lambda: _holds(amqp, broker, 1))
        assert await attempts(amqp, broker) == [(id_, 1)]


async def test_with_the_broker_down_nothing_is_claimed_and_all_is_relayed_when_it_is_back(
    pool: asyncpg.Pool, node: RabbitMQ, sql: asyncpg.Connection
) -> None:
    settings = BrokerSettings(amqp_url=SecretStr(f"{node.url}?heartbeat=2"))
    async with relaying(settings, pool) as running:
        with capture_logs() as logs:
            await asyncio.to_thread(node.stop)
            ids = await accept(pool, *DEVICES[:30])
            running.wake.set()
            await eventually(lambda: sum(entry["event"] == "amqp.connect_failed" for entry in logs) >= 2)
        assert set(await states(sql, ids)) == {"due"}
        assert await sql.fetchval("SELECT max(attempt) FROM task") == 0
        ids += await accept(pool, "DEVICEX")
        await asyncio.to_thread(node.start)
        await eventually(lambda: running.session.current)
        async with channel_to(settings) as channel:
            await eventually(lambda: _holds(channel, settings, 31))
            assert Counter(await attempts(channel, settings)) == Counter((id_, 1) for id_ in ids)


async def test_what_the_broker_refuses_is_published_again(
    pool: asyncpg.Pool, watch: Watch, node: RabbitMQ, sql: asyncpg.Connection
) -> None:
    settings = BrokerSettings(
        amqp_url=SecretStr(f"{node.url}?heartbeat=2"),
        exchange="full",
        to_configure_queue="full",
        configured_queue="full_outcomes",
    )
    policy = '{"max-length": 1, "overflow": "reject-publish"}'
    await asyncio.to_thread(node.ctl, "set_policy", "full", "^full$", policy, "--apply-to", "queues")
    async with relaying(settings, pool), channel_to(settings) as channel:
        published: list[tuple[UUID, int]] = []
        refused = metric("tasks_dispatched_total", publication="refused")
        ids: list[UUID] = []

        async def is_refused() -> bool:
            # A full queue refuses a little late.
            ids.extend(await accept(pool, DEVICES[len(ids)]))
            await eventually(lambda: _are(sql, ids, "dispatched"))
            return metric("tasks_dispatched_total", publication="refused") > refused

        await eventually(is_refused)
        await asyncio.to_thread(node.ctl, "clear_policy", "full")

        async def all_have_begun() -> bool:
            published.extend(await begin_calls(pool, channel, settings))
            return set(await states(sql, ids)) == {"running"}

        await eventually(all_have_begun)
        await watch.until_idle()
    assert Counter(id_ for id_, _ in published) == Counter(ids), "each published once"
    assert max(attempt for _, attempt in published) > 1
    assert dict(published) == {id_: (await row(sql, id_))["attempt"] for id_ in ids}


async def test_a_broker_short_of_memory_is_given_nothing(
    pool: asyncpg.Pool, watch: Watch, node: RabbitMQ, sql: asyncpg.Connection
) -> None:
    settings = BrokerSettings(amqp_url=SecretStr(f"{node.url}?heartbeat=2"), to_configure_queue="blocked")
    async with relaying(settings, pool) as running, channel_to(settings) as channel:
        await eventually(lambda: watch.idle)
        current = await running.session.channel()
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0")
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
            await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.4")
        await eventually(lambda: _are(sql, ids, "dispatched"))
        await eventually(lambda: _holds(channel, settings, 2))
        assert await attempts(channel, settings) == [(id_, 1) for id_ in ids]


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


# --- Room and sparing


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
        await eventually(lambda: _holds(amqp, broker, LEAST))
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
        await eventually(lambda: _holds(amqp, broker, 1))
        await eventually(lambda: running.wake._waiters, every=0.001)


@pytest.mark.parametrize("in_turn", [False, True])
async def test_a_queue_that_is_full_of_bulk_takes_single_tasks_all_the_same(
    pool: asyncpg.Pool, broker: BrokerSettings, amqp: AbstractChannel, in_turn: bool
) -> None:
    """Though nobody takes anything from it: but not any number, and of the bulk no more."""
    await accept(pool, *DEVICES[:100], wishes=Wishes(bulk=True), submitted_by="oss")
    async with relaying(broker, pool, in_turn=in_turn):
        await eventually(lambda: _holds(amqp, broker, LEAST))
        singles = await accept(pool, *(f"SINGLE{number}" for number in range(EXTRA + 1)), submitted_by="other")
        await eventually(lambda: _holds(amqp, broker, LEAST + EXTRA))
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
            await eventually(lambda: _holds(amqp, broker, 1))
            assert metric("service_a_spared") == 1
            assert await under_way(sql) == 1, "of all relays one lets one through"
            await sql.execute("UPDATE service_a SET silent_ends = 0")
            await eventually(lambda: _holds(amqp, broker, 20))
            await eventually(lambda: sum(entry["event"] == "service_a.answers" for entry in logs) == 2)
    assert metric("service_a_spared") == 0


@pytest.mark.usefixtures("silent_a")
async def test_while_it_is_spared_one_task_after_the_other_is_let_through(
    pool: asyncpg.Pool, broker: BrokerSettings, amqp: AbstractChannel
) -> None:
    await accept(pool, *DEVICES[:20])
    async with relaying(broker, pool, sparing_seconds=0.01):
        await eventually(lambda: _holds(amqp, broker, 2))


async def test_one_client_does_not_wait_for_anothers_thousands(
    pool: asyncpg.Pool, broker: BrokerSettings, amqp: AbstractChannel
) -> None:
    bulk = await accept(pool, *(f"BULK{number:06}" for number in range(4000)), submitted_by="bulk")
    [single] = await accept(pool, "SINGLE1", submitted_by="single")
    async with relaying(broker, pool, in_turn=True):
        await eventually(lambda: _holds(amqp, broker, LEAST))
        published = [id_ for id_, _ in await attempts(amqp, broker)]
    assert single in published[:LEAST]
    assert set(published) <= {single, *bulk}
