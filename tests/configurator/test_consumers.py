"""The configurator's process between a real broker, a results process and a service A that misbehave."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiormq
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from prometheus_client import REGISTRY
from pydantic import SecretStr
from pytest_aiohttp import AiohttpClient
from structlog.testing import capture_logs

from configurator import consumers, jobs, service_a
from configurator.app import create_app
from configurator.jobs import Job
from configurator.reports import Reports
from configurator.settings import Settings
from messaging.channel import Channel
from messaging.messages import ConfigureTask, Outcome, OutcomeKind
from messaging.settings import BrokerSettings
from messaging.topology import dead_letter_queue
from runtime.clock import now
from tests.configurator.calls import LIMIT, make_task
from tests.configurator.wire import Start, Wire
from tests.conftest import eventually
from tests.fake_a import Behaviour, FakeA, answer, silence
from tests.fake_results import FakeResults, decide, grant_and_reset, held
from tests.proxy import Proxy
from tests.queues import declare, names, patient
from tests.system.processes import Process
from tests.system.rabbitmq import RabbitMQ
from tests.system.spawning import free_port


@pytest.fixture
async def proxy(broker: BrokerSettings) -> AsyncIterator[Proxy]:
    """A bad network before the broker."""
    url = broker.nodes[0]
    async with Proxy(url.host or "", url.port or 0) as made:
        yield made


def _behind(proxy: Proxy, broker: BrokerSettings) -> SecretStr:
    return SecretStr(str(broker.nodes[0].with_host("127.0.0.1").with_port(proxy.url_port)))


def _tasks(count: int, **changed: Any) -> list[ConfigureTask]:
    return [make_task(f"ROUTER{number}", **changed) for number in range(count)]


def _held(gate: asyncio.Event) -> Behaviour:
    """Work until the gate is opened."""

    async def behave(fake: FakeA, request: web.Request) -> web.StreamResponse:
        await gate.wait()
        return await answer()(fake, request)

    return behave


def _most_at_once(fake_a: FakeA) -> int:
    moments = [(work.started, 1) for work in fake_a.ledger]
    moments += [(work.ended, -1) for work in fake_a.ledger if work.ended is not None]
    now = most = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


async def test_a_text_of_as_that_quotes_the_parameters_is_told_without_them(
    start: Start, wire: Wire, fake_a: FakeA
) -> None:
    said = "password 'hunter2' of 'admin' in \"käse\\u00e9\" is too short" + "." * 280 + "hunter2"
    fake_a.default = answer(422, json.dumps({"code": 422, "message": said}))
    app = await start()
    task = make_task(username="admin", password="hunter2", interfaces=[], more=[{"deep": ["käse\\u00e9"]}])
    with capture_logs() as logs:
        await wire.put(task)
        (outcome,) = await wire.ends(task)
        await app.close()
    assert outcome.reason.startswith("422 password '***' of '***' in \"***\" is too short...")
    assert len(outcome.reason) <= 304
    assert "call.ended" in str(logs)
    for secret in ("hunt", "admin", "käse"):
        assert secret not in outcome.reason + str(logs)


async def test_a_bug_in_a_call_is_an_unknown_outcome_and_the_consumer_lives_on(
    start: Start, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: service_a.ServiceA, job: Job) -> Outcome:
        raise LookupError("a bug")

    await start(concurrency=1)
    tasks = _tasks(2)
    with monkeypatch.context() as patched:
        patched.setattr(service_a.ServiceA, "configure", fail)
        await wire.put(tasks[0])
        (outcome,) = await wire.ends(tasks[0])
    assert outcome.kind is OutcomeKind.UNKNOWN
    assert LIMIT / 2 < outcome.hold_seconds <= LIMIT
    await wire.put(tasks[1])
    assert await wire.kinds(tasks[1]) == [OutcomeKind.SUCCESS]


async def test_as_many_calls_as_concurrency_run_at_once_and_never_more(start: Start, wire: Wire, fake_a: FakeA) -> None:
    gate = asyncio.Event()
    fake_a.default = _held(gate)
    await start(concurrency=300)
    tasks = _tasks(330)
    await wire.put(*tasks)
    await eventually(lambda: len(fake_a.ledger) == 300)
    assert await wire.waiting() == 30, "what cannot be begun is left to other configurators"
    gate.set()
    assert set(await wire.kinds(*tasks)) == {OutcomeKind.SUCCESS}
    assert len(fake_a.ledger) == 330
    assert _most_at_once(fake_a) == 300


async def test_a_call_outlives_its_connection_and_the_copy_that_the_broker_brings_is_refused(
    start: Start, wire: Wire, fake_a: FakeA, broker: BrokerSettings, proxy: Proxy
) -> None:
    gate = asyncio.Event()
    fake_a.default = _held(gate)
    app = await start(concurrency=20, amqp_url=_behind(proxy, broker))
    tasks = _tasks(20)
    await wire.put(*tasks)
    await eventually(lambda: len(fake_a.ledger) == 20)
    refused = _counted("leases_asked_total", answer="refused")
    proxy.cut()
    await eventually(lambda: wire.waiting_is(0))
    gate.set()
    assert set(await wire.kinds(*tasks)) == {OutcomeKind.SUCCESS}
    await eventually(lambda: _counted("leases_asked_total", answer="refused") == refused + 20)
    await app.close()
    await _nothing_is_left(start, wire)
    assert len(fake_a.ledger) == 21


async def test_calls_outlive_connections_closed_by_the_broker(
    aiohttp_client: AiohttpClient, fake_a: FakeA, fake_results: FakeResults, own_rabbitmq: RabbitMQ
) -> None:
    gate = asyncio.Event()
    fake_a.default = _held(gate)
    queues = BrokerSettings.model_validate({"amqp_url": own_rabbitmq.url, **names(uuid4().hex[:12])})
    urls = {"service_a_url": fake_a.url, "results_url": fake_results.url}
    settings = Settings(**queues.model_dump() | urls, concurrency=20)
    await aiohttp_client(create_app(settings))
    connection = await aiormq.connect(own_rabbitmq.url)
    wire = Wire(await connection.channel(), settings)
    await declare(wire.amqp, settings)
    tasks = _tasks(20)
    await wire.put(*tasks)
    await eventually(lambda: len(fake_a.ledger) == 20)
    connects = _counted("amqp_connects_total")
    await asyncio.to_thread(own_rabbitmq.ctl, "close_all_connections", "a test")
    await eventually(lambda: _counted("amqp_connects_total") == connects + 1)
    gate.set()
    connection = await aiormq.connect(own_rabbitmq.url)
    wire = Wire(await connection.channel(), settings)
    assert set(await wire.kinds(*tasks)) == {OutcomeKind.SUCCESS}
    assert len(fake_a.ledger) == 20
    await connection.close()


async def test_a_task_that_another_process_took_and_dropped_is_called_for(
    start: Start, wire: Wire, fake_a: FakeA, broker: BrokerSettings
) -> None:
    other = await aiormq.connect(patient(broker))
    task = make_task()
    await wire.put(task)
    await Wire(await other.channel(), broker).take()
    await other.close()
    await start()
    assert await wire.kinds(task) == [OutcomeKind.SUCCESS]
    assert len(fake_a.ledger) == 1


async def test_a_task_whose_lease_another_process_has_is_acknowledged_and_forgotten(
    start: Start, wire: Wire, fake_a: FakeA, fake_results: FakeResults
) -> None:
    task, other = _tasks(2)
    fake_results.granted[str(task.task_id), task.attempt] = "another configurator's"
    app = await start()
    await wire.put(task, other)
    await wire.ends(other)
    await app.close()
    await _nothing_is_left(start, wire)
    assert not fake_a.calls(task.equipment_id)


async def test_of_two_copies_one_is_called_for_and_both_are_acknowledged(
    start: Start, wire: Wire, fake_a: FakeA, fake_results: FakeResults
) -> None:
    gate = asyncio.Event()
    fake_results.script.append(held(gate))
    app = await start()
    task, first = make_task(), make_task("ROUTER0")
    await wire.put(first)
    await eventually(lambda: fake_results.requests == 1)
    await wire.put(task, task)
    await eventually(lambda: wire.waiting_is(0))
    gate.set()
    assert await wire.kinds(first, task) == [OutcomeKind.SUCCESS] * 2
    await app.close()
    await _nothing_is_left(start, wire)
    assert len(fake_a.calls("ROUTER1")) == 1


async def test_a_grant_whose_answer_is_lost_is_asked_for_again_and_called_once(
    start: Start, wire: Wire, fake_a: FakeA, fake_results: FakeResults
) -> None:
    fake_results.script.append(grant_and_reset())
    await start()
    tasks = _tasks(5)
    await wire.put(*tasks)
    outcomes = await wire.ends(*tasks)
    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.SUCCESS] * 5
    assert [str(outcome.lease) for outcome in outcomes] == [
        fake_results.granted[str(task.task_id), task.attempt] for task in tasks
    ]
    assert len(fake_a.ledger) == 5


async def test_what_nobody_can_decide_just_now_is_asked_for_again(
    start: Start, wire: Wire, fake_a: FakeA, fake_results: FakeResults
) -> None:
    fake_results.default = decide(None)
    await start()
    task = make_task()
    await wire.put(task)
    await eventually(lambda: fake_results.requests > 1)
    assert not fake_a.ledger
    fake_results.default = decide()
    assert await wire.kinds(task) == [OutcomeKind.SUCCESS]


async def test_tasks_wait_in_hand_for_a_results_process_that_is_away(
    start: Start, wire: Wire, fake_a: FakeA, fake_results: FakeResults
) -> None:
    await fake_results.stop()
    app = await start()
    tasks = _tasks(10)
    await wire.put(*tasks)

    async def says_why() -> bool:
        ready = await app.get("/health/ready")
        return ready.status == 503 and (await ready.json())["missing"] == ["results process: no leases"]

    await eventually(says_why)
    assert not fake_a.ledger
    await fake_results.start()
    assert set(await wire.kinds(*tasks)) <= {OutcomeKind.SUCCESS, OutcomeKind.UNAVAILABLE}, "late after 5 s"


async def test_a_lease_that_comes_late_begins_no_call_and_is_handed_back(
    start: Start, wire: Wire, fake_a: FakeA, fake_results: FakeResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LATENESS_SECONDS", 0.2)
    gate = asyncio.Event()
    fake_results.script.append(held(gate))
    await start(concurrency=1)
    late, quick = _tasks(2)
    await wire.put(late)
    await eventually(lambda: fake_results.requests == 1)
    asked = now()
    await eventually(lambda: now() > asked + 0.2)
    gate.set()
    (outcome,) = await wire.ends(late)
    assert (outcome.kind, outcome.retry_after_seconds) == (OutcomeKind.UNAVAILABLE, 0)
    assert str(outcome.lease) == fake_results.granted[str(late.task_id), 1]
    assert _counted("calls_late_total") >= 1
    await wire.put(quick)
    assert await wire.kinds(quick) == [OutcomeKind.SUCCESS]
    assert [work.equipment_id for work in fake_a.ledger] == [quick.equipment_id]


async def test_a_process_that_stood_still_between_grant_and_call_makes_no_call(
    wire: Wire, fake_a: FakeA, fake_results: FakeResults, tmp_path: Path
) -> None:
    process = Process("configurator", tmp_path, _environment(wire.broker, fake_a, fake_results))

    async def grant_and_stop(fake: FakeResults, request: web.Request) -> web.StreamResponse:
        process.pause()
        return await decide()(fake, request)

    fake_results.script.append(grant_and_stop)
    await asyncio.to_thread(process.start)
    try:
        task = make_task()
        await wire.put(task)
        await eventually(lambda: fake_results.granted)
        granted = now()
        await eventually(lambda: now() > granted + jobs.LATENESS_SECONDS)
        process.resume()
        (outcome,) = await wire.ends(task)
        assert (outcome.kind, outcome.retry_after_seconds) == (OutcomeKind.UNAVAILABLE, 0)
    finally:
        await asyncio.to_thread(process.close)
    assert not fake_a.ledger


async def test_thousands_of_tasks_are_each_called_for_once(start: Start, wire: Wire, fake_a: FakeA) -> None:
    await start(concurrency=1000)
    outcomes = "outcomes_published_total"
    published = _counted(outcomes, kind="success")
    await wire.put(*_tasks(3000))
    await eventually(lambda: _counted(outcomes, kind="success") == published + 3000)
    assert len({work.task_id for work in fake_a.ledger}) == len(fake_a.ledger) == 3000
    await eventually(lambda: wire.waiting_is(0))


async def test_while_a_is_down_no_task_is_taken_and_afterwards_it_goes_on_by_itself(
    start: Start, wire: Wire, fake_a: FakeA
) -> None:
    await fake_a.stop()
    app = await start(concurrency=2)
    early, late = _tasks(4), _tasks(3)
    await wire.put(early[0])
    (outcome,) = await wire.ends(early[0])
    assert outcome.kind is OutcomeKind.UNAVAILABLE
    assert outcome.reason == "service A cannot be reached: ClientConnectorError"
    assert outcome.hold_seconds == 0
    ready = await app.get("/health/ready")
    assert ready.status == 503
    assert await ready.json() == {"status": "not ready", "missing": ["service A: cannot be reached"]}
    await eventually(lambda: _counted("service_a_unreachable") == 1)
    await _has_no_reader(wire)
    await wire.put(*late)
    await eventually(lambda: wire.waiting_is(3))
    await fake_a.start()
    assert await wire.kinds(*late) == [OutcomeKind.SUCCESS] * 3
    assert len(fake_a.ledger) == 3

    async def is_ready() -> bool:
        return (await app.get("/health/ready")).status == 200

    await eventually(is_ready)  # What is missing is asked for once a second.


async def test_tasks_taken_but_not_begun_when_a_goes_down_are_handed_back(
    start: Start, wire: Wire, fake_a: FakeA
) -> None:
    await fake_a.stop()
    tasks = _tasks(50)
    await wire.put(*tasks)
    await start(concurrency=50)
    await eventually(lambda: _counted("service_a_unreachable") == 1)
    await fake_a.start()
    kinds = set(await wire.kinds(*tasks))
    assert OutcomeKind.UNAVAILABLE in kinds
    assert kinds <= {OutcomeKind.UNAVAILABLE, OutcomeKind.SUCCESS}


async def test_one_devices_503_pauses_nobody(start: Start, wire: Wire, fake_a: FakeA) -> None:
    fake_a.script["BUSYROUTER"].append(answer(503))
    app = await start(concurrency=1)
    tasks = [make_task("BUSYROUTER"), *_tasks(3)]
    await wire.put(*tasks)
    assert await wire.kinds(*tasks) == [OutcomeKind.UNAVAILABLE, *[OutcomeKind.SUCCESS] * 3]
    assert (await app.get("/health/ready")).status == 200
    assert _counted("service_a_unreachable") == 0


async def test_a_clean_stop_finishes_running_calls_and_takes_no_more(start: Start, wire: Wire, fake_a: FakeA) -> None:
    gate = asyncio.Event()
    fake_a.default = _held(gate)
    app = await start(concurrency=50)
    running, late = _tasks(30), _tasks(3)
    await wire.put(*running)
    await eventually(lambda: len(fake_a.ledger) == 30)
    with capture_logs() as logs:
        stopping = asyncio.create_task(app.close())
        await eventually(lambda: any(log["event"] == "configurator.draining" for log in logs))
    await wire.put(*late)
    gate.set()
    await stopping
    assert await wire.kinds(*running) == [OutcomeKind.SUCCESS] * 30
    await eventually(lambda: wire.waiting_is(3))
    assert len(fake_a.ledger) == 30
    await start()
    assert await wire.kinds(*late) == [OutcomeKind.SUCCESS] * 3, "taken by nobody, they come for the first time"
    assert len(wire.outcomes) == 33


async def _occupy(
    start: Start, wire: Wire, fake_a: FakeA, broker: BrokerSettings, proxy: Proxy
) -> tuple[TestClient[web.Request, web.Application], list[ConfigureTask], list[ConfigureTask]]:
    """Make a configurator whose consumers are busy hold tasks that it has not begun.

    It loses its connection, and another configurator takes its running tasks before it is back.
    """
    app = await start(concurrency=3, amqp_url=_behind(proxy, broker))
    running, waiting = _tasks(3), _tasks(2)
    await wire.put(*running)
    await eventually(lambda: len(fake_a.ledger) == 3)
    proxy.blackhole(True)
    proxy.cut()
    for _ in running:
        await wire.take()
    await wire.put(*waiting)
    proxy.blackhole(False)
    await eventually(lambda: wire.waiting_is(0))
    return app, running, waiting


async def test_a_clean_stop_gives_back_what_is_not_begun(
    start: Start, wire: Wire, fake_a: FakeA, broker: BrokerSettings, proxy: Proxy
) -> None:
    gate = asyncio.Event()
    fake_a.default = _held(gate)
    app, running, waiting = await _occupy(start, wire, fake_a, broker, proxy)
    stopping = asyncio.create_task(app.close())
    await eventually(lambda: wire.waiting_is(len(waiting)))
    assert not stopping.done(), "calls that have begun are finished"
    gate.set()
    await stopping
    assert await wire.kinds(*running) == [OutcomeKind.SUCCESS] * 3
    assert len(fake_a.ledger) == 3
    await start()
    assert await wire.kinds(*waiting) == [OutcomeKind.SUCCESS] * 2


async def test_a_stop_hands_back_what_is_granted_meanwhile_and_gives_back_what_has_not_asked(
    start: Start, wire: Wire, fake_a: FakeA, fake_results: FakeResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "AT_THE_DOOR", 1)
    gate = asyncio.Event()
    fake_results.default = held(gate)
    app = await start()
    asking, *waiting = _tasks(6)
    await wire.put(asking)
    await eventually(lambda: fake_results.requests == 1)
    await wire.put(*waiting)
    await eventually(lambda: wire.waiting_is(0))
    with capture_logs() as logs:
        stopping = asyncio.create_task(app.close())
        await eventually(lambda: any(log["event"] == "configurator.draining" for log in logs))
    gate.set()
    await stopping
    (outcome,) = await wire.ends(asking)
    assert (outcome.kind, outcome.retry_after_seconds) == (OutcomeKind.UNAVAILABLE, 0)
    assert outcome.reason == "not called: the configurator stops"
    assert not fake_a.ledger
    await eventually(lambda: wire.waiting_is(5))
    assert len(fake_results.asked) == 1


async def test_only_so_many_calls_are_about_to_begin_and_what_waits_behind_goes_back_at_a_stop(
    start: Start, wire: Wire, fake_results: FakeResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "AT_THE_DOOR", 3)
    await fake_results.stop()
    app = await start()
    tasks = _tasks(8)
    await wire.put(*tasks)
    await eventually(lambda: wire.waiting_is(0))
    await fake_results.start()
    gate = asyncio.Event()
    fake_results.default = held(gate)
    await eventually(lambda: fake_results.requests == 1)
    with capture_logs() as logs:
        stopping = asyncio.create_task(app.close())
        await eventually(lambda: any(log["event"] == "configurator.draining" for log in logs))
    await eventually(lambda: wire.waiting_is(5))
    gate.set()
    await stopping
    assert len(fake_results.asked) == 3


async def test_those_whose_rows_somebody_holds_hold_up_nobody(
    start: Start, wire: Wire, fake_results: FakeResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "AT_THE_DOOR", 3)
    holding, other = _tasks(5), make_task("OTHERROUTER")

    async def grant_the_other(fake: FakeResults, request: web.Request) -> web.StreamResponse:
        asked = await fake.note(request)
        return web.json_response({"granted": [True if each.task_id == str(other.task_id) else None for each in asked]})

    fake_results.default = grant_the_other
    await start()
    await wire.put(*holding, other)
    assert await wire.kinds(other) == [OutcomeKind.SUCCESS]
    fake_results.default = decide()
    assert await wire.kinds(*holding) == [OutcomeKind.SUCCESS] * 5


async def test_a_stop_while_no_results_process_answers_gives_back_what_is_in_hand(
    start: Start, wire: Wire, fake_results: FakeResults
) -> None:
    await fake_results.stop()
    app = await start(shutdown_grace_seconds=600)
    tasks = _tasks(10)
    await wire.put(*tasks)
    await eventually(lambda: wire.waiting_is(0))
    await app.close()
    await eventually(lambda: wire.waiting_is(10))
    await fake_results.start()
    await start()
    assert await wire.kinds(*tasks) == [OutcomeKind.SUCCESS] * 10


async def test_what_is_not_begun_when_its_channel_is_lost_is_not_begun_any_more(
    start: Start, wire: Wire, fake_a: FakeA, broker: BrokerSettings, proxy: Proxy
) -> None:
    gate = asyncio.Event()
    fake_a.default = _held(gate)
    _, running, waiting = await _occupy(start, wire, fake_a, broker, proxy)
    proxy.blackhole(True)
    proxy.cut()
    assert [(await wire.take()).redelivered for _ in waiting] == [True, True]
    gate.set()
    proxy.blackhole(False)
    assert await wire.kinds(*running) == [OutcomeKind.SUCCESS] * 3
    last = make_task("LASTROUTER")
    await wire.put(last)
    await wire.ends(last)
    assert len(fake_a.ledger) == 4


async def test_a_stop_gives_up_after_the_grace_period_and_the_task_comes_again(
    start: Start, wire: Wire, fake_a: FakeA, broker: BrokerSettings
) -> None:
    fake_a.default = silence()
    app = await start(shutdown_grace_seconds=0.3)
    task = make_task()
    await wire.put(task)
    await eventually(lambda: len(fake_a.ledger) == 1)
    await asyncio.wait_for(app.close(), 30)
    fake_a.default = answer()
    await _nothing_is_left(start, wire)
    assert len(fake_a.calls(task.equipment_id)) == 1, "its lease is another call's"


async def test_a_stop_without_a_broker_gives_up_after_the_grace_period(
    start: Start, wire: Wire, fake_a: FakeA, broker: BrokerSettings, proxy: Proxy
) -> None:
    app = await start(shutdown_grace_seconds=0.3, amqp_url=_behind(proxy, broker))
    fake_a.default = silence()
    task = make_task()
    await wire.put(task)
    await eventually(lambda: len(fake_a.ledger) == 1)
    await proxy.stop()
    await asyncio.wait_for(app.close(), 30)
    await eventually(lambda: wire.waiting_is(1))


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "garbage": (b"\xff\x00 garbage", "Invalid JSON"),
    "empty": (b"", "Invalid JSON"),
    "not an object": (b"[]", "should be an object"),
    "an unknown version": (make_task().encode().replace(b'"v":2', b'"v":5'), "v: Input should be 1, 2, 3 or 4"),
    "a field missing": (b'{"v":1,"task_id":"019a-no"}', "equipment_id: Field required"),
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_a_message_that_cannot_be_read_is_dead_lettered_and_the_next_one_served(
    start: Start, wire: Wire, fake_a: FakeA, name: str
) -> None:
    body, reason = UNREADABLE[name]
    app = await start(concurrency=1)
    await wire.put_raw(body)
    task = make_task()
    await wire.put(task)
    assert await wire.kinds(task) == [OutcomeKind.SUCCESS]
    queue = wire.broker.to_configure_queue
    dead = await wire.amqp.basic_get(dead_letter_queue(queue), no_ack=True)
    assert dead.body == body
    why = (dead.header.properties.headers or {})["x-reason"]
    assert isinstance(why, str)
    assert reason in why
    assert "secret" not in why
    assert _counted("amqp_dead_letters_total", queue=queue) == 1
    await app.close()
    await _nothing_is_left(start, wire)


async def test_a_message_with_fields_of_a_later_version_is_served(start: Start, wire: Wire, fake_a: FakeA) -> None:
    await start()
    task = make_task()
    await wire.put_raw(json.dumps(json.loads(task.encode()) | {"priority": "new"}).encode())
    assert await wire.kinds(task) == [OutcomeKind.SUCCESS]


async def test_a_task_of_the_former_version_asks_for_its_lease_like_any_other(
    start: Start, wire: Wire, fake_results: FakeResults
) -> None:
    await start()
    task = make_task()
    await wire.put_raw(task.encode().replace(b'"v":2', b'"v":1'))
    assert await wire.kinds(task) == [OutcomeKind.SUCCESS]
    assert [asked.task_id for asked in fake_results.asked] == [str(task.task_id)]


async def test_an_outcome_whose_queue_is_deleted_while_a_works_is_delivered(
    start: Start, wire: Wire, fake_a: FakeA
) -> None:
    gate = asyncio.Event()
    fake_a.default = _held(gate)
    await start()
    task = make_task()
    await wire.put(task)
    await eventually(lambda: len(fake_a.ledger) == 1)
    await wire.amqp.queue_delete(wire.broker.configured_queue)
    gate.set()
    outcomes = "outcomes_published_total"
    published = _counted(outcomes, kind="success")
    await eventually(lambda: _counted(outcomes, kind="success") > published)
    assert await wire.kinds(task) == [OutcomeKind.SUCCESS]
    assert len(fake_a.ledger) == 1


async def test_a_deleted_task_queue_is_declared_again_and_served(start: Start, wire: Wire) -> None:
    await start()
    first, second = _tasks(2)
    await wire.put(first)
    await wire.ends(first)
    await wire.amqp.queue_delete(wire.broker.to_configure_queue)
    await _has_reader(wire)
    await wire.put(second)
    assert await wire.kinds(second) == [OutcomeKind.SUCCESS]


async def test_without_a_broker_it_is_alive_but_not_ready(start: Start, broker: BrokerSettings) -> None:
    app = await start(amqp_url=SecretStr(f"amqp://127.0.0.1:{free_port()}/"))

    async def says_why() -> bool:
        ready = await app.get("/health/ready")
        missing = (await ready.json())["missing"]
        return ready.status == 503 and "Connect call failed" in missing[0]

    await eventually(says_why)
    assert (await app.get("/health/live")).status == 200


@pytest.mark.parametrize(
    "broken",
    [
        (service_a.ServiceA, "configure", asyncio.CancelledError),
        (Reports, "report", LookupError),
        (Channel, "dead_letter", LookupError),
        (Channel, "dead_letter", asyncio.CancelledError),
    ],
    ids=str,
)
async def test_work_that_fails_or_ends_cancelled_stops_the_process(
    start: Start, wire: Wire, monkeypatch: pytest.MonkeyPatch, broken: tuple[type, str, type[BaseException]]
) -> None:
    """A consumer that is gone would be missed by nobody, and a job that nobody reports would be kept for ever."""
    owner, name, error = broken

    async def fail(*_: object, **__: object) -> None:
        raise error

    signals: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", signals.append)
    monkeypatch.setattr(owner, name, fail)
    await start()
    await wire.put(make_task())
    await wire.put_raw(b"no task")
    await eventually(lambda: signals)
    assert signals == [signal.SIGTERM]


def _environment(broker: BrokerSettings, fake_a: FakeA, fake_results: FakeResults) -> dict[str, str]:
    return {
        "AMQP_URL": str(broker.nodes[0]),
        "EXCHANGE": broker.exchange,
        "TO_CONFIGURE_QUEUE": broker.to_configure_queue,
        "CONFIGURED_QUEUE": broker.configured_queue,
        "SERVICE_A_URL": fake_a.url,
        "RESULTS_URL": fake_results.url,
    }


def _counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def _readers(wire: Wire) -> int | None:
    connection = await aiormq.connect(patient(wire.broker))
    try:
        channel = await connection.channel()
        return (await channel.queue_declare(wire.broker.to_configure_queue, passive=True)).consumer_count
    except aiormq.exceptions.ChannelNotFoundEntity:
        return None
    finally:
        await connection.close()


async def _has_no_reader(wire: Wire) -> None:
    async def none() -> bool:
        return await _readers(wire) == 0

    await eventually(none)


async def _has_reader(wire: Wire) -> None:
    async def one() -> bool:
        return await _readers(wire) == 1

    await eventually(one)


async def _nothing_is_left(start: Start, wire: Wire) -> None:
    """Show by one more task, served by a new configurator, that no earlier one comes again."""
    before = len(wire.outcomes)
    last = make_task("LASTROUTER")
    await wire.put(last)
    app = await start()
    assert await wire.kinds(last) == [OutcomeKind.SUCCESS]
    await app.close()
    assert len(wire.outcomes) == before + 1
    assert await wire.waiting() == 0
