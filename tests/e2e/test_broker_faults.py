"""What the design promises while the broker is away: seen by clients and by the fake A's ledger."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import eventually, own_queues
from tests.e2e.conftest import Fleet, held, in_thread, open_fleet, serials
from tests.fake_a import FakeA
from tests.system.rabbitmq import RabbitMQ

LONG = {"SERVICE_A_GRACE_SECONDS": "300"}
"""Calls that wait for the test must not run into their time limit."""


@pytest.fixture
async def breakable(
    tmp_path: Path, own_rabbitmq: RabbitMQ, database_url: str, service_url: str, fake_a: FakeA
) -> AsyncIterator[Fleet]:
    """A fleet on a broker that may be broken."""
    environment = LONG | {"DATABASE_URL": service_url}
    async with (
        own_queues(own_rabbitmq.url) as queues,
        open_fleet(tmp_path / "logs", queues, database_url, fake_a, users=True, **environment) as made,
    ):
        yield made


async def test_posts_are_answered_while_the_broker_is_down_and_finish_when_it_is_back(
    breakable: Fleet, own_rabbitmq: RabbitMQ
) -> None:
    web, *_ = await breakable.start("service_b", "service_b.results", "configurator")
    await in_thread(own_rabbitmq.stop)
    try:
        paths = await breakable.submit(web, serials(1000))
        assert len(set(paths)) == 1000
        assert await breakable.code(web, paths[0]) == 204
        assert await in_thread(web.is_ready)
    finally:
        await in_thread(own_rabbitmq.start)
    assert await breakable.final_codes(web, paths) == [200] * 1000
    assert len(breakable.fake_a.ledger) == 1000


@pytest.mark.parametrize("end", [RabbitMQ.stop, RabbitMQ.kill], ids=["restarted", "killed"])
async def test_calls_in_flight_survive_the_broker_and_none_is_made_twice(
    breakable: Fleet, own_rabbitmq: RabbitMQ, end: Callable[[RabbitMQ], None]
) -> None:
    """Half of the calls end while the broker is away, the others after their tasks have been delivered once more."""
    away, back = asyncio.Event(), asyncio.Event()
    fake = breakable.fake_a
    fake.default = held(back)
    for serial in serials(250, "EARLY"):
        fake.script[serial].append(held(away))
    web, _, configurator = await breakable.start("service_b", "service_b.results", "configurator")
    paths = await breakable.submit(web, [*serials(250, "EARLY"), *serials(250, "LATER")])
    await breakable.calls(500)
    for queue in (breakable.queues.to_configure_queue, breakable.queues.configured_queue):
        await eventually(partial(own_rabbitmq.has_written, queue))
    await in_thread(end, own_rabbitmq)
    try:
        away.set()
        await eventually(lambda: sum(work.ended is not None for work in fake.ledger) == 250)
    finally:
        await in_thread(own_rabbitmq.start)

    async def refused() -> bool:
        return (await breakable.metric(configurator, "leases_asked_total", answer="refused") or 0) >= 250

    await eventually(refused)
    back.set()
    assert await breakable.final_codes(web, paths) == [200] * 500
    assert len(fake.ledger) == 500
