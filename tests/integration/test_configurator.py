"""The configurator between a real broker and a fake A: what it makes of each answer, and how often it calls."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import aiormq
import pytest
from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request, StreamResponse
from aiormq.abc import AbstractChannel
from pamqp.commands import Basic
from pytest_aiohttp.plugin import AiohttpClient
from uuid_utils.compat import uuid7

from configurator.app import create_app
from configurator.settings import Settings
from messaging.messages import ConfigureTask, Outcome, OutcomeKind
from messaging.settings import BrokerSettings
from messaging.topology import dead_letter_queue, declare
from tests.conftest import eventually
from tests.fake_a import Behaviour, FakeA, answer, reset, silence
from tests.system.spawning import free_port

Client = TestClient[Request, Application]
PARAMETERS = {"username": "admin", "password": "secret", "vlan": 5, "interfaces": [1], "ssid": {"deep": [1.5, None]}}


class Bench:
    """One configurator, its queues, and its service A."""

    def __init__(self, broker: BrokerSettings, amqp: AbstractChannel, fake_a: FakeA, start: AiohttpClient) -> None:
        self.broker = broker
        self.amqp = amqp
        self.fake_a = fake_a
        self._start = start

    async def start(self, **settings: Any) -> Client:
        """Start the configurator and wait until it is ready."""
        own = {"service_a_url": self.fake_a.url, "concurrency": 10} | settings
        client = await self._start(create_app(Settings(**(self.broker.model_dump() | own))))

        async def subscribed() -> bool:
            declared = await self.amqp.queue_declare(self.broker.to_configure_queue, passive=True)
            return bool(declared.consumer_count)

        await eventually(lambda: ready(client))
        if self.fake_a.port:
            await eventually(subscribed)
        return client

    async def put(self, serial: str = "ABC1234", *, limit: float = 5, attempt: int = 1) -> ConfigureTask:
        """Put a task into `to_configure`."""
        task = ConfigureTask(
            task_id=uuid7(),
            attempt=attempt,
            equipment_id=serial,
            timeout_in_seconds=1,
            time_limit_seconds=limit,
            parameters=PARAMETERS,
        )
        await self.publish(task.encode())
        return task

    async def publish(self, body: bytes) -> None:
        """Put anything into `to_configure`."""
        await self.amqp.basic_publish(
            body, routing_key=self.broker.to_configure_queue, properties=Basic.Properties(delivery_mode=2)
        )

    async def outcome(self, timeout: float = 90) -> Outcome:
        """Take the next outcome."""
        taken: list[bytes] = []

        async def arrived() -> bool:
            message = await self.amqp.basic_get(self.broker.configured_queue, no_ack=True)
            if isinstance(message.delivery, Basic.GetOk):
                taken.append(message.body)
            return bool(taken)

        await eventually(arrived, timeout)
        return Outcome.decode(taken[0])

    async def outcomes(self, count: int) -> list[Outcome]:
        """Take so many outcomes."""
        return [await self.outcome() for _ in range(count)]

    async def count(self, queue: str) -> int:
        """Count a queue's messages that nobody has taken."""
        return (await self.amqp.queue_declare(queue, passive=True)).message_count or 0


async def ready(client: Client) -> bool:
    return (await client.get("/health/ready")).status == 200


@pytest.fixture
async def bench(broker: BrokerSettings, amqp: AbstractChannel, fake_a: FakeA, aiohttp_client: AiohttpClient) -> Bench:
    return Bench(broker, amqp, fake_a, aiohttp_client)


SOON = format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True)

ANSWERS: list[tuple[str, Behaviour, OutcomeKind, str]] = [
    ("200", answer(200), OutcomeKind.SUCCESS, "as told"),
    ("404", answer(404), OutcomeKind.NOT_FOUND, "as told"),
    ("500", answer(500), OutcomeKind.FAILED, "as told"),
    ("400", answer(400), OutcomeKind.REJECTED, "as told"),
    ("422", answer(422), OutcomeKind.REJECTED, "as told"),
    ("429", answer(429), OutcomeKind.UNAVAILABLE, "429"),
    ("503", answer(503, "busy", headers={"Retry-After": "7"}), OutcomeKind.UNAVAILABLE, "503"),
    ("502", answer(502, "<html>"), OutcomeKind.UNKNOWN, "502"),
    ("504", answer(504, "<html>"), OutcomeKind.UNKNOWN, "504"),
    ("garbage", answer(200, "garbage"), OutcomeKind.UNKNOWN, "200"),
    ("another code", answer(200, '{"code":404}'), OutcomeKind.UNKNOWN, "200"),
    ("a proxy's 404", answer(404, "<html>"), OutcomeKind.UNKNOWN, "404"),
    ("a redirect", answer(302, headers={"Location": "/elsewhere"}), OutcomeKind.UNKNOWN, "302"),
    ("too long", answer(200, " " * 70_000 + '{"code":200}'), OutcomeKind.UNKNOWN, "200"),
    ("reset", reset(), OutcomeKind.UNKNOWN, "no answer"),
    ("silence", silence(), OutcomeKind.UNKNOWN, "time limit"),
]


@pytest.mark.parametrize(("behaviour", "kind", "reason"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS])
async def test_what_an_answer_means(bench: Bench, behaviour: Behaviour, kind: OutcomeKind, reason: str) -> None:
    await bench.start()
    bench.fake_a.script["ABC1234"].append(behaviour)
    task = await bench.put(limit=0.5)
    outcome = await bench.outcome()
    assert (outcome.task_id, outcome.attempt, outcome.kind) == (task.task_id, 1, kind)
    assert reason in outcome.reason
    assert outcome.hold_seconds <= 0.5
    if kind is not OutcomeKind.UNKNOWN:
        assert outcome.hold_seconds == 0
    assert outcome.retry_after_seconds == (7 if "503" in reason else None)
    assert len(bench.fake_a.ledger) == 1


async def test_a_lost_connection_leaves_the_device_alone_until_the_limit(bench: Bench) -> None:
    await bench.start()
    bench.fake_a.script["ABC1234"].append(reset())
    await bench.put(limit=1000)
    assert 900 < (await bench.outcome()).hold_seconds <= 1000


async def test_retry_after_may_be_a_date(bench: Bench) -> None:
    await bench.start()
    bench.fake_a.script["ABC1234"].append(answer(503, headers={"Retry-After": SOON}))
    await bench.put()
    assert 80_000 < ((await bench.outcome()).retry_after_seconds or 0) <= 86_400


async def test_a_is_asked_as_the_contract_says(bench: Bench) -> None:
    await bench.start()
    task = await bench.put(attempt=3)
    await bench.outcome()
    (work,) = bench.fake_a.ledger
    assert (work.equipment_id, work.task_id, work.attempt) == ("ABC1234", str(task.task_id), 3)
    assert work.body == {"timeoutInSeconds": 1, "parameters": PARAMETERS}


async def test_garbage_instead_of_http(bench: Bench) -> None:
    async def garble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\x00garbage\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(garble, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await bench.start(service_a_url=f"http://127.0.0.1:{port}")
        await bench.put()
        assert (await bench.outcome()).kind is OutcomeKind.UNKNOWN


async def test_no_more_calls_than_consumers(bench: Bench) -> None:
    go_on = asyncio.Event()

    async def wait(fake: FakeA, request: Request) -> StreamResponse:
        await go_on.wait()
        return await answer()(fake, request)

    bench.fake_a.default = wait
    await bench.start(concurrency=50)
    for number in range(70):
        await bench.put(f"DEVICE{number}", limit=100)

    async def full() -> bool:
        return len(bench.fake_a.ledger) == 50 and await bench.count(bench.broker.to_configure_queue) == 20

    await eventually(full)
    go_on.set()
    assert {outcome.kind for outcome in await bench.outcomes(70)} == {OutcomeKind.SUCCESS}
    assert len(bench.fake_a.ledger) == 70


async def test_a_redelivered_task_is_not_called_blindly(bench: Bench) -> None:
    await declare(bench.amqp, bench.broker)
    task = await bench.put()
    # Somebody takes the task and goes away: did he begin the call?
    connection = await aiormq.connect(bench.broker.nodes[0])
    taken = asyncio.Event()

    async def take(_: object) -> None:
        taken.set()

    await (await connection.channel()).basic_consume(bench.broker.to_configure_queue, take)
    await taken.wait()
    await connection.close()
    await bench.start()
    outcome = await bench.outcome()
    assert (outcome.kind, outcome.task_id) == (OutcomeKind.INTERRUPTED, task.task_id)
    assert outcome.hold_seconds == 5 + bench.broker.lateness_seconds
    assert bench.fake_a.ledger == []


async def test_a_duplicate_of_a_running_task_joins_its_call(bench: Bench) -> None:
    bench.fake_a.delay = 0.5
    await bench.start()
    task = await bench.put()
    await eventually(lambda: bench.fake_a.ledger)
    await bench.publish(task.encode())
    assert (await bench.outcome()).kind is OutcomeKind.SUCCESS
    later = await bench.put("OTHER123")
    assert (await bench.outcome()).task_id == later.task_id
    assert len(bench.fake_a.ledger) == 2


async def test_no_work_is_taken_while_a_cannot_be_reached(bench: Bench) -> None:
    client = await bench.start()
    await bench.fake_a.stop()
    await bench.put()
    outcome = await bench.outcome()
    assert (outcome.kind, outcome.retry_after_seconds) == (OutcomeKind.UNAVAILABLE, None)

    async def paused() -> bool:
        declared = await bench.amqp.queue_declare(bench.broker.to_configure_queue, passive=True)
        return declared.consumer_count == 0

    await eventually(paused)
    answer_ = await client.get("/health/ready")
    assert (answer_.status, (await answer_.json())["missing"]) == (503, ["service A: cannot be reached"])
    task = await bench.put()
    assert await bench.count(bench.broker.to_configure_queue) == 1
    await bench.fake_a.start()
    outcome = await bench.outcome()
    assert (outcome.kind, outcome.task_id) == (OutcomeKind.SUCCESS, task.task_id)
    assert await ready(client)


async def test_one_devices_503_pauses_nobody(bench: Bench) -> None:
    client = await bench.start()
    bench.fake_a.script["BUSY1234"].append(answer(503))
    await bench.put("BUSY1234")
    assert (await bench.outcome()).kind is OutcomeKind.UNAVAILABLE
    assert await ready(client)
    await bench.put()
    assert (await bench.outcome()).kind is OutcomeKind.SUCCESS


@pytest.fixture
def gate(bench: Bench) -> asyncio.Event:
    """A answers only when this is set."""
    event = asyncio.Event()

    async def wait(fake: FakeA, request: Request) -> StreamResponse:
        await event.wait()
        return await answer()(fake, request)

    bench.fake_a.default = wait
    return event


async def test_a_clean_stop_finishes_what_has_begun(
    bench: Bench, gate: asyncio.Event, capsys: pytest.CaptureFixture[str]
) -> None:
    client = await bench.start()
    for number in range(10):
        await bench.put(f"DEVICE{number}", limit=100)
    await eventually(lambda: len(bench.fake_a.ledger) == 10)
    stopping = asyncio.create_task(client.close())
    await eventually(lambda: "configurator.draining" in capsys.readouterr().out)
    await bench.put("LATER123")
    gate.set()
    await stopping
    kinds = [outcome.kind for outcome in await bench.outcomes(10)]
    assert kinds == [OutcomeKind.SUCCESS] * 10
    assert await bench.count(bench.broker.to_configure_queue) == 1, "the late task waits for another process"
    assert {work.equipment_id for work in bench.fake_a.ledger} == {f"DEVICE{number}" for number in range(10)}


async def test_a_stop_that_takes_too_long_gives_up_and_the_broker_has_the_task(
    bench: Bench, gate: asyncio.Event
) -> None:
    client = await bench.start(shutdown_grace_seconds=0.2)
    await bench.put(limit=100)
    await eventually(lambda: bench.fake_a.ledger)
    await client.close()

    async def returned() -> bool:
        return await bench.count(bench.broker.to_configure_queue) == 1

    await eventually(returned)
    assert not gate.is_set()


@pytest.mark.parametrize("body", [b"\xffgarbage", b'{"v":2,"task_id":"x"}', b"{}", b""])
async def test_what_cannot_be_read_is_dead_lettered_and_the_next_is_served(bench: Bench, body: bytes) -> None:
    await bench.start()
    await bench.publish(body)
    await bench.put()
    assert (await bench.outcome()).kind is OutcomeKind.SUCCESS
    dead = dead_letter_queue(bench.broker.to_configure_queue)

    async def dead_lettered() -> bool:
        return await bench.count(dead) == 1

    await eventually(dead_lettered)
    message = await bench.amqp.basic_get(dead, no_ack=True)
    assert message.body == body
    assert (message.header.properties.headers or {})["x-reason"]


async def test_an_outcome_survives_the_deletion_of_its_queue(bench: Bench, gate: asyncio.Event) -> None:
    await bench.start()
    task = await bench.put(limit=100)
    await eventually(lambda: bench.fake_a.ledger)
    await bench.amqp.queue_delete(bench.broker.configured_queue)
    gate.set()

    async def declared_again() -> bool:
        try:
            channel = await bench.amqp.connection.channel()
            return bool((await channel.queue_declare(bench.broker.configured_queue, passive=True)).message_count)
        except Exception:  # noqa: BLE001 - not there yet; `eventually` has the deadline.
            return False

    await eventually(declared_again)
    assert (await bench.outcome()).task_id == task.task_id


async def test_a_port_where_nobody_listens_is_unavailable(bench: Bench) -> None:
    bench.fake_a.port = 0
    await bench.start(service_a_url=f"http://127.0.0.1:{free_port()}")
    await bench.put()
    assert (await bench.outcome()).kind is OutcomeKind.UNAVAILABLE
