"""Our processes as they run in production, around a fake A, on servers that the test may break."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import aiohttp
import asyncpg
import pytest
from yarl import URL

from tests.conftest import eventually
from tests.fake_a import FakeA
from tests.system.processes import Module, Process
from tests.system.spawning import free_port

T = TypeVar("T")

PATH = "/api/v1/equipment/cpe"
BODY = {"timeoutInSeconds": 1, "parameters": {"username": "admin", "password": "admin", "interfaces": [1]}}

_threads = ThreadPoolExecutor(16, "system")


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run what blocks (starting and ending processes and servers) beside the event loop that the fake A lives on."""
    return await asyncio.get_running_loop().run_in_executor(_threads, function, *arguments)


@dataclass
class Fleet:
    """Processes of one system, which share a broker, a database and a service A."""

    logs: Path
    environment: dict[str, str]
    fake_a: FakeA
    client: aiohttp.ClientSession
    sql: asyncpg.Connection
    processes: list[Process] = field(default_factory=list)

    def process(self, module: Module, **environment: str) -> Process:
        """Make one more process; it is not started yet."""
        name = f"{module}-{len(self.processes)}"
        own = {"SERVICE_A_URL": self.fake_a.url} if module == "configurator" else {}
        made = Process(module, self.logs, self.environment | own | environment, name=name)
        self.processes.append(made)
        return made

    async def start(self, *modules: Module, **environment: str) -> list[Process]:
        """Start processes and wait until they are ready."""
        made = [self.process(module, **environment) for module in modules]
        await asyncio.gather(*(in_thread(process.start) for process in made))
        return made

    async def submit(self, web: Process, serials: Iterable[str]) -> list[str]:
        """POST a task for each device at once; return the paths of the tasks."""
        return await asyncio.gather(*(self.submit_one(web, serial) for serial in serials))

    async def submit_one(self, web: Process, serial: str) -> str:
        """POST one task; return its path."""
        async with self.client.post(f"{web.url}{PATH}/{serial}", json=BODY) as response:
            assert response.status == 200, await response.text()
            return response.headers["Location"]

    async def code(self, web: Process, path: str) -> int:
        """GET a task's state: 204 while it runs."""
        async with self.client.get(web.url + path) as response:
            return int((await response.json())["code"])

    async def all_finished(self, timeout: float = 150) -> None:
        """Wait until no task is pending."""
        await eventually(lambda: self.sql.fetchval("SELECT count(*) = 0 FROM task WHERE status = 'pending'"), timeout)

    async def statuses(self) -> dict[tuple[str, int | None], int]:
        """Count the tasks by status and code."""
        rows = await self.sql.fetch("SELECT status, code, count(*) FROM task GROUP BY status, code")
        return {(row["status"], row["code"]): row["count"] for row in rows}

    async def attempts(self) -> dict[UUID, int]:
        """Tell how often each task was dispatched."""
        return {row["id"]: row["attempt"] for row in await self.sql.fetch("SELECT id, attempt FROM task")}

    async def calls(self, count: int) -> None:
        """Wait until A has seen so many calls."""
        await eventually(lambda: len(self.fake_a.ledger) >= count)

    async def metric(self, process: Process, name: str) -> float:
        """Read one metric; 0 where it is not there yet."""
        async with self.client.get(f"{process.url}/metrics") as response:
            for line in (await response.text()).splitlines():
                if line.startswith(f"{name} "):
                    return float(line.rsplit(" ", 1)[1])
        return 0.0

    async def close(self) -> None:
        """End what still runs."""
        await asyncio.gather(*(in_thread(process.close) for process in self.processes))


FleetMaker = Callable[..., Any]


@pytest.fixture
async def make_fleet(tmp_path: Path, fake_a: FakeA) -> AsyncIterator[Callable[..., Any]]:
    """Make a fleet on a broker and a database: `await make_fleet(amqp_url, database_url, GRACE..., ...)`."""
    fleets: list[Fleet] = []

    async def make(amqp_url: str, database_url: str, *, heartbeat: int = 2, **environment: str) -> Fleet:
        urls = [str(URL(url).update_query(heartbeat=heartbeat)) for url in amqp_url.split(",")]
        fleet = Fleet(
            tmp_path / "logs",
            {"AMQP_URL": ",".join(urls), "DATABASE_URL": database_url, "SERVICE_A_GRACE_SECONDS": "2"} | environment,
            fake_a,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)),
            await asyncpg.connect(database_url),
        )
        fleets.append(fleet)
        return fleet

    yield make
    for fleet in fleets:
        await fleet.close()
        await fleet.client.close()
        fleet.sql.terminate()


@pytest.fixture
async def fleet(
    make_fleet: Callable[..., Any], amqp_url: str, database_url: str, request: pytest.FixtureRequest
) -> Fleet:
    """A fleet on the run's broker, with queues of its own, and a database of its own."""
    unique = f"{request.node.name[:40]}-{free_port()}"
    names = {name: f"{name}-{unique}" for name in ("EXCHANGE", "TO_CONFIGURE_QUEUE", "CONFIGURED_QUEUE")}
    made: Fleet = await make_fleet(amqp_url, database_url, **names)
    return made
