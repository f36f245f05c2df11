"""What the design promises while servers and processes fail: seen by clients and by the fake A's ledger."""

import asyncio
import json
from collections import Counter
from functools import partial
from pathlib import Path
from uuid import uuid4

import aiormq
import asyncpg

from messaging.messages import ConfigureTask, Message, Outcome, OutcomeKind
from messaging.settings import BrokerSettings
from messaging.topology import dead_letter_queue
from tests.conftest import eventually
from tests.e2e.conftest import BODY, PATH, Fleet, held, in_thread, open_fleet, serials
from tests.fake_a import FakeA
from tests.queues import holds
from tests.system.postgres import PostgreSQL
from tests.system.processes import Process

LONG = {"SERVICE_A_GRACE_SECONDS": "300"}
"""Calls that wait for the test must not run into their time limit."""


async def test_one_devices_tasks_go_one_by_one_in_order_and_hold_nobody_up(fleet: Fleet) -> None:
    others_ended = asyncio.Event()
    fake = fleet.fake_a
    fleet.environment |= LONG
    fake.delay = 0.02
    fake.script["SHARED01"].append(held(others_ended))
    first, second, *_ = await fleet.start("service_b", "service_b", "service_b.results", "configurator", "configurator")
    shared, others = await asyncio.gather(
        asyncio.gather(*(fleet.submit_one((first, second)[n % 2], "SHARED01") for n in range(60))),
        asyncio.gather(*(fleet.submit_one((first, second)[n % 2], serial) for n, serial in enumerate(serials(60)))),
    )

    async def ended() -> bool:
        return [await fleet.code(first, path) for path in others] == [200] * 60

    await eventually(ended, every=0.1)
    assert len(fake.calls("SHARED01")) == 1, "the device's other tasks wait for its first, and the 60 did not"
    others_ended.set()
    assert await fleet.final_codes(second, shared) == [200] * 60
    assert fake.overlapping() == []
    accepted = await fleet.sql.fetch("SELECT id FROM finished WHERE equipment_id = 'SHARED01' ORDER BY seq")
    assert [call.task_id for call in fake.calls("SHARED01")] == [str(row["id"]) for row in accepted]


async def test_requests_one_after_the_other_are_served_in_their_order(fleet: Fleet) -> None:
    first, second, *_ = await fleet.start("service_b", "service_b", "service_b.results", "configurator")
    paths = [await fleet.submit_one((first, second)[n % 2], "SHARED01") for n in range(20)]
    assert await fleet.final_codes(first, paths) == [200] * 20
    assert [call.task_id for call in fleet.fake_a.calls("SHARED01")] == [path.rsplit("/", 1)[1] for path in paths]


async def test_a_configurator_that_is_told_to_stop_finishes_what_it_has_begun(
    fleet: Fleet, amqp: aiormq.abc.AbstractChannel
) -> None:
    go_on = asyncio.Event()
    fake = fleet.fake_a
    fleet.environment |= LONG
    fake.default = held(go_on)
    web, _, configurator = await fleet.start("service_b", "service_b.results", "configurator", CONCURRENCY="400")
    begun = await fleet.submit(web, serials(300))
    await fleet.calls(300)
    stopping = asyncio.create_task(in_thread(configurator.terminate))
    await eventually(lambda: "configurator.draining" in configurator.log_file.read_text())
    late = await fleet.submit(web, serials(20, "LATER"))
    # It has consumers to spare, and leaves the work in the queue.
    await eventually(partial(holds, amqp, fleet.queues.to_configure_queue, 20))
    go_on.set()
    assert await stopping == 0
    assert len(fake.ledger) == 300
    await in_thread(configurator.start)
    assert await fleet.final_codes(web, [*begun, *late]) == [200] * 320
    assert len(fake.ledger) == 320


async def test_a_database_that_is_killed_loses_no_accepted_task(
    tmp_path: Path, broker: BrokerSettings, own_postgres: PostgreSQL, fake_a: FakeA
) -> None:
    async with open_fleet(tmp_path / "logs", broker, own_postgres.dsn(), fake_a) as fleet:
        web, *_ = await fleet.start("service_b", "service_b.results", "configurator")
        fake_a.delay = 0.2
        accepted: list[str] = []
        answers: Counter[int] = Counter()
        stop = asyncio.Event()

        async def post(client: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                url = f"{web.url}{PATH}/CLIENT{client}X{number:04}"
                async with fleet.client.post(url, json=BODY) as response:
                    answers[response.status] += 1
                    if response.status == 200:
                        accepted.append(response.headers["Location"])

        posting = [asyncio.create_task(post(client)) for client in range(4)]
        try:
            await eventually(lambda: len(accepted) > 100)
            await in_thread(own_postgres.kill)
            await eventually(lambda: answers[503] > 10)
            await in_thread(own_postgres.start)
            before = len(accepted)
            await eventually(lambda: len(accepted) > before + 100)
        finally:
            stop.set()
            await asyncio.gather(*posting)
        assert set(answers) == {200, 503}
        fleet.sql.terminate()
        fleet.sql = await asyncpg.connect(own_postgres.dsn())
        assert set(await fleet.final_codes(web, accepted)) == {200}
        assert fake_a.overlapping() == []


async def test_what_cannot_be_read_is_dead_lettered_with_a_reason_and_the_next_is_served(
    fleet: Fleet, amqp: aiormq.abc.AbstractChannel
) -> None:
    web, results, configurator = await fleet.start("service_b", "service_b.results", "configurator")
    task = ConfigureTask(
        task_id=uuid4(), attempt=1, equipment_id="FUTURE01", timeout_in_seconds=1, time_limit_seconds=9, parameters="{}"
    )
    outcome = Outcome(task_id=task.task_id, attempt=1, kind=OutcomeKind.SUCCESS)
    cases: tuple[tuple[str, Process, Message], ...] = (
        (fleet.queues.to_configure_queue, configurator, task),
        (fleet.queues.configured_queue, results, outcome),
    )
    for queue, reader, message in cases:
        of_the_future = json.dumps(json.loads(message.encode()) | {"v": 99}).encode()
        for body in (b"\xffgarbage", of_the_future):
            await amqp.basic_publish(body, routing_key=queue)
        dead = dead_letter_queue(queue)
        await eventually(partial(holds, amqp, dead, 2))
        assert await fleet.metric(reader, "amqp_dead_letters_total", queue=queue) == 2
        reasons = {}
        for _ in range(2):
            letter = await amqp.basic_get(dead, no_ack=True)
            reasons[letter.body] = str((letter.header.properties.headers or {})["x-reason"])
        assert set(reasons) == {b"\xffgarbage", of_the_future}
        assert "Invalid JSON" in reasons[b"\xffgarbage"]
        assert reasons[of_the_future].startswith("v: ")
    paths = await fleet.submit(web, serials(3))
    assert await fleet.final_codes(web, paths) == [200] * 3
    assert fleet.fake_a.calls("FUTURE01") == []


async def test_a_service_a_that_is_down_for_a_while_fails_nothing(fleet: Fleet) -> None:
    fake = fleet.fake_a
    web, _, configurator = await fleet.start("service_b", "service_b.results", "configurator", RETRY_MAX_SECONDS="2")
    fake.delay = 1
    begun = await fleet.submit(web, serials(50, "BEGUN"))
    await fleet.calls(50)
    await fake.stop()
    refused = await fleet.submit(web, serials(50, "REFUSED"))

    async def paused() -> bool:
        return await fleet.metric(configurator, "service_a_unreachable") == 1

    await eventually(paused)
    waiting = await fleet.submit(web, serials(50, "WAITING"))
    fake.delay = 0
    await fake.start()
    assert await fleet.final_codes(web, [*begun, *refused, *waiting]) == [200] * 150
    assert fake.overlapping() == []
    assert {len(fake.calls(serial)) for serial in serials(50, "BEGUN")} <= {1, 2}
    assert {len(fake.calls(serial)) for serial in (*serials(50, "REFUSED"), *serials(50, "WAITING"))} == {1}
