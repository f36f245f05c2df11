"""Real servers for every test: started once, a migrated database and queues of its own for each test.

`AMQP_URL` and `DATABASE_URL`, where set, name servers to be used instead of private ones.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from uuid import uuid4

import aiormq
import asyncpg
import hypothesis
import pytest
from pydantic import SecretStr
from yarl import URL

from messaging.settings import BrokerSettings
from messaging.topology import dead_letter_exchange, dead_letter_queue
from service_b.database import DatabaseSettings, Pool, create_pool
from tests.fake_a import FakeA
from tests.fake_results import FakeResults
from tests.queues import names, patient, users_for_tests
from tests.system.certificates import Certificates
from tests.system.migrate import Roles, dbmate, migrate, prepare
from tests.system.postgres import PostgreSQL
from tests.system.rabbitmq import RabbitMQ
from tests.system.sharing import shared

# Hypothesis searches without a time limit per example: the machine may be busy with other work.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

DEADLINE_SECONDS = 90.0
"""How long `eventually` waits: a limit for a broken system, never a measure of a working one."""


LONGEST = (
    "e2e/test_recovery.py",
    "configurator/test_consumers.py",
    "e2e/test_maintenance.py",
    "messaging/test_session.py",
    "e2e/test_healing.py",
    "e2e/test_crash_points.py",
    "e2e/test_faults.py",
    "e2e/test_broker_faults.py",
    "e2e/test_holding.py",
    "e2e/test_marked_password.py",
    "e2e/test_sealing.py",
    "e2e/test_attempts.py",
    "chaos/test_chaos.py",
    "chaos/test_fuzz.py",
    "service_a/test_capacity.py",
    "system/test_system.py",
)
"""The files of more than twenty seconds; `make test PYTEST_ARGS=--durations=50` tells which they are."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that none is alone at the end of the run."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(f"{item.path.parent.name}/{item.path.name}", len(places)))


async def eventually(
    condition: Callable[[], Awaitable[object]] | Callable[[], object],
    timeout: float = DEADLINE_SECONDS,
    *,
    every: float = 0.02,
) -> None:
    """Poll, `every` so many seconds, until the condition holds; fail with its last value after `timeout` seconds."""
    until = time.monotonic() + timeout
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return
        assert time.monotonic() < until, f"still {value!r} after {timeout} s"
        await asyncio.sleep(every)


@pytest.fixture(scope="session")
def broker_certificates() -> Certificates | None:
    """What the run's broker shows its clients, if it speaks TLS."""
    return None


@pytest.fixture(scope="session")
def amqp_url(tmp_path_factory: pytest.TempPathFactory, broker_certificates: Certificates | None) -> Iterator[str]:
    """A broker for the whole run, with queues of its own for each test: its start is dear, so all workers share it."""
    if url := os.environ.get("AMQP_URL"):
        yield url
        return

    @contextmanager
    def make() -> Iterator[str]:
        folder = tmp_path_factory.mktemp("rabbitmq")
        with RabbitMQ(folder, definitions=users_for_tests(), tls=broker_certificates) as node:
            yield node.url

    run = tmp_path_factory.getbasetemp()
    with shared((run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / "broker", make) as url:
        yield url


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database server for the whole run: the URL of a database from which others can be made."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    server = PostgreSQL(tmp_path_factory.mktemp("postgres"), durable=False)
    try:
        with server:
            yield server.dsn("postgres")
    finally:
        server.remove()


@pytest.fixture(scope="session")
def roles(postgres_url: str) -> Iterator[Roles]:
    """The roles of this run's databases, with no more rights than in production: the server may be somebody's own."""
    # Names that need quoting wherever they stand in SQL.
    made = Roles(f"Migrator-{uuid4().hex}", f"Service-{uuid4().hex}")
    yield made
    for name in (made.service, made.migrator):
        asyncio.run(_execute(postgres_url, f'DROP ROLE IF EXISTS "{name}"'))


@pytest.fixture(scope="session")
def template(postgres_url: str, roles: Roles) -> Iterator[str]:
    """The name of a migrated database, to be copied for each test."""
    name = f"template_{uuid4().hex}"
    prepare(_database(postgres_url, name), roles)
    yield name
    asyncio.run(_execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))


@asynccontextmanager
async def new_database(postgres_url: str, template: str) -> AsyncIterator[str]:
    """Copy the template: the URL of a migrated database that is dropped at the end."""
    name = f"test_{uuid4().hex}"
    # By way of the log it would cost twice as much.
    await _execute(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield _database(postgres_url, name)
    await _execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database_url(postgres_url: str, template: str) -> AsyncIterator[str]:
    """A migrated database of the test's own: the URL of its administrator."""
    async with new_database(postgres_url, template) as url:
        yield url


def _database(url: str, name: str) -> str:
    return str(URL(url).with_path(f"/{name}"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def shared_database_url(postgres_url: str, roles: Roles) -> Iterator[str]:
    """A migrated database for the many quick tests that need nothing but its tables."""
    url = str(URL(postgres_url).with_path(f"/shared_{uuid4().hex}"))
    prepare(url, roles)
    yield url
    dbmate(url, "drop")


@pytest.fixture
async def emptied_database_url(shared_database_url: str) -> str:
    """The shared database with its tables empty: a fortieth of the price of a new one."""
    connection = await asyncpg.connect(shared_database_url)
    async with asyncio.timeout(30):
        await connection.execute(
            """
            TRUNCATE task, finished, idempotency_key RESTART IDENTITY;
            UPDATE service_a SET answers = DEFAULT, silent_ends = DEFAULT, let_through_at = DEFAULT;
            UPDATE task_clock SET correction = DEFAULT;
            UPDATE maintenance SET holder = DEFAULT, until = DEFAULT
            """
        )
    await connection.close()
    return shared_database_url


@pytest.fixture
def service_url(database_url: str, roles: Roles) -> str:
    """The URL of the test's database as the processes have it, for a role that may do nothing but their work."""
    return roles.service_url(database_url)


@pytest.fixture
async def database(service_url: str) -> DatabaseSettings:
    """Settings for the test's database, as the processes have them."""
    return DatabaseSettings(database_url=SecretStr(service_url), pool_size=5)


@pytest.fixture
async def pool(database: DatabaseSettings) -> AsyncIterator[Pool]:
    """Connections to the test's database, as the processes have them."""
    async with create_pool(database) as opened:
        yield opened


@pytest.fixture
async def sql(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """The administrator's connection, to look at the tables with."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@asynccontextmanager
async def own_queues(amqp_url: str, *, heartbeat: int = 2) -> AsyncIterator[BrokerSettings]:
    """Name an exchange and queues that nobody else uses; what was made under these names is removed at the end."""
    url = SecretStr(str(URL(amqp_url).update_query(heartbeat=heartbeat)))
    settings = BrokerSettings.model_validate({"amqp_url": url, **names(uuid4().hex[:12])})
    yield settings
    connection = await aiormq.connect(patient(settings))
    channel = await connection.channel()
    for queue in (settings.to_configure_queue, settings.configured_queue):
        await channel.queue_delete(queue)
        await channel.queue_delete(dead_letter_queue(queue))
    await channel.exchange_delete(settings.exchange)
    await channel.exchange_delete(dead_letter_exchange(settings.exchange))
    await connection.close()


@pytest.fixture
async def broker(amqp_url: str) -> AsyncIterator[BrokerSettings]:
    """Settings for an exchange and queues of the test's own, with short heartbeats."""
    async with own_queues(amqp_url) as settings:
        yield settings


@pytest.fixture
async def amqp(broker: BrokerSettings) -> AsyncIterator[aiormq.abc.AbstractChannel]:
    """A channel to look into the queues with, and to put things into them."""
    connection = await aiormq.connect(patient(broker))
    yield await connection.channel()
    await connection.close()


@pytest.fixture
async def fake_a() -> AsyncIterator[FakeA]:
    """A service A that answers at once until it is told otherwise."""
    async with FakeA() as fake:
        yield fake


@pytest.fixture
async def fake_results() -> AsyncIterator[FakeResults]:
    """A results process that grants every lease until it is told otherwise."""
    async with FakeResults() as fake:
        yield fake


@pytest.fixture(scope="session")
def own_rabbitmq(
    tmp_path_factory: pytest.TempPathFactory, broker_certificates: Certificates | None
) -> Iterator[RabbitMQ]:
    """A broker of the worker's own, which a test may stop, kill, restart and tell things, and leaves as it was.

    It keeps what was declared: each test has queues of its own (`own_queues`).
    """
    folder = tmp_path_factory.mktemp("own_rabbitmq")
    with RabbitMQ(folder, definitions=users_for_tests(), tls=broker_certificates) as node:
        yield node


@pytest.fixture
async def own_postgres(tmp_path: Path) -> AsyncIterator[PostgreSQL]:
    """A migrated database server that the test may stop, kill and restart."""
    server = PostgreSQL(tmp_path / "postgres")
    try:
        with server:
            migrate(server.dsn())
            yield server
    finally:
        server.remove()
