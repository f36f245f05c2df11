"""How a process is watched: its health routes and its metrics."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families
from pytest_aiohttp.plugin import AiohttpClient

from runtime import health
from runtime.health import Check, add_health_routes


async def ask(aiohttp_client: AiohttpClient, *checks: Check) -> tuple[int, Any]:
    app = web.Application()
    add_health_routes(app, *checks)
    client = await aiohttp_client(app)
    assert (await client.get("/health/live")).status == 200
    response = await client.get("/health/ready")
    return response.status, await response.json()


def missing(phrase: str | None) -> Check:
    async def check() -> str | None:
        return phrase

    return check


async def hang() -> str | None:
    await asyncio.Event().wait()
    return None


async def test_alive_is_said_in_json(aiohttp_client: AiohttpClient) -> None:
    app = web.Application()
    add_health_routes(app, missing("everything"))
    response = await (await aiohttp_client(app)).get("/health/live")
    assert (response.status, await response.json()) == (200, {"status": "alive"})


async def test_ready_when_nothing_is_missing(aiohttp_client: AiohttpClient) -> None:
    assert await ask(aiohttp_client, missing(None), missing(None)) == (200, {"status": "ready"})


async def test_not_ready_says_all_that_is_missing(aiohttp_client: AiohttpClient) -> None:
    answer = await ask(aiohttp_client, missing("broker: away"), missing(None), missing("database: away"))
    assert answer == (503, {"status": "not ready", "missing": ["broker: away", "database: away"]})


async def test_a_check_that_hangs_is_told_and_holds_up_no_other(
    aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT_SECONDS", 0.05)
    async with asyncio.timeout(60):
        answer = await ask(aiohttp_client, hang, missing("broker: away"))
    assert answer == (503, {"status": "not ready", "missing": ["a check did not end in time", "broker: away"]})


async def test_metrics_are_in_prometheus_text_format(aiohttp_client: AiohttpClient) -> None:
    app = web.Application()
    add_health_routes(app)
    response = await (await aiohttp_client(app)).get("/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(await response.text())}
    assert {"http_request_seconds", "python_info", "process_open_fds"} <= names
