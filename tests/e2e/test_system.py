"""The four processes with the real stub of service A, as `make demo` and `make up` run them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.conftest import eventually
from tests.e2e.conftest import BODY, PATH, in_thread
from tests.system.processes import Process
from tests.system.system import Plan, System, running

METRICS = {
    "service_b": [
        'http_request_seconds_count{code="200",method="POST",route="/api/v1/equipment/cpe/{id}"}',
        "tasks_accepted_total",
        'tasks_dispatched_total{publication="confirmed"}',
        'batch_size_count{batch="insert"}',
        'batch_size_count{batch="status"}',
        "amqp_connects_total",
        'tasks_unfinished{state="waiting"}',
        'tasks_unfinished{state="due"}',
        'tasks_unfinished{state="dispatched"}',
        "tasks_oldest_unfinished_seconds",
    ],
    "service_b.results": [
        'tasks_finished_total{code="200"}',
        'tasks_finished_total{code="404"}',
        'tasks_finished_total{code="500"}',
        'outcomes_total{kind="success"}',
        'batch_size_count{batch="outcome"}',
        "amqp_connects_total",
    ],
    "configurator": [
        'service_a_call_seconds_count{outcome="success"}',
        'service_a_call_seconds_count{outcome="not_found"}',
        "service_a_calls_in_flight",
        "amqp_connects_total",
    ],
}


@pytest.fixture(scope="module")
def system(amqp_url: str, postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system on the run's broker, with the default names of the queues, and a database of its own."""
    plan = Plan(
        amqp_url=amqp_url,
        database_url=postgres_url.rsplit("/", 1)[0] + "/system",
        service_a={"RESPONSE_DELAY_SECONDS": "0.2", "KNOWN_EQUIPMENT": "KNOWN001,FAILS002", "ERROR_RATE": "0"},
    )
    with running(tmp_path_factory.mktemp("system"), plan) as made:
        yield made


async def final(client: aiohttp.ClientSession, web: Process, serial: str) -> tuple[int, bytes]:
    async with client.post(f"{web.url}{PATH}/{serial}", json=BODY) as response:
        path = response.headers["Location"]
    answer: tuple[int, bytes] = (0, b"")

    async def ended() -> bool:
        nonlocal answer
        async with client.get(web.url + path) as response:
            answer = response.status, await response.read()
        return b'"code":204' not in answer[1]

    await eventually(ended)
    return answer


async def test_success_not_found_and_failure_reach_the_client(system: System, tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as client:
        assert await final(client, system.service_b, "KNOWN001") == (200, b'{"code":200,"message":"Completed"}')
        assert await final(client, system.service_b, "UNKNOWN1") == (
            404,
            b'{"code":404,"message":"The requested equipment is not found"}',
        )
        # The same service A, which now fails at everything.
        port = str(system.service_a.port)
        await in_thread(system.service_a.terminate)
        failing = Process("service_a", tmp_path, {"APP_PORT": port, "RESPONSE_DELAY_SECONDS": "0", "ERROR_RATE": "1"})
        await in_thread(failing.start)
        assert await final(client, system.service_b, "FAILS002") == (
            500,
            b'{"code":500,"message":"Internal provisioning exception"}',
        )
        assert await in_thread(failing.terminate) == 0
        await in_thread(system.service_a.start)


async def test_each_process_shows_its_health_and_metrics(system: System) -> None:
    async with aiohttp.ClientSession() as client:
        for process in system.processes:
            async with client.get(f"{process.url}/health/live") as response:
                assert response.status == 200
        for process in (system.service_b, system.results, system.configurator):
            async with client.get(f"{process.url}/health/ready") as response:
                assert (response.status, await response.json()) == (200, {"status": "ready"})
            async with client.get(f"{process.url}/metrics") as response:
                lines = {line.rsplit(" ", 1)[0] for line in (await response.text()).splitlines()}
            assert [name for name in METRICS[process.module] if name not in lines] == []


async def test_web_processes_share_one_port(system: System, tmp_path: Path) -> None:
    second = Process("service_b", tmp_path, system.service_b.environment, name="second")
    await in_thread(second.start)
    assert second.port == system.service_b.port
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as client:

        async def both_answer() -> bool:
            async with client.get(f"{second.url}/metrics") as response:
                pids.add(
                    next(x for x in (await response.text()).splitlines() if x.startswith("process_start_time_seconds"))
                )
            return len(pids) == 2

        pids: set[str] = set()
        await eventually(both_answer)
    assert await in_thread(second.terminate) == 0


async def test_each_process_ends_with_exit_code_0(system: System) -> None:
    codes = await asyncio.gather(*(in_thread(process.terminate) for process in reversed(system.processes)))
    assert codes == [0, 0, 0, 0]
