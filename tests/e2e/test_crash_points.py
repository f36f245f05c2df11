"""Whatever a process is about when it is killed, after a restart every task ends, and no device is worked on twice."""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
import pytest
from yarl import URL

from tests.conftest import eventually, new_database
from tests.e2e.conftest import Fleet, in_thread
from tests.e2e.crash_at import POINTS
from tests.fake_a import FakeA
from tests.system.processes import Module, Process
from tests.system.spawning import base_environment, spawn

MODULES: dict[str, Module] = {
    "relay": "service_b",
    "configurator": "configurator",
    "results": "service_b.results",
}
TASKS = 5


async def crash(point: str, folder: Path, amqp_url: str, database_url: str) -> dict[str, Any]:
    """Let one process die at the point, start it again, and tell what became of the tasks."""
    module = MODULES[point.split(":", maxsplit=1)[0]]
    unique = uuid4().hex[:8]
    names = {name: f"{name}-{unique}" for name in ("EXCHANGE", "TO_CONFIGURE_QUEUE", "CONFIGURED_QUEUE")}
    fake = FakeA(delay=0.2)
    async with fake, aiohttp.ClientSession() as client:
        environment = {
            "AMQP_URL": str(URL(amqp_url).update_query(heartbeat=1)),
            "DATABASE_URL": database_url,
            "SERVICE_A_GRACE_SECONDS": "2",
        }
        sql = await asyncpg.connect(database_url)
        fleet = Fleet(folder / unique, environment | names, fake, client, sql)
        try:
            others: list[Module] = ["service_b", "service_b.results", "configurator"]
            others.remove(module)
            healthy = await fleet.start(*others)
            doomed = fleet.process(module)
            dying = await in_thread(start_dying, doomed, point)
            # The relay's process answers POSTs too: a second web process takes them, and relays once it is started.
            web = doomed if module == "service_b" else healthy[0]
            await eventually(doomed.is_ready)
            with suppress(aiohttp.ClientError):  # The relay may take its process with it before the last answer.
                await fleet.submit(web, [f"DEVICE{number:05}" for number in range(TASKS)])
            await eventually(lambda: dying.poll() is not None)
            stored = await sql.fetchval("SELECT count(*) FROM task")
            await in_thread(doomed.start)
            await fleet.all_finished()
            return {
                "exit": dying.returncode,
                "stored": stored,
                "statuses": await fleet.statuses(),
                "overlapping": fake.overlapping(),
                "calls": len(fake.ledger),
            }
        finally:
            await fleet.close()
            sql.terminate()


def start_dying(process: Process, point: str) -> Any:
    arguments = [sys.executable, "-m", "tests.e2e.crash_at", process.module, point]
    return spawn(arguments, base_environment() | process.environment, process.log_file)


@pytest.fixture(scope="module")
def crashes(
    amqp_url: str, postgres_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any] | BaseException]:
    """All points, some at a time: each waits for limits to pass most of its time."""
    folder = tmp_path_factory.mktemp("crashes")

    async def all_points() -> list[dict[str, Any] | BaseException]:
        turns = asyncio.Semaphore(4)

        async def one(point: str) -> dict[str, Any]:
            async with turns, new_database(postgres_url, template) as url:
                return await crash(point, folder, amqp_url, url)

        return await asyncio.gather(*map(one, POINTS), return_exceptions=True)

    return dict(zip(POINTS, asyncio.run(all_points()), strict=True))


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(crashes: dict[str, dict[str, Any] | BaseException], point: str) -> None:
    seen = crashes[point]
    if isinstance(seen, BaseException):
        raise seen
    assert seen["exit"] == -9
    assert 1 <= seen["stored"] <= TASKS
    assert seen["statuses"] == {("success", 200): seen["stored"]}
    assert seen["overlapping"] == []
    assert seen["calls"] >= seen["stored"]
