"""How service B reaches PostgreSQL: what stands in between, what the URL says, and what others have set."""

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from yarl import URL

import service_b.database
from runtime.settings import read_settings
from service_b.database import DatabaseSettings, connect, create_pool, describe
from service_b.database_session import SESSION, UnfitDatabaseError
from service_b.tasks import claims, readiness
from tests.conftest import eventually
from tests.proxy import Proxy
from tests.system.migrate import migrate
from tests.system.processes import Module, Process
from tests.system.spawning import free_port
from tests.tasks import accept, states

SECRET = "hunter2-Secret"

HOSTILE = {
    "search_path": "nowhere",
    "client_encoding": "LATIN1",
    "DateStyle": "German, DMY",
    "IntervalStyle": "iso_8601",
    "TimeZone": "Pacific/Apia",
    "default_transaction_isolation": "serializable",
    "synchronous_commit": "off",
    "statement_timeout": "1",
    "lock_timeout": "1",
    "idle_session_timeout": "1",
    "idle_in_transaction_session_timeout": "1",
    "transaction_timeout": "5s",  # Only when connected we can take it back.
    "jit": "on",
    "log_parameter_max_length_on_error": "-1",
    "plan_cache_mode": "force_custom_plan",
    "enable_hashjoin": "off",
    "enable_indexscan": "off",
    "enable_indexonlyscan": "off",
}
"""Defaults that somebody may have given to a role or a database, for people or for other programs."""
CHOSEN = {"application_name", "enable_seqscan", "enable_bitmapscan", "enable_nestloop", "enable_mergejoin"}
"""What PostgreSQL itself has otherwise than we want it."""


def settings_of(url: str | URL, **query: str) -> DatabaseSettings:
    return DatabaseSettings(database_url=SecretStr(str(URL(url).update_query(query))), pool_size=2)


@asynccontextmanager
async def connected(settings: DatabaseSettings) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(settings)
    yield connection
    await connection.close()


class Pooler:
    """A pooler as it looks to a client that has just connected: it passes on, or refuses, what a session starts with.

    What a client begins with, PostgreSQL's protocol 3.0:  length (4) | 196608 (4) | name 0 value 0 ... 0
    """

    KNOWN = ("user", "database", "client_encoding", "application_name", "DateStyle", "TimeZone")

    def __init__(self, target: URL, *, drops: bool) -> None:
        self.url = target.with_host("127.0.0.1").with_port(free_port())
        self._target = target
        self._drops = drops
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Pooler":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.url.port)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._connect(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(lambda _: writer.close())

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packet = await reader.readexactly(struct.unpack("!i", await reader.readexactly(4))[0] - 4)
        words = packet[4:].rstrip(b"\0").decode().split("\0")
        asked = dict(zip(words[::2], words[1::2], strict=True))
        kept = {name: value for name, value in asked.items() if name in self.KNOWN}
        if not self._drops and (unknown := asked.keys() - kept.keys()):
            fields = f"SFATAL\0C08P01\0Munsupported startup parameter: {min(unknown)}\0\0".encode()
            writer.write(b"E" + struct.pack("!i", len(fields) + 4) + fields)
            await writer.drain()
            return
        passed = packet[:4] + "".join(f"{name}\0{value}\0" for name, value in kept.items()).encode() + b"\0"
        up_reader, up_writer = await asyncio.open_connection(self._target.host, self._target.port)
        up_writer.write(struct.pack("!i", len(passed) + 4) + passed)
        try:
            await asyncio.gather(self._pump(reader, up_writer), self._pump(up_reader, writer))
        finally:
            up_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()


@pytest.fixture
async def hostile_url(database_url: str, sql: asyncpg.Connection) -> AsyncIterator[str]:
    """The test's database, for a role whose defaults are all wrong; half of them are the database's."""
    role, database = f"hostile_{uuid4().hex}", URL(database_url).path[1:]
    await sql.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'hostile'")
    await sql.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    for position, (name, value) in enumerate(HOSTILE.items()):
        whose = f"ROLE {role}" if position % 2 else f"DATABASE {database}"
        values = value if name == "DateStyle" else f"'{value}'"
        await sql.execute(f"ALTER {whose} SET {name} = {values}")
    yield str(URL(database_url).with_user(role).with_password("hostile"))
    await sql.execute(f"DROP OWNED BY {role}")
    await sql.execute(f"DROP ROLE {role}")


async def test_defaults_of_role_and_database_change_nothing(hostile_url: str, sql: asyncpg.Connection) -> None:
    settings = settings_of(hostile_url)
    async with connected(settings) as connection, create_pool(settings) as pool:
        assert SESSION.keys() - HOSTILE.keys() - CHOSEN == set()
        for name, value in SESSION.items():
            assert await connection.fetchval("SELECT current_setting($1)", name) == value
        assert await connection.fetchval("SHOW search_path") == '"$user", public'
        assert await connection.fetchval("SHOW transaction_timeout") == "0"
        ids = await accept(pool, "DEVICE01")
        assert await states(sql, ids) == ["due"]
        assert [dispatch.id for dispatch in await claims.claim(pool, 10)] == ids


@pytest.mark.parametrize(
    "query", [{"search_path": "{}"}, {"options": "-c search_path={}"}], ids=["search_path", "options"]
)
async def test_two_deployments_live_in_two_schemas_of_one_database(
    database_url: str, sql: asyncpg.Connection, query: Mapping[str, str]
) -> None:
    found = {}
    for schema in ("customer_a", "customer_b"):
        await sql.execute(f"CREATE SCHEMA {schema}")
        settings = settings_of(database_url, **{name: value.format(schema) for name, value in query.items()})
        assert settings.database_url
        await asyncio.to_thread(migrate, settings.database_url.get_secret_value())
        async with create_pool(settings) as pool:
            found[schema] = await accept(pool, "DEVICE01")
    for schema, ids in found.items():
        assert [await sql.fetchval(f"SELECT id FROM {schema}.task")] == ids
    assert await sql.fetch("SELECT FROM public.task") == []


async def test_what_is_harmless_in_a_url_is_honoured_or_ignored(database_url: str) -> None:
    query = {
        "application_name": "somebody",
        "channel_binding": "prefer",
        "connect_timeout": "10",
        "fallback_application_name": "somebody",
        "gssencmode": "disable",
        "keepalives": "1",
        "keepalives_idle": "30",
        "load_balance_hosts": "disable",
        "options": "-cwork_mem=8MB",
        "sslmode": "prefer",
        "sslsni": "1",
        "target_session_attrs": "any",
        "temp_buffers": "1MB",
    }
    async with connected(settings_of(database_url, **query)) as connection:
        assert await connection.fetchval("SHOW work_mem") == "8MB"
        assert await connection.fetchval("SHOW temp_buffers") == "1MB"
        assert await connection.fetchval("SHOW application_name") == "service_b"


@pytest.mark.parametrize(
    "option",
    [
        "channel_binding=require",
        "gssencmode=require",
        "hostaddr=10.0.0.1",
        "min_protocol_version=3.2",
        "oauth_issuer=https://issuer",
        "replication=database",
        "require_auth=scram-sha-256",
        "requirepeer=postgres",
        "sslcert=/no/such/file",
        "sslcertmode=require",
        "sslcrldir=/tmp",
        "sslmode=full",
        "sslrootcert=system",
        "sslsni=0",
    ],
)
def test_what_cannot_be_honoured_is_refused_at_start(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://admin:{SECRET}@localhost/test?sslmode=prefer&{option}")
    with pytest.raises(SystemExit) as refused:
        read_settings(DatabaseSettings)
    words = str(refused.value)
    name, _, value = option.partition("=")
    assert words.startswith("wrong settings: DATABASE_URL: must be with")
    assert f" option {name}" in words
    assert "\n" not in words
    assert SECRET not in words
    assert value in ("require", "full") or value not in words


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://admin:{}@localhost/test?sslmode",
        "postgresql://admin:a@{}@localhost/test",
        "postgresql:///test?host=localhost:{}",
        "postgresql:///test?host=localhost&port={}",
        "mysql://{}@a",
    ],
)
def test_a_url_of_another_shape_is_refused_at_start(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url.format(SECRET))
    with pytest.raises(SystemExit) as refused:
        read_settings(DatabaseSettings)
    assert "DATABASE_URL: " in str(refused.value)
    assert "must be postgresql://" in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.update_query(connecttimeout="3"), 'unrecognized configuration parameter "connecttimeout"'),
        (lambda url: url.with_password("wrong"), 'password authentication failed for user "admin"'),
        (lambda url: url.with_path("/nothing"), 'database "nothing" does not exist'),
        (lambda url: url.with_port(1), "Connect call failed ('127.0.0.1', 1)"),
        (lambda url: url.update_query(options="-cdefault_transaction_read_only=on"), "no host takes writes"),
    ],
)
async def test_readiness_says_why_there_is_no_connection(database_url: str, change: object, words: str) -> None:
    assert callable(change)
    async with create_pool(settings_of(change(URL(database_url)))) as pool:
        missing = await readiness.unready(pool)
    assert missing
    assert missing.startswith("database: ")
    assert words in missing


@pytest.fixture
async def latin_url(database_url: str, sql: asyncpg.Connection) -> AsyncIterator[str]:
    """A migrated database whose encoding knows few characters."""
    name = f"latin_{uuid4().hex}"
    url = str(URL(database_url).with_path(f"/{name}"))
    await sql.execute(f"CREATE DATABASE {name} ENCODING LATIN1 LOCALE 'C' TEMPLATE template0")
    await asyncio.to_thread(migrate, url)
    yield url
    await sql.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_database_that_is_not_utf_8_is_named(latin_url: str) -> None:
    with capture_logs() as logs:
        async with create_pool(settings_of(latin_url)) as pool:
            missing = [await readiness.unready(pool) for _ in range(3)]
    assert missing == ["database: its encoding is LATIN1, and must be UTF8"] * 3
    assert [(line["event"], line["reason"]) for line in logs] == [
        ("database.unfit", "its encoding is LATIN1, and must be UTF8")
    ]
    with pytest.raises(UnfitDatabaseError):
        await connect(settings_of(latin_url))


@pytest.mark.parametrize("module", ["service_b", "service_b.results"])
async def test_a_process_says_so_at_its_start(module: Module, latin_url: str, tmp_path: Path) -> None:
    process = Process(module, tmp_path, {"DATABASE_URL": latin_url, "AMQP_URL": "amqp://127.0.0.1:1/"})
    process.start(wait=False)
    try:
        await eventually(lambda: "its encoding is LATIN1, and must be UTF8" in process.log_file.read_text())
    finally:
        process.close()


@pytest.mark.parametrize("drops", [True, False], ids=["drops them", "refuses them"])
async def test_a_pooler_that_does_not_pass_our_settings_on_is_named(database_url: str, drops: bool) -> None:
    async with Pooler(URL(database_url), drops=drops) as pooler:
        settings = settings_of(pooler.url, sslmode="disable")
        async with create_pool(settings) as pool:
            missing = await readiness.unready(pool)
        with pytest.raises((UnfitDatabaseError, asyncpg.ProtocolViolationError)) as unfit:
            await connect(settings)
    assert missing == f"database: {describe(unfit.value)}"
    assert "something in front of PostgreSQL" in missing
    assert "must be in session mode" in missing
    assert ("drops our session's" if drops else "unsupported startup parameter") in missing


async def test_one_that_passes_them_on_is_not_noticed(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pooler, "KNOWN", (*Pooler.KNOWN, *SESSION, "search_path", "tcp_keepalives_idle"))
    async with (
        Pooler(URL(database_url), drops=True) as pooler,
        create_pool(settings_of(pooler.url, sslmode="disable")) as pool,
    ):
        assert await pool.fetchval("SHOW jit") == "off"


async def test_a_connection_that_is_refused_swallows_no_cancellation(
    database: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        working.cancel()  # As by a stop that comes while the refused connection is being closed.
        raise UnfitDatabaseError

    async def work() -> None:
        with suppress(UnfitDatabaseError):
            await pool.execute("SELECT 1")
        await asyncio.sleep(0)

    monkeypatch.setattr(service_b.database, "check_session", refuse)
    async with create_pool(database) as pool:
        working = asyncio.create_task(work())
        await asyncio.wait({working})
    assert working.cancelled()


async def test_a_pool_closes_though_its_database_answers_no_more(service_url: str) -> None:
    url = URL(service_url)
    async with Proxy("127.0.0.1", url.port or 0) as proxy:
        async with create_pool(settings_of(url.with_port(proxy.url_port))) as pool:
            assert await readiness.unready(pool) is None
            proxy.blackhole(True)
        proxy.blackhole(False)
