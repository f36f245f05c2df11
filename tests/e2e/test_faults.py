"""What the design promises when servers and processes fail: seen by the fake A's ledger and the task table."""

import asyncio
from collections.abc import Callable
from typing import Any

import aiormq
import pytest

from tests.conftest import eventually
from tests.e2e.conftest import Fleet, in_thread
from tests.system.postgres import PostgreSQL
from tests.system.rabbitmq import RabbitMQ

MakeFleet = Callable[..., Any]
SUCCESS = ("success", 200)


def serials(count: int, prefix: str = "DEVICE") -> list[str]:
    return [f"{prefix}{number:05}" for number in range(count)]


async def test_posts_are_answered_while_the_broker_is_down_and_finish_when_it_is_back(
    make_fleet: MakeFleet, own_rabbitmq: RabbitMQ, database_url: str
) -> None:
    fleet: Fleet = await make_fleet(own_rabbitmq.url, database_url)
    web, _, _ = await fleet.start("service_b", "service_b.results", "configurator")
    await in_thread(own_rabbitmq.stop)
    paths = await fleet.submit(web, serials(1000))
    assert len(set(paths)) == 1000
    await in_thread(own_rabbitmq.start)
    await fleet.all_finished()
    assert await fleet.statuses() == {SUCCESS: 1000}
    assert len(fleet.fake_a.ledger) == 1000


@pytest.mark.parametrize("end", [RabbitMQ.stop, RabbitMQ.kill], ids=["restarted", "killed"])
async def test_calls_in_flight_survive_the_broker_and_none_is_made_twice(
    make_fleet: MakeFleet, own_rabbitmq: RabbitMQ, database_url: str, end: Callable[[RabbitMQ], None]
) -> None:
    fleet: Fleet = await make_fleet(own_rabbitmq.url, database_url, SERVICE_A_GRACE_SECONDS="100")
    back = asyncio.Event()

    async def answer_when_redelivered(_fake: Any, _request: Any) -> Any:
        await back.wait()
        return await answer(_fake, _request)

    answer, fleet.fake_a.default = fleet.fake_a.default, answer_when_redelivered
    web, _, configurator = await fleet.start("service_b", "service_b.results", "configurator")
    await fleet.submit(web, serials(500))
    await fleet.calls(500)
    await in_thread(end, own_rabbitmq)
    await in_thread(own_rabbitmq.start)
    await eventually(lambda: joined(fleet, configurator))
    back.set()
    await fleet.all_finished()
    assert await fleet.statuses() == {SUCCESS: 500}
    assert len(fleet.fake_a.ledger) == 500


async def joined(fleet: Fleet, configurator: Any) -> bool:
    return await fleet.metric(configurator, 'redelivered_total{treated="joined"}') == 500


async def test_one_devices_tasks_go_one_by_one_in_order_and_hold_nobody_up(fleet: Fleet) -> None:
    fleet.fake_a.delay = 0.05
    first, second, *_ = await fleet.start("service_b", "service_b", "service_b.results", "configurator", "configurator")
    shared, others = await asyncio.gather(
        asyncio.gather(*(fleet.submit_one((first, second)[n % 2], "SHARED01") for n in range(60))),
        fleet.submit(first, serials(60)),
    )
    assert len({*shared, *others}) == 120
    await fleet.all_finished()
    assert await fleet.statuses() == {SUCCESS: 120}
    assert fleet.fake_a.overlapping() == []
    calls = fleet.fake_a.calls("SHARED01")
    accepted = await fleet.sql.fetch("SELECT id FROM task WHERE equipment_id = 'SHARED01' ORDER BY seq")
    assert [call.task_id for call in calls] == [str(row["id"]) for row in accepted]
    last_other = max(work.ended or 0 for work in fleet.fake_a.ledger if work.equipment_id != "SHARED01")
    assert last_other < (calls[-1].ended or 0)
    assert sum((call.ended or 0) < last_other for call in calls) < 30


async def test_requests_one_after_the_other_are_served_in_their_order(fleet: Fleet) -> None:
    first, second, *_ = await fleet.start("service_b", "service_b", "service_b.results", "configurator")
    paths = [await fleet.submit_one((first, second)[n % 2], "SHARED01") for n in range(20)]
    await fleet.all_finished()
    assert [call.task_id for call in fleet.fake_a.calls("SHARED01")] == [path.rsplit("/", 1)[1] for path in paths]


async def test_a_configurator_that_is_told_to_stop_finishes_what_it_has_begun(fleet: Fleet) -> None:
    fleet.environment["SERVICE_A_GRACE_SECONDS"] = "100"
    go_on = asyncio.Event()
    answer = fleet.fake_a.default

    async def answer_later(fake: Any, request: Any) -> Any:
        await go_on.wait()
        return await answer(fake, request)

    fleet.fake_a.default = answer_later
    web, _, configurator = await fleet.start("service_b", "service_b.results", "configurator", CONCURRENCY="300")
    await fleet.submit(web, serials(300))
    await fleet.calls(300)
    stopping = asyncio.create_task(in_thread(configurator.terminate))
    await eventually(lambda: "configurator.draining" in configurator.log_file.read_text())
    late = await fleet.submit_one(web, "LATER001")
    go_on.set()
    assert await stopping == 0
    assert await fleet.statuses() == {SUCCESS: 300, ("pending", None): 1}
    assert len(fleet.fake_a.ledger) == 300
    assert await fleet.code(web, late) == 204
    await in_thread(configurator.start)
    await fleet.all_finished()
    assert len(fleet.fake_a.ledger) == 301


async def test_a_killed_configurators_devices_are_left_alone_until_a_has_let_go(fleet: Fleet) -> None:
    fleet.fake_a.delay = 2
    web, _, doomed, _ = await fleet.start("service_b", "service_b.results", "configurator", "configurator")
    await fleet.submit(web, serials(200))
    await fleet.calls(200)
    await in_thread(doomed.kill)
    await fleet.all_finished()
    assert await fleet.statuses() == {SUCCESS: 200}
    assert fleet.fake_a.overlapping() == []
    assert len(fleet.fake_a.ledger) > 200, "the killed one's calls were made again"


async def test_a_database_that_is_killed_loses_no_accepted_task(
    make_fleet: MakeFleet, amqp_url: str, own_postgres: PostgreSQL
) -> None:
    fleet: Fleet = await make_fleet(
        amqp_url, own_postgres.dsn(), EXCHANGE="pg", TO_CONFIGURE_QUEUE="pg1", CONFIGURED_QUEUE="pg2"
    )
    web, *_ = await fleet.start("service_b", "service_b.results", "configurator")
    fleet.fake_a.delay = 0.2
    accepted: list[str] = []
    stop = asyncio.Event()

    async def post(client: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            async with fleet.client.post(
                f"{web.url}/api/v1/equipment/cpe/CLIENT{client}X{number:04}",
                json={"timeoutInSeconds": 1, "parameters": {"username": "a", "password": "", "interfaces": []}},
            ) as response:
                assert response.status in (200, 503)
                if response.status == 200:
                    accepted.append(response.headers["Location"])

    posting = [asyncio.create_task(post(client)) for client in range(10)]
    await eventually(lambda: len(accepted) > 100)
    await in_thread(own_postgres.kill)
    await in_thread(own_postgres.start)
    before = len(accepted)
    await eventually(lambda: len(accepted) > before + 100)
    stop.set()
    await asyncio.gather(*posting)

    async def everything_ended() -> bool:
        return {await fleet.code(web, path) for path in accepted} == {200}

    await eventually(everything_ended)
    assert fleet.fake_a.overlapping() == []


@pytest.mark.parametrize("damage", ["purge", "delete"])
async def test_queues_that_are_purged_or_deleted_heal(fleet: Fleet, amqp_url: str, damage: str) -> None:
    fleet.environment["AMQP_URL"] = fleet.environment["AMQP_URL"].replace("heartbeat=2", "heartbeat=1")
    web, results, configurator = await fleet.start("service_b", "service_b.results", "configurator")
    connection = await aiormq.connect(amqp_url)
    channel = await connection.channel()
    # Whoever reads a queue is away, so that there is something to lose.
    for reader, prefix, queue in (
        (results, "OUTCOME", fleet.environment["CONFIGURED_QUEUE"]),
        (configurator, "TASK", fleet.environment["TO_CONFIGURE_QUEUE"]),
    ):
        await in_thread(reader.terminate)
        await fleet.submit(web, serials(30, prefix))

        async def filled(queue: str = queue) -> bool:
            return (await channel.queue_declare(queue, passive=True)).message_count == 30

        await eventually(filled)
    for queue in (fleet.environment["CONFIGURED_QUEUE"], fleet.environment["TO_CONFIGURE_QUEUE"]):
        await (channel.queue_purge(queue) if damage == "purge" else channel.queue_delete(queue))
    await connection.close()
    await asyncio.gather(in_thread(results.start), in_thread(configurator.start))
    await fleet.all_finished()
    assert await fleet.statuses() == {SUCCESS: 60}
    assert fleet.fake_a.overlapping() == []
    assert len(fleet.fake_a.ledger) == 90, "only the calls whose outcomes were lost were made again"


async def test_what_cannot_be_read_is_dead_lettered_with_a_reason_and_the_next_is_served(
    fleet: Fleet, amqp_url: str
) -> None:
    web, results, configurator = await fleet.start("service_b", "service_b.results", "configurator")
    connection = await aiormq.connect(amqp_url)
    channel = await connection.channel()
    for queue, process in (
        (fleet.environment["TO_CONFIGURE_QUEUE"], configurator),
        (fleet.environment["CONFIGURED_QUEUE"], results),
    ):
        for body in (b"\xffgarbage", b'{"v":2}'):
            await channel.basic_publish(body, routing_key=queue)

        async def counted(process: Any = process, queue: str = queue) -> bool:
            return await fleet.metric(process, f'amqp_dead_letters_total{{queue="{queue}"}}') == 2

        await eventually(counted)
        dead = [await channel.basic_get(f"{queue}.dead", no_ack=True) for _ in range(2)]
        assert sorted(message.body for message in dead) == sorted([b"\xffgarbage", b'{"v":2}'])
        for message in dead:
            assert (message.header.properties.headers or {})["x-reason"]
    await connection.close()
    await fleet.submit(web, serials(3))
    await fleet.all_finished()
    assert await fleet.statuses() == {SUCCESS: 3}


async def test_a_service_a_that_is_down_for_a_while_fails_nothing(fleet: Fleet) -> None:
    web, _, configurator = await fleet.start("service_b", "service_b.results", "configurator", RETRY_MAX_SECONDS="2")
    await fleet.fake_a.stop()
    await fleet.submit(web, serials(50))

    async def paused() -> bool:
        return await fleet.metric(configurator, "service_a_unreachable") == 1

    await eventually(paused)
    await fleet.submit(web, serials(50, "SECOND"))
    await fleet.fake_a.start()
    await fleet.all_finished()
    assert await fleet.statuses() == {SUCCESS: 100}
    assert len(fleet.fake_a.ledger) == 100
