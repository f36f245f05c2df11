"""How soon everything goes on after a fault, and what a fault of one costs the others: settings as in production.

The limits of calls are short; all else, heartbeats too, is what an operator has who sets nothing.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count

import aiormq
import pytest
from aiohttp import web

from messaging.settings import HEARTBEAT_SECONDS
from tests.conftest import eventually
from tests.e2e.conftest import (
    BODY,
    GRACE_SECONDS,
    Errors,
    Fleet,
    Stage,
    held,
    in_thread,
    raise_error,
    serials,
)
from tests.fake_a import FakeA, answer, reset
from tests.queues import count_ready, declare, patient
from tests.system.processes import Process
from tests.system.rabbitmq import RabbitMQ

LIMIT_SECONDS = int(str(BODY["timeoutInSeconds"])) + GRACE_SECONDS
"""How long one call may take."""
BETWEEN_POSTS_SECONDS = 0.05
DELETIONS = int(os.environ.get("DELETIONS", "4"))
"""So often a queue is deleted; ten times take a minute longer."""
AT_ONCE = 3
"""Of the scenarios: each has some five processes, and a bound for how soon it is over."""


@asynccontextmanager
async def posting(fleet: Fleet, web_process: Process, clients: int = 4) -> AsyncIterator[list[str]]:
    """Let clients POST one task after the other, each for a new device; yields the paths as they are accepted."""
    paths: list[str] = []
    stop = asyncio.Event()

    async def post(client: int) -> None:
        for number in count():
            if stop.is_set():
                return
            paths.append(await fleet.submit_one(web_process, f"CLIENT{client}X{number:05}"))
            await asyncio.sleep(BETWEEN_POSTS_SECONDS)

    async with asyncio.TaskGroup() as group:
        for client in range(clients):
            group.create_task(post(client))
        try:
            yield paths
        finally:
            stop.set()


async def kill_the_broker(fleet: Fleet, rabbitmq: RabbitMQ) -> None:
    """Killed amid publishes, calls and outcomes: half a minute after its return everything has ended."""
    fake = fleet.fake_a
    fake.delay = 1
    # A shares the loop with a thousand clients: when the machine is busy it begins a call only seconds later.
    fleet.environment["SERVICE_A_GRACE_SECONDS"] = "19"
    web_process, *_ = await fleet.start("service_b", "service_b.results", "configurator")
    before = await fleet.submit(web_process, serials(100, "BEFORE"))
    await fleet.calls(100)
    for queue in (fleet.queues.to_configure_queue, fleet.queues.configured_queue):
        await eventually(partial(rabbitmq.has_written, queue))
    async with posting(fleet, web_process) as during:
        burst = asyncio.create_task(fleet.submit(web_process, serials(1000, "BURST")))
        await eventually(partial(fleet.sql.fetchval, "SELECT count(*) > 300 FROM task WHERE attempt > 0"))
        await in_thread(rabbitmq.kill)
        accepted = len(during)
        await eventually(lambda: len(during) > accepted + 100)
        await in_thread(rabbitmq.start)
    paths = [*before, *await burst, *during]
    assert await fleet.codes(web_process, paths, 30 + fake.delay) == [200] * len(paths)
    assert fake.overlapping() == []


async def kill_a_configurator(fleet: Fleet) -> None:
    """What it was calling for is called for again by another one, once A has surely let go."""
    fake, killed = fleet.fake_a, asyncio.Event()
    fake.default = held(killed)
    fleet.environment["SERVICE_A_GRACE_SECONDS"] = "14"  # A busy machine must not make time-outs of the others' calls.
    web_process, _, doomed, _ = await fleet.start(
        "service_b", "service_b.results", "configurator", "configurator", CONCURRENCY="100"
    )
    paths = await fleet.submit(web_process, serials(200))
    await fleet.calls(200)
    await in_thread(doomed.kill)
    killed.set()
    assert await fleet.codes(web_process, paths, 15 + 15) == [200] * 200
    assert len(fake.ledger) >= 300, "each of the 100 calls that it had in flight is made once more"
    assert fake.overlapping() == []


async def delete_a_queue(fleet: Fleet, name: str) -> None:
    """Deleted and declared again, with readers at it and messages in it, time after time."""
    fake = fleet.fake_a
    fake.delay = 0.2
    web_process, *_ = await fleet.start(
        "service_b", "service_b.results", "service_b.results", "configurator", "configurator"
    )
    connection = await aiormq.connect(patient(fleet.queues))
    channel = await connection.channel()
    async with posting(fleet, web_process) as paths:
        for _ in range(DELETIONS):
            accepted = len(paths)
            await eventually(lambda: len(paths) > accepted + 50)  # noqa: B023 - awaited right here
            await channel.queue_delete(getattr(fleet.queues, name))
            await declare(channel, fleet.queues)
            accepted = len(paths)
            await eventually(lambda: len(paths) > accepted)  # noqa: B023
            # The next end is not one that was under way when the queue went.
            assert await fleet.codes(web_process, paths[-1:], 20) == [200]
    await connection.close()
    assert await fleet.codes(web_process, paths, LIMIT_SECONDS + 20) == [200] * len(paths)
    assert fake.overlapping() == []


async def answer_bad_gateway(fleet: Fleet) -> None:
    """A proxy that says 502 for longer than all attempts take ends nothing."""
    fake = fleet.fake_a
    fleet.environment["SERVICE_A_GRACE_SECONDS"] = "1"
    fake.default = answer(502, "<h1>Bad Gateway</h1>")
    web_process, *_ = await fleet.start("service_b", "service_b.results", "configurator")
    # So few do not make the relay spare A: each is tried more often than MAX_ATTEMPTS.
    early = await fleet.submit(web_process, serials(3, "EARLY"))
    await eventually(lambda: all(len(fake.calls(serial)) > 4 for serial in serials(3, "EARLY")))
    called = len(fake.ledger)
    later = await fleet.submit(web_process, serials(100, "LATER"))
    await eventually(lambda: len(fake.ledger) > called + 30)
    fake.default = answer()
    assert await fleet.codes(web_process, [*early, *later]) == [200] * 103


async def break_off_for_one_device(fleet: Fleet) -> None:
    """Its trouble is its own: an error after MAX_ATTEMPTS, while A answers the others."""
    fake = fleet.fake_a
    fleet.environment["SERVICE_A_GRACE_SECONDS"] = "1"

    async def behave(fake: FakeA, request: web.Request) -> web.StreamResponse:
        chosen = reset() if request.match_info["id"] == "BROKEN01" else answer()
        return await chosen(fake, request)

    fake.default = behave
    web_process, *_ = await fleet.start("service_b", "service_b.results", "configurator")
    broken = await fleet.submit_one(web_process, "BROKEN01")
    async with posting(fleet, web_process) as others:
        assert await fleet.codes(web_process, [broken]) == [500]
    assert len(fake.calls("BROKEN01")) == 3
    assert await fleet.codes(web_process, others) == [200] * len(others)


async def keep_a_backlog(fleet: Fleet) -> None:
    """The queue holds what can begin soon; all else waits in PostgreSQL, and obeys what is changed there."""
    fake = fleet.fake_a
    go_on = asyncio.Event()
    fake.default = held(go_on)
    fleet.environment["SERVICE_A_GRACE_SECONDS"] = "300"
    web_process, *_ = await fleet.start("service_b", "service_b.results", "configurator", CONCURRENCY="50")
    connection = await aiormq.connect(patient(fleet.queues))
    channel = await connection.channel()
    seen: list[int] = []

    async def watch() -> None:
        while True:
            seen.append(await count_ready(channel, fleet.queues.to_configure_queue))
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    paths: list[str] = []
    for start in range(0, 4000, 200):
        paths += await fleet.submit(web_process, serials(4000)[start : start + 200])
    await fleet.calls(50)
    looks = len(seen)
    await eventually(lambda: len(seen) > looks + 30)
    watching.cancel()
    await connection.close()
    assert 0 < max(seen) <= 500
    await fleet.sql.execute("UPDATE task SET deadline_at = now() - interval '1 minute' WHERE begun_at IS NULL")
    go_on.set()
    assert Counter(await fleet.codes(web_process, paths, 60)) == {200: 50, 500: 3950}
    assert len(fake.ledger) == 50


SCENARIOS: dict[str, Callable[[Fleet], Awaitable[None]]] = {
    "a configurator is killed": kill_a_configurator,
    "to_configure is deleted again and again": partial(delete_a_queue, name="to_configure_queue"),
    "configured is deleted again and again": partial(delete_a_queue, name="configured_queue"),
    "a proxy says 502": answer_bad_gateway,
    "one device breaks off": break_off_for_one_device,
    "4,000 tasks are due": keep_a_backlog,
}
BROKER = "the broker is killed"


@pytest.fixture(scope="module")
def errors(stage: Stage, own_rabbitmq: RabbitMQ) -> Errors:
    """All scenarios; one breaks its broker, and has its own."""
    scenarios = {BROKER: partial(kill_the_broker, rabbitmq=own_rabbitmq)} | SCENARIOS
    own = {BROKER: own_rabbitmq.url}
    return stage.play(scenarios, at_once=AT_ONCE, heartbeat=HEARTBEAT_SECONDS, amqp_urls=own)


@pytest.mark.parametrize("fault", [BROKER, *SCENARIOS])
def test_goes_on_when(errors: Errors, fault: str) -> None:
    raise_error(errors, fault)
