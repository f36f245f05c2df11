"""What is tortured: private servers, two of each of our processes, service A, and a bad network between them."""

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import aiohttp
import aiormq
import asyncpg
from aiormq.abc import AbstractChannel

from tests.chaos import transitions
from tests.chaos.clock import Clock
from tests.chaos.history import VARIABLE, History
from tests.chaos.network import Network
from tests.chaos.wire import Wire
from tests.system.migrate import migrate
from tests.system.postgres import PostgreSQL
from tests.system.processes import Module, Process
from tests.system.rabbitmq import RabbitMQ
from tests.system.spawning import base_environment, end, free_port, spawn

Role = Literal["web", "results", "configurator"]
MODULES: dict[Role, Module] = {"web": "service_b", "results": "service_b.results", "configurator": "configurator"}
SENDER = "tests.chaos.configurator"

CLOCK, WIRE = "clock", "wire"
"""What a rig may be made with, besides proxies on links: the database's own clock, and service A's own host."""

HEARTBEAT_SECONDS = 2
TIMEOUT_SECONDS = 1
GRACE_SECONDS = 3
LIMIT_SECONDS = TIMEOUT_SECONDS + GRACE_SECONDS
"""A call's time limit."""
TO_CONFIGURE, CONFIGURED = "to_configure", "configured"
ADMIN_SECONDS = 10.0


class ServiceA:
    """The recording service A, in a process of its own."""

    def __init__(self, folder: Path, history: History, wire: Wire | None = None) -> None:
        self._folder = folder
        self._history = history
        self._wire = wire
        self.host = wire.address if wire else "127.0.0.1"
        self.port = free_port()
        self._control = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, and wait until it can be told what to do."""
        arguments = self._wire.enter if self._wire else []
        arguments += [sys.executable, "-m", "tests.chaos.service_a", "--history", str(self._folder / "a.jsonl")]
        arguments += ["--host", self.host, "--port", str(self.port), "--control-port", str(self._control)]
        arguments += ["--limit", str(LIMIT_SECONDS)]
        self._process = await asyncio.to_thread(
            spawn, arguments, base_environment(), self._folder / "logs" / "service_a.log"
        )
        while not await self._told("answer", 0):
            if self._process.poll() is not None:
                raise RuntimeError("service A ended")
            await asyncio.sleep(0.05)

    def kill(self) -> None:
        """End it at once, and its work on all devices with it."""
        if self._process:
            end(self._process, signal.SIGKILL, timeout=10)
            self._history.write("a.killed")

    def pause(self) -> None:
        """Make it stand still. What its kernel has taken for it meanwhile it begins late."""
        if self._process:
            self._history.write("paused", name="service_a")
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        if self._process:
            self._process.send_signal(signal.SIGCONT)
            self._history.write("resumed", name="service_a")

    @property
    def is_running(self) -> bool:
        """Whether it lives."""
        return self._process is not None and self._process.poll() is None

    async def behave(self, mode: str, share: float = 1.0, *, seconds: float = math.inf) -> None:
        """Tell it to misbehave for a share of the calls; give up after so many `seconds`: the way to it may be cut."""
        until = time.monotonic() + seconds
        while not await self._told(mode, share) and time.monotonic() < until:
            await asyncio.sleep(0.05)

    async def _told(self, mode: str, share: float) -> bool:
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http,
                http.post(f"http://{self.host}:{self._control}/", json={"mode": mode, "share": share}) as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the system is, and its limits."""

    replicas: int = 2
    concurrency: int = 150
    max_attempts: int = 10
    deadline_seconds: int = 86400


class Rig:
    """The system under torture, from its start to its end; logs, data and history lie in `folder`."""

    def __init__(self, folder: Path, needs: Iterable[str] = (), shape: Shape = Shape()) -> None:
        wanted = frozenset(needs)
        self.folder = folder
        self.history = History(folder / "rig.jsonl")
        self.wire = Wire() if WIRE in wanted else None
        self.clock = Clock() if CLOCK in wanted else None
        self.service_a = ServiceA(folder, self.history, self.wire)
        self.network = Network(wanted - {CLOCK, WIRE})
        self.broker = RabbitMQ(folder / "rabbitmq")
        environment = self.clock.environment if self.clock else None
        self.database = PostgreSQL(folder / "postgres", durable=False, environment=environment)
        self.processes: dict[Role, list[Process]] = {}
        self.dead: set[Process] = set()
        self.shape = shape

    @property
    def amqp_url(self) -> str:
        """Where the broker really is; several nodes with commas."""
        return self.broker.url

    @property
    def database_url(self) -> str:
        """Where the database really is."""
        return self.database.dsn()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._stop)
        await self.network.close()
        if self.wire:
            self.wire.remove()
        if self.clock:
            self.clock.remove()
        self.history.__exit__(None, None, None)

    async def _start(self) -> None:
        if self.wire:
            await asyncio.to_thread(self.wire.make)
        await asyncio.gather(self.start_database(), self.start_broker(), self.service_a.start())
        async with self.admin() as connection:
            await transitions.install(connection)
        for role, module in MODULES.items():
            self.processes[role] = [
                Process(module, self.folder / "logs", self.environment(role), name=f"{role}_{number + 1}")
                for number in range(self.shape.replicas)
            ]
        for process in self.processes["configurator"]:
            process.module = SENDER  # type: ignore[assignment]
        await self.network.open()
        for process in self.everyone():
            await asyncio.to_thread(process.start, wait=False)
        for process in self.everyone():
            await asyncio.to_thread(process.wait_until_ready)

    async def start_database(self) -> None:
        """Start the database and put the schema in."""
        await asyncio.to_thread(self.database.start)
        await asyncio.to_thread(migrate, self.database.dsn())

    async def start_broker(self) -> None:
        """Start the broker."""
        await asyncio.to_thread(self.broker.start)

    def stop_servers(self) -> None:
        """Stop broker and database."""
        self.broker.stop()
        self.database.stop()
        self.database.remove()

    def process_amqp_url(self, role: Role) -> str:
        """Where a process finds the broker."""
        (address,) = self.network.addresses(f"{role}-broker", ("127.0.0.1", self.broker.port))
        return f"amqp://guest:guest@{address}/?heartbeat={HEARTBEAT_SECONDS}"

    def process_database_url(self, role: Role) -> str:
        """Where a process finds the database."""
        (address,) = self.network.addresses(f"{role}-database", ("127.0.0.1", self.database.port))
        return f"postgresql://{self.database.user}:{self.database.password}@{address}/{self.database.database}"

    def environment(self, role: Role) -> dict[str, str]:
        """A process's variables."""
        own: dict[str, Any]
        match role:
            case "web":
                own = {
                    "DATABASE_URL": self.process_database_url(role),
                    "SERVICE_A_GRACE_SECONDS": GRACE_SECONDS,
                    "TASK_DEADLINE_SECONDS": self.shape.deadline_seconds,
                    "POOL_SIZE": 5,
                }
            case "results":
                own = {
                    "DATABASE_URL": self.process_database_url(role),
                    "MAX_ATTEMPTS": self.shape.max_attempts,
                    "RETRY_BASE_SECONDS": 0.2,
                    "RETRY_MAX_SECONDS": 2,
                    "POOL_SIZE": 3,
                }
            case "configurator":
                (a,) = self.network.addresses("configurator-a", (self.service_a.host, self.service_a.port))
                servers = [("127.0.0.1", process.port) for process in self.processes["results"]]
                results = self.network.addresses("configurator-results", *servers)
                own = {
                    VARIABLE: self.folder / "leases.jsonl",
                    "RESULTS_URL": ",".join(f"http://{address}" for address in results),
                    "SERVICE_A_URL": f"http://{a}",
                    "CONCURRENCY": self.shape.concurrency,
                    "SHUTDOWN_GRACE_SECONDS": 20,
                }
        return {name: str(value) for name, value in own.items()} | {"AMQP_URL": self.process_amqp_url(role)}

    def everyone(self) -> list[Process]:
        """All of our processes."""
        return [process for processes in self.processes.values() for process in processes]

    def pause(self, process: Process) -> None:
        """Make a process of ours stand still."""
        self.history.write("paused", name=process.name)
        process.pause()

    def resume(self, process: Process) -> None:
        """Let it go on."""
        process.resume()
        self.history.write("resumed", name=process.name)

    def kill(self, process: Process) -> None:
        """SIGKILL a process of ours."""
        self.dead.add(process)
        process.kill()

    def revive(self, process: Process) -> None:
        """Start a killed process again; its servers may be away."""
        if process in self.dead:
            self.dead.discard(process)
            process.start(wait=False)

    async def restore(self) -> None:
        """Heal whatever a nemesis could not heal itself."""
        for process in self.everyone():
            if not process.is_running:
                self.history.write("found.dead", name=process.name)
                self.dead.add(process)
                self.revive(process)
            else:
                self.resume(process)
        self.network.heal()
        if self.wire:
            self.wire.silence(False)
        await self.service_a.behave("answer", 0)

    @asynccontextmanager
    async def admin(self, database: str | None = None) -> AsyncIterator[asyncpg.Connection]:
        """A connection of the observers' own to the database, past the bad network; waits until there is one."""
        connection: asyncpg.Connection | None = None
        while connection is None:
            url = self.database_url if database is None else self.database.dsn(database)
            try:
                connection = await asyncpg.connect(url, timeout=5, command_timeout=60)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(0.1)
        try:
            yield connection
        finally:
            connection.terminate()

    @asynccontextmanager
    async def amqp(self) -> AsyncIterator[AbstractChannel]:
        """A channel of the observers' own to the broker, past the bad network."""
        async with asyncio.timeout(ADMIN_SECONDS):
            connection = await aiormq.connect(self.amqp_url.split(",")[0])
            channel = await connection.channel()
        try:
            yield channel
        finally:
            with suppress(Exception):
                async with asyncio.timeout(2):
                    await connection.close()

    def exit_codes(self) -> dict[str, int]:
        """Terminate our processes together and tell their exit codes."""
        running = [process for process in self.everyone() if process.is_running]
        for process in running:
            process.resume()
            process.signal(signal.SIGTERM)
        codes = {}
        for process in running:
            try:
                codes[process.name] = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[process.name] = -9
        return codes

    def _stop(self) -> None:
        self.exit_codes()
        self.service_a.kill()
        self.stop_servers()


def server_pids(server: PostgreSQL | RabbitMQ) -> list[int]:
    """A server's process and its children."""
    process = server._process
    if process is None or process.poll() is not None:
        return []
    found, queue = [], [process.pid]
    while queue:
        pid = queue.pop()
        found.append(pid)
        with suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            queue += [int(child) for child in children]
    return found


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal processes that may have ended meanwhile."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


async def until(condition: Callable[[], Any], timeout: float) -> bool:
    """Poll an async condition up to `timeout` seconds; an error counts as not yet."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            if await condition():
                return True
        await asyncio.sleep(0.1)
    return False


ROLES: tuple[Role, ...] = get_args(Role)
