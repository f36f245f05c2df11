"""Processes, servers and the migration may come in any order: the system becomes ready by itself."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import eventually
from tests.e2e.conftest import BODY, PATH, in_thread
from tests.system.migrate import migrate
from tests.system.postgres import PostgreSQL
from tests.system.processes import Process
from tests.system.rabbitmq import RabbitMQ

ORDERS = [
    ("processes", "rabbitmq", "postgres", "migration", "service_a"),
    ("postgres", "processes", "service_a", "migration", "rabbitmq"),
]


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
async def test_any_start_order(tmp_path: Path, order: tuple[str, ...]) -> None:
    rabbitmq = RabbitMQ(tmp_path / "rabbitmq")
    postgres = PostgreSQL(tmp_path / "postgres")
    environment = {"AMQP_URL": rabbitmq.url, "DATABASE_URL": postgres.dsn()}
    service_a = Process("service_a", tmp_path, {"RESPONSE_DELAY_SECONDS": "0.1"})
    web = Process("service_b", tmp_path, environment)
    results = Process("service_b.results", tmp_path, environment)
    configurator = Process("configurator", tmp_path, environment | {"SERVICE_A_URL": service_a.url})
    processes = (web, results, configurator)

    def start_processes() -> None:
        for process in processes:
            process.start(wait=False)

    steps: dict[str, Callable[[], Any]] = {
        "processes": start_processes,
        "rabbitmq": rabbitmq.start,
        "postgres": postgres.start,
        "migration": lambda: migrate(postgres.dsn()),
        "service_a": service_a.start,
    }
    try:
        for step in order:
            if step in ("rabbitmq", "migration"):
                assert not results.is_ready()
            await in_thread(steps[step])
            if step == "processes":
                await asyncio.gather(*(eventually(partial(is_alive, process)) for process in processes))
        for process in processes:
            await in_thread(process.wait_until_ready)
        async with aiohttp.ClientSession() as client:
            async with client.post(f"{web.url}{PATH}/ABC1234", json=BODY) as response:
                assert response.status == 200
                path = response.headers["Location"]

            async def completed() -> bool:
                async with client.get(web.url + path) as response:
                    return await response.read() == b'{"code":200,"message":"Completed"}'

            await eventually(completed)
    finally:
        for process in (*processes, service_a):
            process.close()
        postgres.stop()
        postgres.remove()
        rabbitmq.stop()


async def is_alive(process: Process) -> bool:
    """Whether it serves, although what it needs is not there."""
    try:
        async with aiohttp.request("GET", f"{process.url}/health/live") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
