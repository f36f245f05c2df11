"""Accepting tasks: sealed where there is a key, and while the database cannot be reached."""

import asyncio
import json
from pathlib import Path

import asyncpg
import pytest
from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request
from pydantic import SecretStr
from pytest_aiohttp.plugin import AiohttpClient
from yarl import URL

from messaging.sealing.opener import Opener
from service_b.api import parts
from service_b.app import create_app
from service_b.settings import Settings
from tests.conftest import DEADLINE_SECONDS, eventually
from tests.proxy import Proxy
from tests.seals import make_keys
from tests.system.spawning import free_port

BODY = {"timeoutInSeconds": 14, "parameters": {"username": "admin", "password": "admin", "interfaces": [1]}}


async def post(client: TestClient[Request, Application], serial: str) -> int:
    async with client.post(f"/api/v1/equipment/cpe/{serial}", json=BODY) as response:
        return response.status


async def test_a_task_that_was_refused_while_it_waited_is_not_stored_afterwards(
    aiohttp_client: AiohttpClient, database_url: str, sql: asyncpg.Connection
) -> None:
    """Else each retry of a client's adds one more call of service A."""
    there = URL(database_url)
    async with asyncio.timeout(DEADLINE_SECONDS), Proxy(there.host or "", there.port or 0) as proxy:
        behind = SecretStr(str(there.with_host("127.0.0.1").with_port(proxy.url_port)))
        settings = Settings(amqp_url=SecretStr(f"amqp://127.0.0.1:{free_port()}"), database_url=behind)
        application = create_app(settings)
        client = await aiohttp_client(application)
        assert await post(client, "BEFORE1") == 200
        proxy.blackhole(True)
        # This one is in a statement by the time that the others come: whether it is stored, nobody can know.
        unknown = asyncio.create_task(post(client, "UNKNOWN"))
        await eventually(lambda: application[parts.SUBMISSION]._inserts._batcher._in_flush)
        refused = await asyncio.gather(*(post(client, f"WAITING{retry}") for retry in range(40)))
        assert {await unknown, *refused} == {503}
        proxy.blackhole(False)
        await eventually(lambda: _accepted(client))
        stored = {row["equipment_id"] for row in await sql.fetch("SELECT equipment_id FROM task")}
    assert stored - {"UNKNOWN"} == {"BEFORE1", "AFTER1"}


@pytest.mark.parametrize("is_sealed", [True, False])
async def test_parameters_are_sealed_for_their_task_before_they_are_stored(
    aiohttp_client: AiohttpClient, database_url: str, sql: asyncpg.Connection, tmp_path: Path, *, is_sealed: bool
) -> None:
    keys = make_keys(tmp_path)
    settings = Settings(
        amqp_url=SecretStr(f"amqp://127.0.0.1:{free_port()}"),
        database_url=SecretStr(database_url),
        seal_public_key_file=keys.public if is_sealed else None,
        idempotency_secret=SecretStr("made for this test"),
    )
    client = await aiohttp_client(create_app(settings))
    assert await post(client, "SEALED1") == 200
    [row] = await sql.fetch("SELECT id, parameters FROM task")
    assert ("admin" in row["parameters"]) is not is_sealed
    assert (json.loads(row["parameters"]).keys() == {"sealed"}) is is_sealed
    opened = Opener([keys.private]).open(row["parameters"], row["id"], "SEALED1")
    assert json.loads(opened) == BODY["parameters"]


async def _accepted(client: TestClient[Request, Application]) -> bool:
    return await post(client, "AFTER1") == 200
