"""Many tasks in one request, on the real web application and a real database."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
from pydantic import SecretStr
from structlog.testing import capture_logs

from runtime.streams import BATCH, WINDOW
from service_b.api import bulk
from service_b.api.bulk import KIND
from service_b.app import create_app
from service_b.database import DatabaseSettings
from tests.clients import Client, requests_at_work, serving
from tests.conftest import eventually
from tests.service_b.api import test_routes
from tests.service_b.api.test_access import TokensFile
from tests.service_b.api.test_routes import PARAMETERS, settings_for
from tests.service_b.api.test_tasks import assert_problem
from tests.system.spawning import free_port

client = test_routes.client

TASKS = "/api/v1/tasks"
HEADERS = {"Content-Type": KIND}


def line(device: str = "ABC1234", **others: Any) -> bytes:
    return json.dumps({"equipmentId": device, "timeoutInSeconds": 14, "parameters": PARAMETERS} | others).encode()


class Stream:
    """A request whose lines are sent, and whose answers are read, one by one."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.response: aiohttp.ClientResponse

    async def body(self) -> AsyncIterator[bytes]:
        yield b" "  # aiohttp sends the head with the first of the body.
        while (sent := await self.lines.get()) is not None:
            yield sent

    def send(self, *lines: bytes) -> None:
        self.lines.put_nowait(b"".join(each + b"\n" for each in lines))

    def end(self) -> None:
        self.lines.put_nowait(None)

    async def answer(self) -> dict[str, Any]:
        async with asyncio.timeout(30):
            return dict(json.loads(await self.response.content.readline()))

    async def rest(self) -> list[dict[str, Any]]:
        async with asyncio.timeout(60):
            return [json.loads(each) async for each in self.response.content]


@asynccontextmanager
async def streaming(client: Client, **headers: str) -> AsyncIterator[Stream]:
    stream = Stream()
    async with client.post(TASKS, data=stream.body(), headers=HEADERS | headers) as stream.response:
        assert (stream.response.status, stream.response.content_type) == (200, KIND)
        yield stream
        stream.end()


async def post(client: Client, *lines: bytes) -> list[dict[str, Any]]:
    async with client.post(TASKS, data=b"\n".join(lines), headers=HEADERS) as response:
        assert "Server" not in response.headers
        return [json.loads(each) for each in (await response.read()).splitlines()]


async def test_each_line_is_answered_in_its_place_and_a_bad_one_fails_alone(
    client: Client, sql: asyncpg.Connection
) -> None:
    told = await post(
        client,
        line("DEVICE01", externalId="order-1"),
        b"",
        b"{nonsense",
        line("no serial"),
        b" \r",
        line("DEVICE02", unknown=1),
        line("DEVICE03") + b" " * 64 * 1024,
        line("DEVICE04") + b"\r",
    )
    assert [(each["line"], each["code"], each.get("type")) for each in told] == [
        (1, 202, None),
        (3, 400, "/problems/bad-request"),
        (4, 422, "/problems/invalid-request"),
        (6, 422, "/problems/invalid-request"),
        (7, 413, "/problems/body-too-large"),
        (8, 202, None),
    ]
    assert told[2]["status"] == 422
    assert [fault["loc"] for fault in told[2]["errors"]] == [["equipmentId"]]
    rows = await sql.fetch("SELECT id, equipment_id, external_id, bulk, submitted_by FROM task ORDER BY seq")
    assert [tuple(row.values())[1:] for row in rows] == [
        ("DEVICE01", "order-1", True, None),
        ("DEVICE04", None, True, None),
    ]
    assert [str(row["id"]) for row in rows] == [told[0]["id"], told[5]["id"]]


async def test_no_lines_have_no_answers(client: Client) -> None:
    assert await post(client) == []
    assert await post(client, b"", b"") == []


async def test_a_line_is_answered_while_its_client_thinks_of_the_next(client: Client, sql: asyncpg.Connection) -> None:
    async with streaming(client) as stream:
        for number in range(1, 4):
            stream.send(line(f"DEVICE{number}"))
            told = await stream.answer()
            assert (told["line"], told["code"]) == (number, 202)
            assert await sql.fetchval("SELECT count(*) FROM task") == number
        stream.end()
        assert await stream.rest() == []


async def test_thousands_of_lines_each_have_an_answer_in_order(client: Client, sql: asyncpg.Connection) -> None:
    count = 3 * WINDOW * BATCH
    lines = [line(f"DEVICE{number % 50:02}", externalId=str(number)) for number in range(count)]
    lines[count // 2] = b"[]"
    told = await post(client, *lines)
    assert [each["line"] for each in told] == list(range(1, count + 1))
    assert {each["line"]: each["code"] for each in told if each["code"] != 202} == {count // 2 + 1: 422}
    # The tasks of a device are accepted in the order of their lines.
    rows = await sql.fetch("SELECT equipment_id, external_id::integer AS number FROM task ORDER BY seq")
    assert len(rows) == count - 1
    for device in {row["equipment_id"] for row in rows}:
        numbers = [row["number"] for row in rows if row["equipment_id"] == device]
        assert numbers == sorted(numbers)


async def test_a_broken_connection_keeps_what_was_answered(client: Client, sql: asyncpg.Connection) -> None:
    with capture_logs() as logs:
        async with streaming(client) as stream:
            for number in range(1000):
                stream.send(line(f"DEVICE{number:04}"))
            answered = [await stream.answer() for _ in range(300)]
            stream.response.close()
        await eventually(lambda: not requests_at_work())
    stored = {str(row["id"]) for row in await sql.fetch("SELECT id FROM task")}
    assert {each["id"] for each in answered} <= stored
    [ended] = [each for each in logs if each["event"] == "bulk.ended"]
    assert (ended["end"], ended["token"]) == ("broken", None)


async def test_lines_with_keys_may_all_be_sent_again(client: Client, sql: asyncpg.Connection) -> None:
    count = 1500
    lines = [line(f"DEVICE{number:04}", idempotencyKey=f"sheet-{number}") for number in range(count)]
    first = await post(client, *lines[: count // 2])
    told = await post(client, *lines, lines[0], line("OTHER1", idempotencyKey="sheet-0"), line(idempotencyKey=""))
    assert [each["code"] for each in told] == [202] * (count + 1) + [422, 400]
    assert [each["id"] for each in told[: count // 2]] == [each["id"] for each in first]
    assert [each["line"] for each in told if each.get("replayed")] == [*range(1, count // 2 + 1), count + 1]
    assert told[count + 1]["type"] == "/problems/key-reused"
    assert await sql.fetchval("SELECT count(*) FROM task WHERE bulk") == count
    # The same request as one that comes alone.
    alone = await client.post(TASKS, data=line("DEVICE0000"), headers={"Idempotency-Key": "sheet-0"})
    assert (alone.status, alone.headers["Idempotent-Replayed"]) == (202, "true")
    assert (await alone.json())["id"] == told[0]["id"]


async def test_a_client_that_falls_silent_is_told_so(database: DatabaseSettings, sql: asyncpg.Connection) -> None:
    app = create_app(settings_for(database))
    app[bulk.BULK].silence_seconds = 0.5
    async with serving(app) as client, streaming(client) as stream:
        stream.send(line())
        assert (await stream.answer())["code"] == 202
        [told] = await stream.rest()
        assert (told["line"], told["code"], told["type"]) == (2, 408, "/problems/silent-client")


async def test_a_compressed_body_is_refused(client: Client) -> None:
    response = await client.post(TASKS, data=b"...", headers=HEADERS | {"Content-Encoding": "gzip"})
    await assert_problem(response, 415, "compressed-body")


async def test_one_key_for_all_lines_is_refused(client: Client, sql: asyncpg.Connection) -> None:
    response = await client.post(TASKS, data=line(), headers=HEADERS | {"Idempotency-Key": "all"})
    await assert_problem(response, 400, "bad-request")
    assert await sql.fetchval("SELECT count(*) FROM task") == 0


async def test_a_stop_answers_what_was_taken_and_says_why_it_ends(
    database: DatabaseSettings, sql: asyncpg.Connection
) -> None:
    stream = Stream()
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(serving(create_app(settings_for(database))))
        session = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{client.port}"))
        stream.response = await session.post(TASKS, data=stream.body(), headers=HEADERS)
        stream.send(line())
        assert (await stream.answer())["code"] == 202
        rest = asyncio.create_task(stream.rest())
        # The client goes on sending; the session outlives the server.
        await client.app.shutdown()
        [told] = await rest
        assert (told["line"], told["code"], told["type"]) == (2, 503, "/problems/stopping")
        stream.end()
    assert await sql.fetchval("SELECT count(*) FROM task") == 1


async def test_with_tokens_lines_are_of_their_clients_devices(
    database: DatabaseSettings, sql: asyncpg.Connection, tmp_path: Path
) -> None:
    tokens = TokensFile(tmp_path / "tokens")
    may, may_not = tokens.add("oss", "submit", devices="ABC*"), tokens.add("reader", "read")
    async with serving(create_app(settings_for(database, tokens_file=tokens.path))) as client:
        await assert_problem(await client.post(TASKS, data=line(), headers=HEADERS), 401, "no-token")
        await assert_problem(
            await client.post(TASKS, data=line(), headers=HEADERS | may_not), 403, "insufficient-scope"
        )
        async with streaming(client, **may) as stream:
            stream.send(line("ABC1234"), line("OTHER123"))
            stream.end()
            told = await stream.rest()
    assert [(each["code"], each.get("type")) for each in told] == [(202, None), (404, "/problems/equipment-not-found")]
    assert await sql.fetchval("SELECT array_agg(submitted_by) FROM task") == ["oss"]


async def test_caps_are_told_by_the_line(database: DatabaseSettings) -> None:
    async with serving(create_app(settings_for(database, max_tasks_per_device=2))) as client:
        told = await post(client, *[line("DEVICE01")] * 4, line("DEVICE02"))
    assert [each["code"] for each in told] == [202, 202, 429, 429, 202]
    assert told[2]["type"] == "/problems/too-many-tasks"


async def test_a_database_that_is_away_is_told_by_the_line() -> None:
    nowhere = DatabaseSettings(database_url=SecretStr(f"postgresql://u:p@127.0.0.1:{free_port()}/d"))
    async with serving(create_app(settings_for(nowhere))) as client:
        told = await post(client, line(), b"{}", line())
    assert [each["code"] for each in told] == [503, 422, 503]
    assert told[0]["type"] == "/problems/storage-unavailable"
