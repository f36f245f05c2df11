"""The four processes with the real stub of service A, as `make demo` and `make up` run them."""

import asyncio
import ssl
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import aiormq
import pytest

from messaging.settings import BrokerSettings
from tests.conftest import eventually, new_database, own_queues
from tests.e2e.conftest import BODY, GUARDS, PATH, in_thread, new_client, samples
from tests.queues import patient
from tests.system.processes import Process
from tests.system.system import Plan, System, running

KNOWN, UNKNOWN = "KNOWN001", "UNKNOWN1"
FAILING = "FAILS0260"
"""One of the serials at which service A fails even with a small `ERROR_RATE`."""

POSTED = {"method": "POST", "route": f"{PATH}/{{id}}", "code": "200"}
CALLS = ("success", "not_found", "failed")

METRICS: dict[str, list[tuple[str, dict[str, str]]]] = {
    "service_b": [
        ("http_request_seconds_count", POSTED),
        ("http_request_seconds_bucket", POSTED | {"le": "0.5"}),
        ("tasks_accepted_total", {}),
        ("tasks_dispatched_total", {"publication": "confirmed"}),
        ("batch_size_count", {"batch": "insert"}),
        ("batch_size_count", {"batch": "status"}),
        ("amqp_connects_total", {}),
        *(("tasks_unfinished", {"state": state}) for state in ("waiting", "due", "dispatched")),
        ("tasks_oldest_unfinished_seconds", {}),
        ("tasks_backlog_age_seconds", {}),
    ],
    "service_b.results": [
        *(("tasks_finished_total", {"code": code}) for code in ("200", "404", "500")),
        *(("outcomes_total", {"kind": kind}) for kind in CALLS),
        ("batch_size_count", {"batch": "outcome"}),
        ("amqp_connects_total", {}),
        ("amqp_dead_letters_total", {"queue": "{configured}"}),
    ],
    "configurator": [
        *(("service_a_call_seconds_count", {"outcome": outcome}) for outcome in CALLS),
        *(("service_a_call_seconds_bucket", {"outcome": outcome, "le": "60.0"}) for outcome in CALLS),
        ("service_a_calls_in_flight", {}),
        ("amqp_connects_total", {}),
        ("amqp_dead_letters_total", {"queue": "{to_configure}"}),
    ],
}
"""What a process has counted once some tasks have ended, and a message that it could not read has come."""


@dataclass(frozen=True)
class Served:
    """The running system and its queues."""

    processes: System
    queues: BrokerSettings


@pytest.fixture(scope="module")
def served(
    amqp_url: str, postgres_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A system on the run's servers, with queues and a database of its own."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        url = runner.run(stack.enter_async_context(new_database(postgres_url, template)))
        queues = runner.run(stack.enter_async_context(own_queues(amqp_url)))
        own = {
            "EXCHANGE": queues.exchange,
            "TO_CONFIGURE_QUEUE": queues.to_configure_queue,
            "CONFIGURED_QUEUE": queues.configured_queue,
        }
        stored = own | {"DATABASE_URL": stack.enter_context(GUARDS.database(url))}
        plan = Plan(
            amqp_url=amqp_url,
            database_url=url,
            service_a={"RESPONSE_DELAY_SECONDS": "0.2", "KNOWN_EQUIPMENT": f"{KNOWN},{FAILING}", "ERROR_RATE": "0.001"},
            service_b=stored | {"REUSE_PORT": "true"} | GUARDS.secrets("service_b"),
            results=stored | GUARDS.secrets("service_b.results"),
            configurator=own | GUARDS.secrets("configurator"),
            tls=GUARDS.certificates is not None,
        )
        with running(tmp_path_factory.mktemp("system"), plan) as system:
            yield Served(system, queues)
        runner.run(stack.aclose())


def client_of(served: Served, **options: Any) -> aiohttp.ClientSession:
    ca = served.processes.ca
    return new_client(ssl.create_default_context(cafile=ca) if ca else None, **options)


async def final(client: aiohttp.ClientSession, web: Process, serial: str) -> tuple[int, bytes]:
    async with client.post(f"{web.url}{PATH}/{serial}", json=BODY) as response:
        assert response.status == 200
        path = response.headers["Location"]
    answers: list[tuple[int, bytes]] = []

    async def ended() -> bool:
        async with client.get(web.url + path) as response:
            answers.append((response.status, await response.read()))
        return answers[-1] != (200, b'{"code":204,"message":"Task is still running"}')

    await eventually(ended)
    return answers[-1]


async def test_success_not_found_and_failure_reach_the_client(served: Served) -> None:
    web = served.processes.service_b
    async with client_of(served) as client:
        answers = await asyncio.gather(*(final(client, web, serial) for serial in (KNOWN, UNKNOWN, FAILING)))
    assert answers == [
        (200, b'{"code":200,"message":"Completed"}'),
        (404, b'{"code":404,"message":"The requested equipment is not found"}'),
        (500, b'{"code":500,"message":"Internal provisioning exception"}'),
    ]


async def test_each_process_tells_of_its_health(served: Served) -> None:
    system = served.processes
    async with client_of(served) as client:
        for process in system.processes:
            async with client.get(f"{process.url}/health/live") as response:
                assert response.status == 200
        for process in (system.service_b, system.results, system.configurator):
            async with client.get(f"{process.url}/health/ready") as response:
                assert (response.status, await response.json()) == (200, {"status": "ready"})


async def test_each_process_shows_its_metrics(served: Served) -> None:
    system, queues = served.processes, served.queues
    web = system.service_b
    connection = await aiormq.connect(patient(queues))
    channel = await connection.channel()
    for queue in (queues.to_configure_queue, queues.configured_queue):
        await channel.basic_publish(b"garbage", routing_key=queue)
    await connection.close()
    async with client_of(served) as client:
        await asyncio.gather(*(final(client, web, serial) for serial in (KNOWN, UNKNOWN, FAILING)))

        async def missing() -> list[str]:
            found = []
            for process in (web, system.results, system.configurator):
                async with client.get(f"{process.url}/metrics") as response:
                    shown = samples(await response.text())
                for name, labels in METRICS[process.module]:
                    filled = {
                        key: value.format(to_configure=queues.to_configure_queue, configured=queues.configured_queue)
                        if key == "queue"
                        else value
                        for key, value in labels.items()
                    }
                    if (name, frozenset(filled.items())) not in shown:
                        found.append(f"{process.module}: {name} {filled}")
            return found

        async def all_there() -> bool:
            absent[:] = await missing()
            return not absent

        absent: list[str] = []
        try:
            await eventually(all_there, every=0.2)
        finally:
            assert absent == []


async def test_web_processes_share_one_port(served: Served, tmp_path: Path) -> None:
    first = served.processes.service_b
    ca = served.processes.ca
    tls = ssl.create_default_context(cafile=ca) if ca else None
    second = Process("service_b", tmp_path, first.environment, name="second", client=tls)
    assert second.port == first.port
    await in_thread(second.start)
    accepted: defaultdict[float, float] = defaultdict(float)
    async with client_of(served, force_close=True) as client:

        async def both_accept() -> bool:
            """Each process has a start time of its own, and counts its own POSTs."""
            async with client.post(f"{first.url}{PATH}/{KNOWN}", json=BODY) as response:
                assert response.status == 200
            async with client.get(f"{first.url}/metrics") as response:
                shown = samples(await response.text())
            started = shown["process_start_time_seconds", frozenset()]
            accepted[started] = shown["tasks_accepted_total", frozenset()]
            return len(accepted) == 2 and all(accepted.values())

        await eventually(both_accept)
        assert await in_thread(second.terminate) == 0
    # A connection that is kept ends with its client; by TLS, one that is given up may outlive the test's event loop.
    async with client_of(served) as client:
        assert await final(client, first, KNOWN) == (200, b'{"code":200,"message":"Completed"}')


async def test_each_process_ends_with_exit_code_0(served: Served) -> None:
    """The last test of the module: nothing runs after it."""
    codes = await asyncio.gather(*(in_thread(process.terminate) for process in served.processes.processes))
    assert codes == [0, 0, 0, 0]
