"""Our processes as they run in production, around a fake A, on servers that the test may break."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import aiohttp
import aiormq
import asyncpg
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from messaging.settings import BrokerSettings
from tests.conftest import eventually, new_database, own_queues
from tests.fake_a import Behaviour, FakeA, answer
from tests.guards import of_this_run
from tests.queues import as_user, declare, patient
from tests.system.certificates import Certificates
from tests.system.migrate import Roles
from tests.system.nursery import Nursery
from tests.system.processes import Module, Process
from tests.system.spawning import free_port

T = TypeVar("T")

PATH = "/api/v1/equipment/cpe"
BODY = {"timeoutInSeconds": 1, "parameters": {"username": "admin", "password": "admin", "interfaces": [1]}}
FINISH_SECONDS = 150.0
USERS: dict[Module, str] = {"service_b": "web", "service_b.results": "results", "configurator": "configurator"}
GRACE_SECONDS = 4
"""Together with the body's `timeoutInSeconds`, a call's time limit: short, since what a crash loses waits for it."""

GUARDS = of_this_run()
NURSERY = Nursery()

_threads = ThreadPoolExecutor(16, "system")


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run what blocks (starting and ending processes and servers) beside the event loop that the fake A lives on."""
    return await asyncio.get_running_loop().run_in_executor(_threads, function, *arguments)


def serials(count: int, prefix: str = "DEVICE") -> list[str]:
    """Name so many devices."""
    return [f"{prefix}{number:05}" for number in range(count)]


def held(until: asyncio.Event) -> Behaviour:
    """Work until the test lets go, then succeed."""

    async def behave(fake: FakeA, request: web.Request) -> web.StreamResponse:
        await until.wait()
        return await answer()(fake, request)

    return behave


@dataclass
class Fleet:
    """Processes of one system, which share a broker, a database and a service A."""

    logs: Path
    queues: BrokerSettings
    environment: dict[str, str]
    fake_a: FakeA
    client: aiohttp.ClientSession
    sql: asyncpg.Connection
    processes: list[Process] = field(default_factory=list)
    users: Mapping[Module, str] = field(default_factory=dict)
    """As whom each process connects to the broker, if not as its administrator."""
    results_ports: list[int] = field(default_factory=lambda: [free_port(), free_port()])
    """Where its results processes will listen: a configurator may be there before them."""
    nursery: Nursery | None = NURSERY
    """What its processes are forked by; by `None` they are started as in production."""

    def process(self, module: Module, **environment: str) -> Process:
        """Make one more process; it is not started yet."""
        name = f"{module}-{len(self.processes)}"
        own: dict[str, str] = {}
        if module == "configurator":
            urls = [f"http://127.0.0.1:{port}" for port in self.results_ports]
            own = {"SERVICE_A_URL": self.fake_a.url, "RESULTS_URL": ",".join(urls)}
        elif module == "service_b.results":
            earlier = sum(process.module == module for process in self.processes)
            own = {"HEALTH_PORT": str(self.results_ports[earlier])}
        if module in self.users:
            own["AMQP_URL"] = as_user(self.environment["AMQP_URL"], self.users[module])
        variables = GUARDS.environment(module) | self.environment | own | environment
        made = Process(module, self.logs, variables, name=name, client=GUARDS.client(), nursery=self.nursery)
        self.processes.append(made)
        return made

    async def start(self, *modules: Module, **environment: str) -> list[Process]:
        """Start processes and wait until they are ready."""
        made = [self.process(module, **environment) for module in modules]
        await asyncio.gather(*(in_thread(process.start) for process in made))
        return made

    async def submit(self, web_process: Process, devices: Iterable[str]) -> list[str]:
        """POST a task for each device at once; return the paths of the tasks."""
        return await asyncio.gather(*(self.submit_one(web_process, serial) for serial in devices))

    async def submit_one(self, web_process: Process, serial: str) -> str:
        """POST one task; return its path."""
        async with self.client.post(f"{web_process.url}{PATH}/{serial}", json=BODY) as response:
            assert response.status == 200, await response.text()
            return response.headers["Location"]

    async def code(self, web_process: Process, path: str) -> int:
        """GET a task's state: 204 while it runs."""
        async with self.client.get(web_process.url + path) as response:
            return int((await response.json())["code"])

    async def codes(self, web_process: Process, paths: Sequence[str], timeout: float = FINISH_SECONDS) -> list[int]:
        """GET the tasks' states until all have ended; return what each one's client is told."""
        codes: list[int] = []

        async def all_ended() -> bool:
            while len(codes) < len(paths):
                code = await self.code(web_process, paths[len(codes)])
                if code == 204:
                    return False
                codes.append(code)
            return True

        await eventually(all_ended, timeout, every=0.1)
        return codes

    async def final_codes(self, web_process: Process, paths: Sequence[str]) -> list[int]:
        """Do the same for all tasks that there are."""
        codes = await self.codes(web_process, paths)
        assert await self.sql.fetchval("SELECT count(*) FROM task") == 0
        return codes

    async def calls(self, count: int) -> None:
        """Wait until A has seen so many calls."""
        await eventually(lambda: len(self.fake_a.ledger) >= count)

    async def metric(self, process: Process, name: str, **labels: str) -> float | None:
        """Read one sample of a process's metrics; None while there is no such one."""
        async with self.client.get(f"{process.url}/metrics") as response:
            return samples(await response.text()).get((name, frozenset(labels.items())))

    async def close(self) -> None:
        """End what still runs."""
        await asyncio.gather(*(in_thread(process.close) for process in self.processes))


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Read what `/metrics` says, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@asynccontextmanager
async def open_fleet(
    logs: Path, queues: BrokerSettings, database_url: str, fake_a: FakeA, *, users: bool = False, **environment: str
) -> AsyncIterator[Fleet]:
    """Prepare a system without processes yet; those that are started in it end with it.

    `database_url` is the administrator's; the processes connect by another one if `DATABASE_URL` says so. With `users`
    each is a user of its own of the broker, who may not declare anything.
    """
    assert queues.amqp_url
    own = {
        "AMQP_URL": queues.amqp_url.get_secret_value(),
        "EXCHANGE": queues.exchange,
        "TO_CONFIGURE_QUEUE": queues.to_configure_queue,
        "CONFIGURED_QUEUE": queues.configured_queue,
        "SERVICE_A_GRACE_SECONDS": str(GRACE_SECONDS),
    } | environment
    with GUARDS.database(environment.get("DATABASE_URL", database_url)) as guarded_url:
        own["DATABASE_URL"] = guarded_url
        async with new_client(limit=0) as client:
            fleet = Fleet(logs, queues, own, fake_a, client, await asyncpg.connect(database_url))
            if users and "AMQP_URL" not in os.environ:
                fleet.users = USERS
                async with await aiormq.connect(patient(queues)) as connection:
                    await declare(await connection.channel(), queues)
            try:
                yield fleet
            finally:
                await fleet.close()
                fleet.sql.terminate()


def new_client(tls: ssl.SSLContext | None = None, **options: Any) -> aiohttp.ClientSession:
    """Make a client, as the run's guards want it; `options` of its connector."""
    connector = aiohttp.TCPConnector(ssl=tls or GUARDS.client() or True, **options)
    return aiohttp.ClientSession(connector=connector, headers=GUARDS.headers)


def new_fake_a(delay: float = 0) -> FakeA:
    """Make a service A, as the run's guards want it."""
    return FakeA(delay, tls=GUARDS.server("service_a"))


@pytest.fixture
async def fake_a() -> AsyncIterator[FakeA]:
    """A service A that answers at once until it is told otherwise."""
    async with new_fake_a() as fake:
        yield fake


@pytest.fixture(scope="session")
def broker_certificates() -> Certificates | None:
    """What the run's broker shows its clients."""
    return GUARDS.certificates


@pytest.fixture
async def fleet(
    tmp_path: Path, broker: BrokerSettings, database_url: str, service_url: str, fake_a: FakeA
) -> AsyncIterator[Fleet]:
    """A fleet on the run's servers, with queues and a database of its own."""
    opened = open_fleet(tmp_path / "logs", broker, database_url, fake_a, users=True, DATABASE_URL=service_url)
    async with opened as made:
        yield made


Scenario = Callable[[Fleet], Awaitable[None]]
Errors = Mapping[str, BaseException | None]


def run_together(scenarios: Mapping[str, Callable[[], Awaitable[None]]]) -> Errors:
    """Run scenarios that spend their time waiting at the same time, and keep each one's error for its own test."""

    async def run() -> list[BaseException | None]:
        return await asyncio.gather(*(scenario() for scenario in scenarios.values()), return_exceptions=True)

    return dict(zip(scenarios, asyncio.run(run()), strict=True))


@dataclass(frozen=True, slots=True)
class Stage:
    """The run's servers, for scenarios that wait most of their time: they are played together."""

    amqp_url: str
    postgres_url: str
    template: str
    roles: Roles
    folder: Path

    def play(
        self,
        scenarios: Mapping[str, Scenario],
        *,
        at_once: int,
        heartbeat: int = 2,
        users: bool = False,
        amqp_urls: Mapping[str, str] = MappingProxyType({}),
    ) -> Errors:
        """Play scenarios, each with a system of its own, `at_once` of them at the same time; return each one's error.

        `amqp_urls`: for those that have a broker of their own.
        """
        running = asyncio.Semaphore(at_once)

        async def one(number: int, name: str, scenario: Scenario) -> None:
            async with (
                running,
                new_database(self.postgres_url, self.template) as database_url,
                own_queues(amqp_urls.get(name, self.amqp_url), heartbeat=heartbeat) as queues,
                new_fake_a() as fake_a,
                open_fleet(
                    self.folder / f"{number}",
                    queues,
                    database_url,
                    fake_a,
                    users=users,
                    DATABASE_URL=self.roles.service_url(database_url),
                ) as fleet,
            ):
                await scenario(fleet)

        return run_together(
            {name: partial(one, number, name, scenario) for number, (name, scenario) in enumerate(scenarios.items())}
        )


@pytest.fixture(scope="module")
def stage(
    amqp_url: str, postgres_url: str, template: str, roles: Roles, tmp_path_factory: pytest.TempPathFactory
) -> Stage:
    """A stage whose systems log into folders of their own."""
    return Stage(amqp_url, postgres_url, template, roles, tmp_path_factory.mktemp("stage"))


def raise_error(errors: Errors, scenario: str) -> None:
    """Fail as the scenario did."""
    if error := errors[scenario]:
        raise error
