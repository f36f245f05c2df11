"""A password never leaves its task: not in a log line, not in a metric, not in an answer, whatever goes wrong."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest
from pydantic import SecretStr

from messaging.settings import BrokerSettings
from service_b.database import DatabaseSettings, create_pool
from service_b.tasks.inserts import insert
from tests.conftest import eventually
from tests.e2e.conftest import GUARDS
from tests.system.postgres import PostgreSQL
from tests.system.processes import Process
from tests.tasks import new_task

SECRET = "hunter2-Secret"
DEVICE = "/api/v1/equipment/cpe/ABC1234"
PARAMETERS = {"username": "admin", "password": SECRET, "interfaces": [1]}
GOOD = json.dumps({"timeoutInSeconds": 14, "parameters": PARAMETERS}).encode()


@pytest.fixture(params=["json", "text"])
async def web(
    request: pytest.FixtureRequest, tmp_path: Path, broker: BrokerSettings, service_url: str
) -> AsyncIterator[Process]:
    """The web process, as talkative as it can be."""
    environment = {
        "AMQP_URL": str(broker.nodes[0]),
        "EXCHANGE": broker.exchange,
        "TO_CONFIGURE_QUEUE": broker.to_configure_queue,
        "CONFIGURED_QUEUE": broker.configured_queue,
        "DATABASE_URL": service_url,
        "LOG_LEVEL": "DEBUG",
        "LOG_FORMAT": request.param,
    }
    process = Process("service_b", tmp_path, environment)
    await asyncio.to_thread(process.start)
    yield process
    await asyncio.to_thread(process.close)


async def talk(web: Process, raw: bytes) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", web.port)
    writer.write(raw)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.decode()


@pytest.mark.skipif(bool(GUARDS.certificates), reason="what goes wrong before TLS ends is another test's")
async def test_a_password_is_seen_nowhere(web: Process, sql: asyncpg.Connection) -> None:
    seen: list[str] = []
    async with aiohttp.ClientSession(web.url) as http:

        async def post(body: bytes, status: int, path: str = DEVICE) -> None:
            async with http.post(path, data=body) as response:
                seen.append(f"{response.headers} {await response.text()}")
                assert response.status == status

        await post(GOOD, 200)
        await eventually(lambda: sql.fetchval("SELECT attempt FROM task"))  # Relayed.
        await post(GOOD[:-1], 400)
        await post(GOOD.replace(b"[1]", b'"%s"' % SECRET.encode()), 422)
        await post(GOOD.replace(b'"admin"', b'{"%s":"\\u0000"}' % SECRET.encode()), 422)
        await post(GOOD, 404, f"/api/v1/equipment/cpe/{SECRET}")
        await post(GOOD, 404, f"/{SECRET}")
        await post(GOOD, 405, f"{DEVICE}/task/{SECRET}")
        await post(GOOD + b" " * 65_536, 413)
        # A row that the table refuses: PostgreSQL quotes it in its error.
        await sql.execute("ALTER TABLE task ADD CONSTRAINT never CHECK (timeout_seconds <> 14) NOT VALID")
        await post(GOOD, 500)
        # A bug far inside: this one PostgreSQL raises itself.
        await sql.execute("ALTER TABLE task RENAME TO away")
        await post(GOOD, 503)
        for path in ("/metrics", "/health/ready", "/api/v1/"):
            async with http.get(path) as response:
                seen.append(await response.text())
    for raw in (
        f"{SECRET}\r\n\r\n",
        f"GET / HTTP/1.1\r\n{SECRET}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: {SECRET}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: a\r\nExpect: {SECRET}\r\nConnection: close\r\n\r\n",
        f"POST {DEVICE} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{SECRET}\r\n\r\n",
    ):
        answer = await talk(web, raw.encode())
        assert answer.startswith("HTTP/1.")
        seen.append(answer)
    await asyncio.to_thread(web.close)
    log = web.log_file.read_text()
    assert "storage.refused" in log
    assert "storage.unavailable" in log
    assert [text for text in [*seen, *log.splitlines()] if SECRET in text] == []


async def test_postgresql_writes_no_password_into_its_log(own_postgres: PostgreSQL) -> None:
    settings = DatabaseSettings(database_url=SecretStr(own_postgres.dsn()))
    async with create_pool(settings) as pool:
        await pool.execute("ALTER SYSTEM SET log_min_duration_statement = 0")
        await pool.execute("SELECT pg_reload_conf()")
        await eventually(lambda: pool.fetchval("SELECT current_setting('log_min_duration_statement') = '0'"))
        task = new_task("ABC1234", timeout_seconds=14, parameters=json.dumps(PARAMETERS))
        broken = new_task("ABC1234", timeout_seconds=14, parameters=json.dumps(PARAMETERS)[:-1])
        await insert(pool, [task], grace_seconds=0, deadline_seconds=60)
        with pytest.raises(asyncpg.DataError):
            await insert(pool, [broken], grace_seconds=0, deadline_seconds=60)
        await pool.execute("ALTER TABLE task ADD CONSTRAINT never CHECK (timeout_seconds <> 14) NOT VALID")
        with pytest.raises(asyncpg.CheckViolationError):
            await insert(pool, [task], grace_seconds=0, deadline_seconds=60)
    log = own_postgres.log_file.read_text()
    assert "duration: " in log
    assert "invalid input syntax for type json" in log
    assert 'violates check constraint "never"' in log
    assert [line for line in log.splitlines() if SECRET in line] == []
