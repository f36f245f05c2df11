"""Where the benchmark plays: private servers that commit durably, and a database and queues for each part of it."""

import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import aiormq
import asyncpg
import uvloop
from pydantic import SecretStr
from yarl import URL

from messaging.settings import BrokerSettings
from messaging.topology import dead_letter_queue
from service_b.tasks.endings import MOVE
from tests.guards import Guards
from tests.queues import count_ready
from tests.system.migrate import migrate
from tests.system.postgres import PostgreSQL
from tests.system.processes import Module, Process
from tests.system.rabbitmq import RabbitMQ
from tests.system.spawning import free_port

POLL_SECONDS = 0.1

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Sizes:
    """How much of everything: enough for a figure, or (`QUICK`) only enough to see that every part works.

    Many short rounds instead of a few long ones: what disturbs a machine often lasts for seconds.
    """

    rounds: int = 5
    repeats: int = 1
    seconds: float = 3.0
    warmup: float = 1.0
    messages: int = 5000
    rows: int = 25_000
    tasks: int = 20_000
    slots: int = 10_000
    delay_seconds: float = 60.0
    steady_seconds: float = 30.0
    backlogs: tuple[int, ...] = (10_000, 100_000)
    backlog_slots: int = 1000
    pending: int = 1_000_000
    finished: int = 10_000_000
    asked: int = 5000
    pages: int = 1000
    lines: int = 100_000
    looked_up: int = 120_000
    of_one_device: int = 10_000
    drop_rate: float = 500.0
    idle_seconds: float = 20.0
    hour_seconds: float = 72.0
    hour_rate: float = 1000.0
    former: str = ""
    """A commit to compare with."""


QUICK = Sizes(
    rounds=1,
    repeats=1,
    seconds=1.0,
    warmup=0.3,
    messages=1000,
    rows=5000,
    tasks=1000,
    slots=200,
    delay_seconds=2.0,
    steady_seconds=2.0,
    backlogs=(2000, 4000),
    backlog_slots=100,
    pending=20_000,
    finished=100_000,
    asked=500,
    pages=10,
    lines=6000,
    looked_up=3000,
    of_one_device=1000,
    drop_rate=100.0,
    idle_seconds=3.0,
    hour_seconds=12.0,
    hour_rate=200.0,
)


class Room:
    """A migrated database and queues of its own, and the processes that work on them."""

    def __init__(self, stage: "Stage", name: str, stack: ExitStack) -> None:
        self._stack = stack
        self.name = name
        self.folder = stage.folder
        self.amqp_url = stage.rabbitmq.url
        self.database_url = str(URL(stage.postgres.dsn("postgres")).with_path(f"/{name}"))
        self.servers = stage.servers
        self.guards = Guards()
        self.queues = (f"{name}_to_configure", f"{name}_configured")
        self.environment = {
            "DATABASE_URL": self.database_url,
            "AMQP_URL": self.amqp_url,
            "EXCHANGE": name,
            "TO_CONFIGURE_QUEUE": self.queues[0],
            "CONFIGURED_QUEUE": self.queues[1],
        }

    def start(self, module: Module, number: int = 1, **own: str) -> Process:
        """Start a process, and end it with the room."""
        connections = {} if module == "service_a" else self.environment
        own = self.guards.environment(module) | own
        name, client = f"{self.name}.{module}.{number}", self.guards.client()
        process = Process(module, self.folder / "logs", connections | own, name=name, client=client)
        self._stack.callback(process.close)
        process.start()
        return process

    def start_all(self, *, each: int = 1, delay_seconds: float = 0, concurrency: int = 1000) -> list[Process]:
        """Start one service A and `each` of our three processes; the web processes share a port."""
        service_a = self.start("service_a", RESPONSE_DELAY_SECONDS=str(delay_seconds))
        processes = [service_a]
        port = str(free_port())
        results = [self.start("service_b.results", number) for number in range(1, each + 1)]
        others = {"SERVICE_A_URL": service_a.url, "RESULTS_URL": ",".join(process.url for process in results)}
        for number in range(1, each + 1):
            processes += [
                self.start("service_b", number, APP_PORT=port, REUSE_PORT="true"),
                self.start("configurator", number, CONCURRENCY=str(concurrency), **others),
            ]
        return processes + results

    @property
    def broker_settings(self) -> BrokerSettings:
        """The names of its queues, and where they are."""
        to_configure, configured = self.queues
        return BrokerSettings(
            amqp_url=SecretStr(self.amqp_url),
            exchange=self.name,
            to_configure_queue=to_configure,
            configured_queue=configured,
        )

    def sql(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """Run a statement in the room's database."""
        return execute(self.database_url, statement, *arguments)

    def ready_messages(self) -> int:
        """How many messages of tasks no configurator has taken yet."""

        async def ask() -> int:
            connection = await aiormq.connect(self.amqp_url)
            channel = await connection.channel()
            count = await count_ready(channel, self.queues[0])
            await connection.close()
            return count

        return uvloop.run(ask())

    def end(self, condition: str, *arguments: object) -> None:
        """End the tasks that meet a condition, as service A's 200 would."""
        self.sql(
            f"""
            WITH ending AS MATERIALIZED (
                SELECT id, 200 AS code, '200 success' AS reason, NULL AS ended_by, NULL::jsonb AS event
                FROM task WHERE {condition}
            ), {MOVE} SELECT FROM ended
            """,
            *arguments,
        )

    def purge(self) -> None:
        """Empty the queues."""

        async def purge() -> None:
            connection = await aiormq.connect(self.amqp_url)
            channel = await connection.channel()
            for queue in self.queues:
                await channel.queue_purge(queue)
            await connection.close()

        uvloop.run(purge())

    def wait_for_dispatch(self, since: UUID, *, timeout: float = 120) -> None:
        """Wait until the broker has every task that was accepted from `since` on."""
        until = time.monotonic() + timeout
        while self.sql("SELECT FROM task WHERE id >= $1 AND attempt = 0 LIMIT 1", since):
            if time.monotonic() > until:
                raise TimeoutError(f"not all tasks dispatched after {timeout} s")
            time.sleep(POLL_SECONDS)


class Stage:
    """Both servers. PostgreSQL and RabbitMQ are as `make up` has them: every commit and every confirm is durable."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder = folder
        self.sizes = sizes
        self.postgres = PostgreSQL(folder / "postgres")
        self.rabbitmq = RabbitMQ(folder / "rabbitmq")

    @property
    def servers(self) -> dict[str, int]:
        """Their process ids, for a meter."""
        assert self.postgres._process
        assert self.rabbitmq._process
        return {"postgresql": self.postgres._process.pid, "rabbitmq": self.rabbitmq._process.pid}

    def with_broker(self, node: RabbitMQ) -> Self:
        """Make a stage with this broker, and all else as here."""
        other = copy(self)
        other.rabbitmq = node
        return other

    @contextmanager
    def room(self, name: str) -> Iterator[Room]:
        """Open a room; at its end its processes stop, and its database and queues are removed."""
        with ExitStack() as stack:
            room = Room(self, name, stack)
            migrate(room.database_url)
            stack.callback(self._remove, room)
            yield room

    def _remove(self, room: Room) -> None:
        execute(self.postgres.dsn("postgres"), f"DROP DATABASE {room.name} WITH (FORCE)")

        async def delete() -> None:
            connection = await aiormq.connect(room.amqp_url)
            channel = await connection.channel()
            for queue in room.queues:
                await channel.queue_delete(queue)
                await channel.queue_delete(dead_letter_queue(queue))
            await connection.close()

        uvloop.run(delete())


def execute(url: str, statement: str, *arguments: object) -> list[asyncpg.Record]:
    """Run one statement in a connection of its own."""

    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(url)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(statement, *arguments)
            return rows
        finally:
            await connection.close()

    return uvloop.run(run())


def scrape(process: Process, series: str) -> float:
    """Sum a metric's series; `series` is how their names (and perhaps labels) begin."""
    with _opener.open(f"{process.url}/metrics", timeout=30) as response:
        lines: list[str] = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))


def first_id(unix_time: float) -> UUID:
    """Make the least UUIDv7 of a moment: tasks accepted from then on have greater ids."""
    return UUID(int=int(unix_time * 1000) << 80)


def per_task(seconds: Mapping[str, float], count: int) -> dict[str, float]:
    """Turn the CPU seconds of processes into microseconds per task, replicas of one process together."""
    costs: dict[str, float] = {}
    for name, used in seconds.items():
        kind = name.partition("#")[0]
        costs[kind] = costs.get(kind, 0.0) + 1e6 * used / count
    return costs


def pids(processes: list[Process]) -> dict[str, int]:
    """Name processes for a meter; replicas get a number."""
    return {f"{process.module}#{number}": process.pid for number, process in enumerate(processes)}


def parameters() -> dict[str, Any]:
    """Return what a task asks of its device, as the load generator sends it."""
    return {"username": "admin", "password": "admin", "vlan": 534, "interfaces": [1, 2, 3, 4]}
