"""Processes, servers and the migration may come in any order: the system becomes ready by itself."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import eventually
from tests.e2e.conftest import BODY, GUARDS, PATH, Errors, in_thread, new_client, raise_error, run_together
from tests.system.migrate import migrate
from tests.system.postgres import PostgreSQL
from tests.system.processes import Module, Process
from tests.system.rabbitmq import RabbitMQ

ORDERS = {
    " ".join(order): order
    for order in (
        ("processes", "rabbitmq", "postgres", "migration", "service_a"),
        ("postgres", "processes", "service_a", "migration", "rabbitmq"),
    )
}


async def start_in(order: tuple[str, ...], folder: Path) -> None:
    """Start everything in this order; each process lives from its start and is ready once it can be."""
    rabbitmq = RabbitMQ(folder / "rabbitmq", tls=GUARDS.certificates)
    postgres = PostgreSQL(folder / "postgres")
    with GUARDS.database(postgres.dsn()) as database_url:
        await start_on(rabbitmq, postgres, database_url, order, folder)


async def start_on(
    rabbitmq: RabbitMQ, postgres: PostgreSQL, database_url: str, order: tuple[str, ...], folder: Path
) -> None:
    """Do it with these servers; the processes reach the database at this URL."""
    environment = {"AMQP_URL": rabbitmq.url, "DATABASE_URL": database_url}

    def process(module: Module, **own: str) -> Process:
        return Process(module, folder, environment | GUARDS.environment(module) | own, client=GUARDS.client())

    service_a = process("service_a", RESPONSE_DELAY_SECONDS="0.1")
    web = process("service_b")
    results = process("service_b.results")
    configurator = process("configurator", SERVICE_A_URL=service_a.url, RESULTS_URL=results.url)
    processes = (web, results, configurator)

    def start_processes() -> None:
        for process in processes:
            process.start(wait=False)

    steps: dict[str, Callable[[], Any]] = {
        "processes": start_processes,
        "rabbitmq": rabbitmq.start,
        "postgres": postgres.start,
        "migration": partial(migrate, postgres.dsn()),
        "service_a": service_a.start,
    }
    try:
        done: set[str] = set()
        for step in order:
            await in_thread(steps[step])
            done.add(step)
            if step == "processes":
                await asyncio.gather(*(eventually(partial(is_alive, process)) for process in processes))
            if "processes" in done:
                storage, broker = {"postgres", "migration"} <= done, "rabbitmq" in done
                assert storage or not await in_thread(web.is_ready)
                assert (storage and broker) or not await in_thread(results.is_ready)
                assert broker or not await in_thread(configurator.is_ready)
        await asyncio.gather(*(in_thread(process.wait_until_ready) for process in processes))
        async with new_client() as client:
            async with client.post(f"{web.url}{PATH}/ABC1234", json=BODY) as response:
                assert response.status == 200
                path = response.headers["Location"]

            async def completed() -> bool:
                async with client.get(web.url + path) as response:
                    return await response.read() == b'{"code":200,"message":"Completed"}'

            await eventually(completed)
    finally:
        await asyncio.gather(*(in_thread(process.close) for process in (*processes, service_a)))
        await in_thread(postgres.stop)
        await in_thread(postgres.remove)
        await in_thread(rabbitmq.stop)


async def is_alive(process: Process) -> bool:
    """Whether it serves, although what it needs is not there."""
    try:
        async with new_client() as client, client.get(f"{process.url}/health/live") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Errors:
    """All orders at the same time, each with servers of its own."""
    return run_together(
        {name: partial(start_in, order, tmp_path_factory.mktemp("order")) for name, order in ORDERS.items()}
    )


@pytest.mark.parametrize("order", ORDERS)
def test_any_start_order(started: Errors, order: str) -> None:
    raise_error(started, order)
