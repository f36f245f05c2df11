"""Service A's side of the contract: every answer, its delay, and what is refused at once."""

import asyncio
import json
import logging
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from service_a.app import create_app
from service_a.settings import Settings, read_settings

Client = TestClient[web.Request, web.Application]
StartClient = Callable[[web.Application], Awaitable[Client]]

BODY = {
    "timeoutInSeconds": 14,
    "parameters": {"username": "admin", "password": "admin", "vlan": 534, "interfaces": [1, 2, 3, 4]},
}
PARAMETERS: dict[str, Any] = {"username": "admin", "password": "admin", "interfaces": []}

CHUNKED = b"POST /api/v1/equipment/cpe/ABC123 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


async def start(aiohttp_client: StartClient, **values: Any) -> Client:
    return await aiohttp_client(create_app(Settings(**{"response_delay_seconds": 0.0} | values)))


async def post(client: Client, serial: str, body: object = BODY) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client.post(f"/api/v1/equipment/cpe/{serial}", data=data) as response:
        return response.status, await response.json()


async def test_success(aiohttp_client: StartClient) -> None:
    client = await start(aiohttp_client)
    assert await post(client, "ABC123") == (200, {"code": 200, "message": "success"})


async def test_unknown_device(aiohttp_client: StartClient) -> None:
    client = await start(aiohttp_client, known_equipment="ABC123, ABC124")
    assert (await post(client, "ABC124"))[0] == 200
    assert await post(client, "ABC125") == (404, {"code": 404, "message": "The requested equipment is not found"})


async def test_error_rate_is_decided_by_the_serial(aiohttp_client: StartClient) -> None:
    client = await start(aiohttp_client, error_rate=0.5)
    for serial in (f"DEVICE{number}" for number in range(20)):
        status, body = await post(client, serial)
        if zlib.crc32(serial.encode()) / 2**32 < 0.5:
            assert (status, body) == (500, {"code": 500, "message": "Internal provisioning exception"})
        else:
            assert status == 200


@pytest.mark.parametrize("values", [{}, {"known_equipment": "OTHER1"}, {"error_rate": 1.0}])
async def test_every_answer_comes_after_the_delay(aiohttp_client: StartClient, values: dict[str, Any]) -> None:
    client = await start(aiohttp_client, response_delay_seconds=0.3, **values)
    began = time.monotonic()
    await post(client, "ABC123")
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize("serial", ["ABC12", "ABC-123", "ABC12%20", "ABC123%0A"])
async def test_malformed_id_is_refused_at_once(aiohttp_client: StartClient, serial: str) -> None:
    client = await start(aiohttp_client, response_delay_seconds=60.0)
    assert await post(client, serial) == (400, {"code": 400, "message": "The equipment id is malformed"})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        [],
        {"parameters": PARAMETERS},
        {"timeoutInSeconds": 0, "parameters": PARAMETERS},
        {"timeoutInSeconds": "14", "parameters": PARAMETERS},
        {"timeoutInSeconds": 14},
        {"timeoutInSeconds": 14, "parameters": {"username": "admin", "password": "admin"}},
        {"timeoutInSeconds": 14, "parameters": PARAMETERS | {"interfaces": ["1"]}},
        {"timeoutInSeconds": 14, "parameters": PARAMETERS | {"vlan": "534"}},
    ],
)
async def test_malformed_body_is_refused_at_once(aiohttp_client: StartClient, body: object) -> None:
    client = await start(aiohttp_client, response_delay_seconds=60.0)
    assert await post(client, "ABC123", body) == (400, {"code": 400, "message": "The request body is malformed"})


async def test_vlan_is_optional_and_other_keys_pass(aiohttp_client: StartClient) -> None:
    client = await start(aiohttp_client)
    assert (await post(client, "ABC123", {"timeoutInSeconds": 1, "parameters": PARAMETERS | {"ssid": "x"}}))[0] == 200


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"SECRET\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nSECRET\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: SECRET\r\n\r\n", 400),
        (CHUNKED + b"SECRET\r\n\r\n", 400),
        (b"GET /SECRET" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /SECRET HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 404),
        (b"PUT /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405),
    ],
)
async def test_nothing_of_a_malformed_request_is_said(
    aiohttp_client: StartClient, caplog: pytest.LogCaptureFixture, raw: bytes, status: int
) -> None:
    client = await start(aiohttp_client)
    reader, writer = await asyncio.open_connection(client.host, client.port)
    with caplog.at_level(logging.DEBUG):
        writer.write(raw)
        said = (await reader.read()).decode()
    writer.close()
    assert said.split()[1] == str(status)
    assert "Server:" not in said
    for text in (said, caplog.text):
        assert "SECRET" not in text
        assert "Traceback" not in text


async def test_live(aiohttp_client: StartClient) -> None:
    client = await start(aiohttp_client)
    async with client.get("/health/live") as response:
        assert response.status == 200
        assert await response.json() == {"status": "alive", "name": "SERVICE_A"}


def test_wrong_settings_are_named_and_not_echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_PORT", "s3cret")
    monkeypatch.setenv("ERROR_RATE", "2")
    with pytest.raises(SystemExit) as stopped:
        read_settings()
    assert "APP_PORT" in str(stopped.value)
    assert "ERROR_RATE" in str(stopped.value)
    assert "s3cret" not in str(stopped.value)
    assert "\n" not in str(stopped.value)
