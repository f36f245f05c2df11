"""The contract's section 3, row by row, on the real web application and a real database."""

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
from aiohttp import ClientResponse
from pydantic import SecretStr
from structlog.testing import capture_logs
from yarl import URL

from service_b.api import parts, reading
from service_b.app import create_app
from service_b.database import DatabaseSettings
from service_b.settings import Settings
from service_b.tasks import inserts
from tests.clients import Client, requests_at_work, serving
from tests.conftest import DEADLINE_SECONDS, eventually, new_database
from tests.system.spawning import free_port
from tests.tasks import end_by_hand

PATH = "/api/v1/equipment/cpe"
PARAMETERS = {"username": "admin", "password": "admin", "vlan": 534, "interfaces": [1, 2, 3, 4]}
BODY = {"timeoutInSeconds": 14, "parameters": PARAMETERS}
NO_TASK = "53a06d4c-29a1-4f0e-9c5e-0f6b7d1c2e83"

EQUIPMENT_NOT_FOUND = b'{"code":404,"message":"The requested equipment is not found"}'
TASK_NOT_FOUND = b'{"code":404,"message":"The requested task is not found"}'
PROVISIONING_EXCEPTION = b'{"code":500,"message":"Internal provisioning exception"}'


def settings_for(database: DatabaseSettings, **others: Any) -> Settings:
    """Settings of a web process whose broker is away, so that tasks stay where they are."""
    return Settings(amqp_url=SecretStr(f"amqp://127.0.0.1:{free_port()}"), **database.model_dump(), **others)


@pytest.fixture
async def client(database: DatabaseSettings) -> AsyncIterator[Client]:
    async with serving(create_app(settings_for(database))) as made:
        yield made


@pytest.fixture
async def task(client: Client) -> str:
    """The path of a task that was just accepted."""
    response = await client.post(f"{PATH}/ABC1234", json=BODY)
    return response.headers["Location"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_database_url(postgres_url: str, template: str) -> AsyncIterator[str]:
    async with new_database(postgres_url, template) as url:
        yield url


@pytest.fixture
async def refusing(shared_database_url: str) -> AsyncIterator[Client]:
    """A client whose requests are all refused: nothing is stored, so that one database serves them all."""
    database = DatabaseSettings(database_url=SecretStr(shared_database_url), pool_size=1)
    async with serving(create_app(settings_for(database))) as made:
        yield made
    connection = await asyncpg.connect(shared_database_url)
    assert await connection.fetchval("SELECT count(*) FROM task") == 0
    await connection.close()


async def assert_answer(response: ClientResponse, status: int, body: bytes) -> None:
    assert (response.status, await response.read()) == (status, body)
    assert response.headers["Content-Type"].startswith("application/json")


async def finish(sql: asyncpg.Connection, path: str, code: int) -> None:
    await end_by_hand(sql, "id = $1", UUID(path.rsplit("/", 1)[1]), code=code)


# POST


async def test_post_stores_the_task_and_answers_with_its_id_and_location(
    client: Client, sql: asyncpg.Connection
) -> None:
    response = await client.post(f"{PATH}/ABC1234", json=BODY)
    row = await sql.fetchrow("SELECT id, equipment_id, timeout_seconds, parameters FROM task")
    assert row is not None
    await assert_answer(response, 200, b'{"code":200,"taskId":"%s"}' % str(row["id"]).encode())
    assert response.headers["Location"] == f"{PATH}/ABC1234/task/{row['id']}"
    assert (row["equipment_id"], row["timeout_seconds"]) == ("ABC1234", 14)
    assert json.loads(row["parameters"]) == PARAMETERS


async def test_post_stores_whose_parameters_are_kept(database: DatabaseSettings, sql: asyncpg.Connection) -> None:
    settings = settings_for(database)
    for whose in ("failed", "all", "none"):
        async with serving(create_app(settings.model_copy(update={"keep_parameters": whose}))) as client:
            assert (await client.post(f"{PATH}/ABC1234", json=BODY)).status == 200
        assert await sql.fetchval("SELECT keep_parameters FROM task ORDER BY seq DESC LIMIT 1") == whose
    assert settings.keep_parameters == "failed"


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ({**BODY, "parameters": [PARAMETERS]}, PARAMETERS),
        ({**BODY, "priority": 1}, PARAMETERS),
        (
            {**BODY, "parameters": {**PARAMETERS, "ssid": {"a": [1.5, "ü", None]}}},
            {**PARAMETERS, "ssid": {"a": [1.5, "ü", None]}},
        ),
        ({**BODY, "parameters": {**PARAMETERS, "vlan": None}}, {k: v for k, v in PARAMETERS.items() if k != "vlan"}),
        ({**BODY, "parameters": {**PARAMETERS, "interfaces": []}}, {**PARAMETERS, "interfaces": []}),
        ({**BODY, "parameters": {**PARAMETERS, "interfaces": [0] * 1024}}, {**PARAMETERS, "interfaces": [0] * 1024}),
    ],
    ids=["in brackets", "unknown top-level key", "unknown parameter", "null vlan", "no interfaces", "1024 interfaces"],
)
async def test_post_accepts_kindly(client: Client, sql: asyncpg.Connection, sent: object, stored: object) -> None:
    response = await client.post(f"{PATH}/ABC1234", data=json.dumps(sent), headers={"Content-Type": "text/plain"})
    assert response.status == 200
    assert json.loads(await sql.fetchval("SELECT parameters FROM task")) == stored


async def test_post_takes_a_byte_order_mark(client: Client, sql: asyncpg.Connection) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(BODY).encode()
    assert (await client.post(f"{PATH}/ABC1234", data=body)).status == 200
    assert json.loads(await sql.fetchval("SELECT parameters FROM task")) == PARAMETERS


async def test_post_takes_the_last_of_duplicate_keys(client: Client, sql: asyncpg.Connection) -> None:
    body = json.dumps(BODY).replace('"vlan": 534', '"vlan": 1, "vlan": 2')
    assert (await client.post(f"{PATH}/ABC1234", data=body)).status == 200
    assert json.loads(await sql.fetchval("SELECT parameters FROM task"))["vlan"] == 2


async def test_post_accepts_a_body_of_64_kib(client: Client) -> None:
    body = json.dumps(BODY).encode()
    assert (await client.post(f"{PATH}/ABC1234", data=body + b" " * (65_536 - len(body)))).status == 200


# GET


async def test_get_of_an_unfinished_task(client: Client, task: str) -> None:
    response = await client.get(task)
    await assert_answer(response, 200, b'{"code":204,"message":"Task is still running"}')
    assert int(response.headers["Retry-After"]) > 0


async def test_get_of_a_configured_task(client: Client, task: str, sql: asyncpg.Connection) -> None:
    await finish(sql, task, 200)
    response = await client.get(task)
    await assert_answer(response, 200, b'{"code":200,"message":"Completed"}')
    assert "Retry-After" not in response.headers


async def test_get_where_a_does_not_know_the_device(client: Client, task: str, sql: asyncpg.Connection) -> None:
    await finish(sql, task, 404)
    await assert_answer(await client.get(task), 404, EQUIPMENT_NOT_FOUND)


async def test_get_of_a_failed_task(client: Client, task: str, sql: asyncpg.Connection) -> None:
    await finish(sql, task, 500)
    await assert_answer(await client.get(task), 500, PROVISIONING_EXCEPTION)


@pytest.mark.parametrize("task_id", [NO_TASK, "42", f"{{{NO_TASK}}}", f"urn:uuid:{NO_TASK}"])
async def test_get_of_no_such_task(client: Client, task_id: str) -> None:
    await assert_answer(await client.get(URL(f"{PATH}/ABC1234/task/").joinpath(task_id)), 404, TASK_NOT_FOUND)


@pytest.mark.parametrize("serial", ["OTHER123", "short", "dash-ed1", "A" * 129])
async def test_get_of_another_devices_task_or_no_serial(client: Client, task: str, serial: str) -> None:
    await assert_answer(await client.get(task.replace("ABC1234", serial)), 404, EQUIPMENT_NOT_FOUND)


async def test_get_takes_the_task_id_in_either_case(client: Client, task: str) -> None:
    path, task_id = task.rsplit("/", 1)
    assert (await client.get(f"{path}/{task_id.upper()}")).status == 200


async def test_head_works_where_get_does(client: Client, task: str) -> None:
    for path in (task, "/api/v1/", "/health/live"):
        response = await client.head(path)
        assert (response.status, await response.read()) == (200, b"")


async def test_get_name(client: Client) -> None:
    await assert_answer(await client.get("/api/v1/"), 200, b'"SERVICE_B - v1"')


# Bad input


@pytest.mark.parametrize("serial", ["short", "dash-ed1", "A" * 129, "ünicode1", "a b c d e"])
async def test_the_id_is_judged_before_the_body(refusing: Client, serial: str) -> None:
    await assert_answer(await refusing.post(f"{PATH}/{serial}", data=b"{"), 404, EQUIPMENT_NOT_FOUND)


DEEP = b'{"timeoutInSeconds":1,"parameters":{"username":"a","password":"b","interfaces":[],"x":%s}}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"timeoutInSeconds":NaN}',
        b'{"timeoutInSeconds":-Infinity}',
        DEEP % b"1e999",
        DEEP % (b"[" * 150 + b"]" * 150),
        DEEP % (b"[" * 20_000 + b"]" * 20_000),
        json.dumps(BODY).encode("utf-16"),
        b"\xff\xfe",
        b'"\xed\xa0\x80"',
        b'{"a":"\x00"}',
        b"\xef\xbb\xbf" * 2 + json.dumps(BODY).encode(),
    ],
    ids=[
        "empty",
        "cut",
        "nan",
        "infinity",
        "1e999",
        "deep",
        "absurd",
        "utf-16",
        "bytes",
        "surrogate bytes",
        "raw nul",
        "two marks",
    ],
)
async def test_malformed_json(refusing: Client, body: bytes) -> None:
    response = await refusing.post(f"{PATH}/ABC1234", data=body)
    infinite = b"The body must be JSON without infinite numbers"
    no_json = b"The body must be JSON in UTF-8, at most 100 levels deep"
    message = infinite if b"1e999" in body else no_json
    await assert_answer(response, 400, b'{"code":400,"message":"%s"}' % message)


@pytest.mark.parametrize("number", [b"9" * 4301, b"-" + b"9" * 4301, b"1" + b"0" * 60_000])
@pytest.mark.parametrize("body", [b"%s", DEEP, DEEP.replace(b"%s", b'{"\\u00e4":[%s]}')])
async def test_a_number_that_is_too_long(refusing: Client, body: bytes, number: bytes) -> None:
    response = await refusing.post(f"{PATH}/ABC1234", data=body % number)
    message = b"The body must be JSON without whole numbers of more than 4,300 digits"
    await assert_answer(response, 400, b'{"code":400,"message":"%s"}' % message)


@pytest.mark.parametrize(
    "parameters", [{**PARAMETERS, "interfaces": [-1] * 1024}, {**PARAMETERS, "more": ["\x00"] * 1024}]
)
async def test_of_many_faults_a_hundred_are_told(refusing: Client, parameters: dict[str, object]) -> None:
    response = await refusing.post(f"{PATH}/ABC1234", json={**BODY, "parameters": parameters})
    assert response.status == 422
    assert len((await response.json())["errors"]) == 100


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"timeoutInSeconds": "14"}, ["timeoutInSeconds"]),
        ({"timeoutInSeconds": 14.0}, ["timeoutInSeconds"]),
        ({"timeoutInSeconds": True}, ["timeoutInSeconds"]),
        ({"timeoutInSeconds": None}, ["timeoutInSeconds"]),
        ({"timeoutInSeconds": 0}, ["timeoutInSeconds"]),
        ({"timeoutInSeconds": 3601}, ["timeoutInSeconds"]),
        ({"parameters": None}, ["parameters"]),
        ({"parameters": []}, ["parameters"]),
        ({"parameters": [PARAMETERS, PARAMETERS]}, ["parameters"]),
        ({"parameters": {**PARAMETERS, "username": ""}}, ["parameters", "username"]),
        ({"parameters": {**PARAMETERS, "username": 1}}, ["parameters", "username"]),
        ({"parameters": {**PARAMETERS, "username": "a\x00"}}, ["parameters", "username"]),
        ({"parameters": {**PARAMETERS, "password": "\ud800"}}, ["parameters", "password"]),
        ({"parameters": {**PARAMETERS, "more": ["\udfff"]}}, ["parameters", 0]),
        ({"parameters": {**PARAMETERS, "vlan": 0}}, ["parameters", "vlan"]),
        ({"parameters": {**PARAMETERS, "vlan": 4095}}, ["parameters", "vlan"]),
        ({"parameters": {**PARAMETERS, "vlan": "1"}}, ["parameters", "vlan"]),
        ({"parameters": {**PARAMETERS, "interfaces": [0] * 1025}}, ["parameters", "interfaces"]),
        ({"parameters": {**PARAMETERS, "interfaces": [-1]}}, ["parameters", "interfaces", 0]),
        ({"parameters": {**PARAMETERS, "interfaces": [1, False]}}, ["parameters", "interfaces", 1]),
    ],
)
async def test_wrong_fields_are_named_and_not_echoed(
    refusing: Client, change: dict[str, Any], loc: list[object]
) -> None:
    response = await refusing.post(f"{PATH}/ABC1234", data=json.dumps({**BODY, **change}))
    answer = await response.json()
    assert (response.status, answer["code"]) == (422, 422)
    assert [error["loc"] for error in answer["errors"]] == [loc]
    assert set(answer["errors"][0]) == {"loc", "msg"}
    assert "admin" not in await response.text()


@pytest.mark.parametrize("field", ["username", "password", "interfaces"])
async def test_a_missing_field_is_named(refusing: Client, field: str) -> None:
    parameters = {key: value for key, value in PARAMETERS.items() if key != field}
    response = await refusing.post(f"{PATH}/ABC1234", json={**BODY, "parameters": parameters})
    assert response.status == 422
    assert [error["loc"] for error in (await response.json())["errors"]] == [["parameters", field]]


@pytest.mark.parametrize("body", [[], 1, "text", None, {}])
async def test_json_that_is_no_request(refusing: Client, body: object) -> None:
    response = await refusing.post(f"{PATH}/ABC1234", data=json.dumps(body))
    assert response.status == 422
    assert (await response.json())["errors"]


async def test_a_body_over_64_kib(refusing: Client) -> None:
    body = json.dumps(BODY).encode()
    response = await refusing.post(f"{PATH}/ABC1234", data=body + b" " * (65_537 - len(body)))
    await assert_answer(response, 413, b'{"code":413,"message":"Request Entity Too Large"}')


async def test_a_compressed_body(refusing: Client) -> None:
    body = gzip.compress(json.dumps(BODY).encode())
    response = await refusing.post(f"{PATH}/ABC1234", data=body, headers={"Content-Encoding": "gzip"})
    await assert_answer(response, 415, b'{"code":415,"message":"The body must not be compressed"}')


async def test_an_unknown_route(client: Client) -> None:
    await assert_answer(await client.get("/secret"), 404, b'{"code":404,"message":"Not Found"}')


@pytest.mark.parametrize(
    "raw", [b"SECRET\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\nSECRET\r\n\r\n", b"\x16\x03\x01\r\n\r\n"]
)
async def test_malformed_http_is_not_echoed(refusing: Client, raw: bytes) -> None:
    head, body = await refusing.ask_raw(raw)
    assert re.match(rb"HTTP/1\.[01] 400 ", head)
    assert b"application/json" in head
    assert body == b'{"code":400,"message":"Malformed HTTP request"}'


# Storage


async def assert_unavailable(response: ClientResponse) -> None:
    await assert_answer(response, 503, b'{"code":503,"message":"The storage is unavailable, try again"}')
    assert int(response.headers["Retry-After"]) > 0


async def test_storage_down() -> None:
    nowhere = DatabaseSettings(database_url=SecretStr(f"postgresql://x@127.0.0.1:{free_port()}/x"))
    async with serving(create_app(settings_for(nowhere))) as client:
        await assert_unavailable(await client.post(f"{PATH}/ABC1234", json=BODY))
        await assert_unavailable(await client.get(f"{PATH}/ABC1234/task/{NO_TASK}"))
        ready = await client.get("/health/ready")
        assert (ready.status, "database" in await ready.text()) == (503, True)


async def test_storage_too_slow(client: Client, task: str, sql: asyncpg.Connection) -> None:
    async with sql.transaction():
        await sql.execute("LOCK TABLE task")
        answers = await asyncio.gather(client.post(f"{PATH}/ABC1234", json=BODY), client.get(task))
        for response in answers:
            await assert_unavailable(response)


async def test_storage_not_migrated(client: Client, sql: asyncpg.Connection) -> None:
    await sql.execute("DROP TABLE task")
    await assert_unavailable(await client.post(f"{PATH}/ABC1234", json=BODY))
    ready = await client.get("/health/ready")
    assert (ready.status, await ready.json()) == (503, {"status": "not ready", "missing": ["database: not migrated"]})


async def test_the_broker_is_not_needed(client: Client) -> None:
    assert (await client.get("/health/ready")).status == 200
    assert (await client.post(f"{PATH}/ABC1234", json=BODY)).status == 200


async def test_a_bug_is_opaque(client: Client, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: str) -> None:
        raise ZeroDivisionError("SECRET")

    monkeypatch.setattr(client.app[parts.STATUSES], "get", broken)
    await assert_answer(await client.get(task), 500, PROVISIONING_EXCEPTION)


async def test_a_client_that_goes_away_does_not_cancel_the_write(
    client: Client, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    insert = inserts.insert

    async def slow(*arguments: Any, **keywords: Any) -> None:
        begun.set()
        await go_on.wait()
        await insert(*arguments, **keywords)

    monkeypatch.setattr(inserts, "insert", slow)
    posting = asyncio.create_task(client.post(f"{PATH}/ABC1234", json=BODY))
    await begun.wait()
    posting.cancel()
    go_on.set()
    await eventually(lambda: sql.fetchval("SELECT count(*) FROM task"))


async def test_chunked_bodies_are_taken(client: Client) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for byte in json.dumps(BODY).encode():
            yield bytes([byte])

    assert (await client.post(f"{PATH}/ABC1234", data=chunks())).status == 200


# The wire


@pytest.mark.parametrize("path", ["/api/v1/", "/nowhere"])
async def test_an_expectation_that_we_cannot_meet_is_not_echoed(refusing: Client, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: a\r\nExpect: SECRET\r\nConnection: close\r\n\r\n"
    head, body = await refusing.ask_raw(request.encode())
    assert head.startswith(b"HTTP/1.1 417 ")
    assert b"application/json" in head
    assert body == b'{"code":417,"message":"Expectation Failed"}'


async def test_a_client_that_waits_for_continue_is_told_so(client: Client, sql: asyncpg.Connection) -> None:
    response = await client.post(f"{PATH}/ABC1234", json=BODY, expect100=True)
    assert response.status == 200
    assert await sql.fetchval("SELECT count(*) FROM task") == 1


async def test_a_chunked_body_over_64_kib(refusing: Client) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        body = json.dumps(BODY).encode()
        yield body
        yield b" " * (65_537 - len(body))

    response = await refusing.post(f"{PATH}/ABC1234", data=chunks())
    await assert_answer(response, 413, b'{"code":413,"message":"Request Entity Too Large"}')


async def test_malformed_chunks(refusing: Client) -> None:
    head = f"POST {PATH}/ABC1234 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    head_told, body = await refusing.ask_raw(head.encode() + b"SECRET\r\n\r\n")
    assert re.match(rb"HTTP/1\.[01] 400 ", head_told)
    assert b"application/json" in head_told
    assert b"SECRET" not in body


async def test_malformed_chunks_after_a_good_head(refusing: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp tells nobody of a chunk that it cannot read: without a limit its client would wait for ever."""
    monkeypatch.setattr(reading, "BODY_TIMEOUT_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection(refusing.host, refusing.port)
    writer.write(f"POST {PATH}/ABC1234 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n".encode())
    await eventually(requests_at_work)
    writer.write(b"SECRET\r\n")
    told = await asyncio.wait_for(reader.readuntil(b"}"), DEADLINE_SECONDS)
    assert told.startswith(b"HTTP/1.1 400 ")
    assert b"SECRET" not in told
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_bug_of_ours(refusing: Client) -> None:
    with capture_logs() as logs:
        _, writer = await asyncio.open_connection(refusing.host, refusing.port)
        writer.write(f"POST {PATH}/ABC1234 HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{{".encode())
        await eventually(requests_at_work)
        writer.transport.abort()
        await eventually(lambda: not requests_at_work())
    assert [entry for entry in logs if entry["event"].startswith("http.")] == []


async def test_a_body_that_ends_too_early(refusing: Client) -> None:
    body = json.dumps(BODY).encode()
    head = f"POST {PATH}/ABC1234 HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body) + 1}\r\n\r\n"
    reader, writer = await asyncio.open_connection(refusing.host, refusing.port)
    writer.write(head.encode() + body)
    writer.write_eof()
    assert not (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Encoding: identity\r\nContent-Encoding: gzip\r\nContent-Length: 6",
        "Content-Encoding: gzip\r\nContent-Encoding: identity\r\nContent-Length: 6",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity, chunked",
    ],
)
async def test_compression_is_refused_wherever_it_is_said(refusing: Client, lines: str) -> None:
    head = f"POST {PATH}/ABC1234 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}\r\n\r\n"
    body = "6\r\nSECRET\r\n0\r\n\r\n" if "chunked" in lines else "SECRET"
    told, answer = await refusing.ask_raw((head + body).encode())
    assert re.match(rb"HTTP/1\.[01] 415 ", told)
    assert answer == b'{"code":415,"message":"The body must not be compressed"}'


@pytest.mark.parametrize("encoding", ["deflate", "br", "zstd", "GZIP", "identity, gzip", "unheard-of"])
async def test_every_content_encoding_is_refused(refusing: Client, encoding: str) -> None:
    head = f"POST {PATH}/ABC1234 HTTP/1.1\r\nHost: a\r\nContent-Encoding: {encoding}\r\nConnection: close\r\n"
    told, body = await refusing.ask_raw(f"{head}Content-Length: 6\r\n\r\nSECRET".encode())
    assert re.match(rb"HTTP/1\.[01] 415 ", told)
    assert body == b'{"code":415,"message":"The body must not be compressed"}'


async def test_any_content_type_is_taken(client: Client) -> None:
    body = json.dumps(BODY).encode()
    for kind in ("application/json", "text/xml", "application/x-www-form-urlencoded", "nonsense"):
        assert (await client.post(f"{PATH}/ABC1234", data=body, headers={"Content-Type": kind})).status == 200
    assert (await client.post(f"{PATH}/ABC1234", data=body, skip_auto_headers=("Content-Type",))).status == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", f"{PATH}/ABC1234", "POST"),
        ("DELETE", f"{PATH}/ABC1234", "POST"),
        ("POST", f"{PATH}/ABC1234/task/{NO_TASK}", "GET,HEAD"),
        ("PATCH", "/api/v1/", "GET,HEAD"),
        ("POST", "/metrics", "GET,HEAD"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(refusing: Client, method: str, path: str, allowed: str) -> None:
    response = await refusing.request(method, path, json=BODY)
    await assert_answer(response, 405, b'{"code":405,"message":"Method Not Allowed"}')
    assert response.headers["Allow"] == allowed


@pytest.mark.parametrize("path", ["/", "/api/v1", f"{PATH}/", f"{PATH}/ABC1234/task/", f"{PATH}/ABC1234/task/1/2"])
async def test_every_other_path_is_unknown(refusing: Client, path: str) -> None:
    await assert_answer(await refusing.post(path, json=BODY), 404, b'{"code":404,"message":"Not Found"}')


async def test_a_finished_task_answers_to_head_as_to_get(client: Client, task: str, sql: asyncpg.Connection) -> None:
    await finish(sql, task, 500)
    got, headed = await client.get(task), await client.head(task)
    assert (headed.status, await headed.read()) == (got.status, b"")
    assert headed.headers["Content-Length"] == got.headers["Content-Length"] == str(len(PROVISIONING_EXCEPTION))


async def test_an_exact_answer_to_wrong_fields(client: Client) -> None:
    response = await client.post(f"{PATH}/ABC1234", json={**BODY, "parameters": {**PARAMETERS, "vlan": 0}})
    await assert_answer(
        response,
        422,
        b'{"code":422,"message":"The request is not valid",'
        b'"errors":[{"loc":["parameters","vlan"],"msg":"Input should be greater than or equal to 1"}]}',
    )


async def test_a_task_that_waits_for_another_is_running(client: Client, task: str, sql: asyncpg.Connection) -> None:
    second = (await client.post(f"{PATH}/ABC1234", json=BODY)).headers["Location"]
    assert await sql.fetchval("SELECT count(*) FROM task WHERE NOT active") == 1
    await assert_answer(await client.get(second), 200, b'{"code":204,"message":"Task is still running"}')


async def test_a_row_that_the_table_refuses_is_a_bug_and_spoils_no_other(
    client: Client, sql: asyncpg.Connection
) -> None:
    await sql.execute("ALTER TABLE task ADD CONSTRAINT never CHECK (timeout_seconds <> 13)")
    bad = {**BODY, "timeoutInSeconds": 13}
    answers = await asyncio.gather(*(client.post(f"{PATH}/ABC{i:04}", json=bad if i % 3 else BODY) for i in range(30)))
    for i, response in enumerate(answers):
        if i % 3:
            await assert_answer(response, 500, PROVISIONING_EXCEPTION)
        else:
            assert response.status == 200
    assert await sql.fetchval("SELECT count(*) FROM task WHERE timeout_seconds = 14") == 10


async def test_too_many_waiting_requests_are_told_to_come_again(
    client: Client, task: str, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.app[parts.STATUSES]._lookups._batcher, "_max_waiting", 0)
    await assert_unavailable(await client.get(task))


async def test_a_final_status_that_was_told_once_needs_no_storage(
    client: Client, task: str, sql: asyncpg.Connection
) -> None:
    other = (await client.post(f"{PATH}/XYZ9876", json=BODY)).headers["Location"]
    await finish(sql, task, 200)
    assert (await client.get(task)).status == 200
    await sql.execute("DROP TABLE task")
    await assert_answer(await client.get(task), 200, b'{"code":200,"message":"Completed"}')
    await assert_answer(await client.get(task.replace("ABC1234", "XYZ9876")), 404, EQUIPMENT_NOT_FOUND)
    await assert_unavailable(await client.get(other))
