"""`POST /leases`, before a real database: what a configurator may ask, and what it is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from itertools import chain
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from aiohttp import web
from pydantic import SecretStr
from structlog.testing import capture_logs
from yarl import URL

from messaging.settings import BrokerSettings
from service_b.database import DatabaseSettings, create_pool
from service_b.results.app import create_app
from service_b.results.leases import MAX_ATTEMPTS, Leases
from service_b.results.settings import Settings
from service_b.tasks import claims
from service_b.tasks.clock import Clock
from tests.clients import Client, serving
from tests.conftest import DEADLINE_SECONDS, eventually
from tests.proxy import Proxy
from tests.queues import metric
from tests.tasks import A, B, C, accept, states

PATH = "/leases"
GOOD = {"taskId": str(uuid4()), "attempt": 1, "lease": str(uuid4())}


def attempts(*ids: UUID, number: int = 1) -> list[dict[str, Any]]:
    """Wishes with leases of their own."""
    return [{"taskId": str(id_), "attempt": number, "lease": str(uuid4())} for id_ in ids]


@asynccontextmanager
async def served(pool: asyncpg.Pool, token: SecretStr | None = None, **limits: float) -> AsyncIterator[Client]:
    leases, app = Leases(pool, Clock(settle_seconds=0), token, **limits), web.Application()
    app.router.add_post(PATH, leases.answer)
    async with serving(app) as client:
        yield client
    await leases.close()


@pytest.fixture
async def client(pool: asyncpg.Pool) -> AsyncIterator[Client]:
    async with served(pool) as client:
        yield client


async def ask(client: Client, asked: object) -> tuple[int, dict[str, Any]]:
    async with client.post(
        PATH, data=BytesIO(asked if isinstance(asked, bytes) else json.dumps(asked).encode())
    ) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


async def granted(client: Client, wishes: list[dict[str, Any]]) -> list[bool | None]:
    status, answer = await ask(client, {"attempts": wishes})
    assert status == 200
    assert list(answer) == ["granted"]
    found: list[bool | None] = answer["granted"]
    return found


async def test_attempts_are_answered_in_order_and_counted(
    pool: asyncpg.Pool, sql: asyncpg.Connection, client: Client
) -> None:
    ids = await accept(pool, A, B, C)
    await claims.claim(pool, 3)
    before = {answer: metric("leases_total", answer=answer) for answer in ("granted", "held", "ended", "taken")}
    wishes = attempts(ids[0], uuid4(), ids[1], ids[2])
    async with sql.transaction():
        await sql.fetch("SELECT FROM task WHERE id = $1 FOR UPDATE", ids[1])
        assert await granted(client, wishes) == [True, False, None, True]
    assert await granted(client, wishes) == [True, False, True, True]
    assert await granted(client, attempts(*ids)) == [False] * 3
    assert await granted(client, []) == []
    assert await states(sql, ids) == ["running"] * 3
    counted = {answer: metric("leases_total", answer=answer) - count for answer, count in before.items()}
    assert counted == {"granted": 5, "held": 1, "ended": 2, "taken": 3}


async def test_many_requests_at_once_get_each_their_own_answers(pool: asyncpg.Pool, client: Client) -> None:
    ids = await accept(pool, *(f"DEVICE{number}" for number in range(200)))
    await claims.claim(pool, 200)
    # Each attempt is wanted by two, of different requests, one of which asks for a task that nobody knows, too.
    wishes = [
        attempts(*ids[start : start + 10], *[uuid4()] * (turn % 2)) for start in range(0, 200, 10) for turn in (0, 1)
    ]
    answers = await asyncio.gather(*(granted(client, each) for each in wishes))
    assert [len(each) for each in answers] == [len(each) for each in wishes]
    got = [wish["taskId"] for wish, answer in zip(chain(*wishes), chain(*answers), strict=True) if answer]
    assert sorted(got) == sorted(map(str, ids))


async def test_a_whole_request_is_one_statement_of_a_thousand_attempts(pool: asyncpg.Pool, client: Client) -> None:
    ids = await accept(pool, *(f"DEVICE{number}" for number in range(MAX_ATTEMPTS)))
    await claims.claim(pool, MAX_ATTEMPTS)
    assert await granted(client, attempts(*ids)) == [True] * MAX_ATTEMPTS


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\xff", 400),
        (b'{"attempts": [', 400),
        (b"[" * 100_000, 400),
        (b"[]", 422),
        (b"null", 422),
        ({}, 422),
        ({"attempts": None}, 422),
        ({"attempts": {}}, 422),
        ({"attempts": [None]}, 422),
        ({"attempts": [GOOD | {"taskId": "no"}]}, 422),
        ({"attempts": [GOOD | {"lease": 7}]}, 422),
        ({"attempts": [GOOD | {"lease": None}]}, 422),
        ({"attempts": [GOOD | {"attempt": 0}]}, 422),
        ({"attempts": [GOOD | {"attempt": 2**31}]}, 422),
        ({"attempts": [GOOD | {"attempt": "1"}]}, 422),
        ({"attempts": [GOOD | {"attempt": True}]}, 422),
        ({"attempts": [GOOD | {"attempt": 1.0}]}, 422),
        ({"attempts": [GOOD, {"taskId": GOOD["taskId"], "attempt": 1}]}, 422),
        ({"attempts": [GOOD] * (MAX_ATTEMPTS + 1)}, 413),
        (b"[" + b" " * 2_000_000 + b"]", 413),
    ],
)
async def test_a_bad_body_is_told_so_and_nothing_begins(client: Client, body: object, status: int) -> None:
    code, answer = await ask(client, body)
    assert (code, answer["code"]) == (status, status)
    assert answer["message"]
    assert await granted(client, [GOOD | {"note": "of a later version"}]) == [False]


async def test_a_client_that_leaves_in_the_middle_of_its_body_harms_nobody(client: Client) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(b"POST /leases HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert await granted(client, attempts(uuid4())) == [False]


@pytest.mark.parametrize("fault", ["silent", "away"])
async def test_while_the_database_is_away_each_is_told_to_come_again_and_then_the_same_lease_is_granted(
    pool: asyncpg.Pool, database: DatabaseSettings, fault: str
) -> None:
    assert database.database_url
    there = URL(database.database_url.get_secret_value())
    ids = await accept(pool, A, B)
    await claims.claim(pool, 2)
    wishes = attempts(*ids)
    async with asyncio.timeout(DEADLINE_SECONDS), Proxy(there.host or "", there.port or 0) as proxy:
        by_proxy = there.with_host("127.0.0.1").with_port(proxy.url_port)
        url = SecretStr(str(by_proxy))
        async with (
            create_pool(database.model_copy(update={"database_url": url})) as distant,
            served(distant, timeout_seconds=0.2) as client,
        ):

            async def is_granted(*asked: dict[str, Any]) -> bool:
                return (await ask(client, {"attempts": asked}))[1].get("granted") == [True] * len(asked)

            await eventually(lambda: is_granted(wishes[0]))
            if fault == "silent":
                proxy.blackhole(True)
            else:
                await proxy.stop()
            async with client.post(PATH, json={"attempts": wishes}) as response:
                assert (response.status, (await response.json())["code"]) == (503, 503)
                assert response.headers["Retry-After"] == "1"
            if fault == "silent":
                proxy.blackhole(False)
            else:
                await proxy.start()

            await eventually(lambda: is_granted(*wishes))


async def test_the_process_serves_leases_beside_its_health(
    pool: asyncpg.Pool, broker: BrokerSettings, database: DatabaseSettings
) -> None:
    [id_] = await accept(pool, A)
    await claims.claim(pool, 1)
    async with serving(create_app(Settings(**broker.model_dump() | database.model_dump()))) as client:
        assert await granted(client, attempts(id_)) == [True]
        async with client.get("/health/live") as response:
            assert response.status == 200


@pytest.mark.parametrize(
    "sent", [None, "Bearer", "Bearer other", "Basic s3cret", "s3cret", "Bearer s3crets", "Bearer \xff"]
)
async def test_who_does_not_know_the_lease_token_is_given_none(
    pool: asyncpg.Pool, sql: asyncpg.Connection, sent: str | None
) -> None:
    [id_] = await accept(pool, A)
    await claims.claim(pool, 1)
    body = json.dumps({"attempts": attempts(id_)}).encode()
    async with served(pool, SecretStr("s3cret")) as client:
        head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        authorization = f"Authorization: {sent}\r\n" if sent else ""
        told, answer = await client.ask_raw(f"{head}{authorization}\r\n".encode("latin-1") + body)
        assert told.startswith(b"HTTP/1.1 401 ")
        assert b"WWW-Authenticate: Bearer" in told
        assert answer == b'{"code":401,"message":"LEASE_TOKEN is needed"}'
        assert await states(sql, [id_]) == ["dispatched"]
        async with client.post(PATH, data=body, headers={"Authorization": "Bearer s3cret"}) as response:
            assert await response.json() == {"granted": [True]}


async def test_leases_that_anybody_may_ask_for_are_told_of(database: DatabaseSettings, broker: BrokerSettings) -> None:
    for lease_token, told in ((None, ["leases.open"]), (SecretStr("s3cret"), [])):
        settings = Settings(**broker.model_dump(), **database.model_dump(), lease_token=lease_token)
        with capture_logs() as logs:
            async with serving(create_app(settings)):
                pass
        assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == told
