"""How a process is watched: its health routes and its metrics."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families
from pytest_aiohttp.plugin import AiohttpClient

from runtime import health
from runtime.health import SHARED_SECONDS, Check, Shared, Turns, add_health_routes
from tests.conftest import eventually


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


async def test_all_who_ask_at_once_wait_for_the_same_checks(aiohttp_client: AiohttpClient) -> None:
    asked, go_on = 0, asyncio.Event()

    async def check() -> str | None:
        nonlocal asked
        asked += 1
        await go_on.wait()
        return None

    app = web.Application()
    add_health_routes(app, check)
    client = await aiohttp_client(app)
    asking = [asyncio.create_task(client.get("/health/ready").__aenter__()) for _ in range(32)]
    await eventually(lambda: asked)
    leaving = asking.pop()
    leaving.cancel()  # It takes nobody else's answer with it.
    go_on.set()
    assert {response.status for response in await asyncio.gather(*asking)} == {200}
    assert asked == 1


async def test_metrics_are_rendered_once_for_all_who_ask_in_a_second(
    aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = 0

    def render() -> bytes:
        nonlocal rendered
        rendered += 1
        return b"# EOF"

    monkeypatch.setattr(health, "generate_latest", render)
    app = web.Application()
    add_health_routes(app)
    client = await aiohttp_client(app)
    loop = asyncio.get_running_loop()
    began, asked = loop.time(), 0

    async def scrape() -> None:
        nonlocal asked
        while rendered < 3:
            assert await (await client.get("/metrics")).text() == "# EOF"
            asked += 1

    await asyncio.gather(*(scrape() for _ in range(32)))
    assert rendered <= 1 + (loop.time() - began) / SHARED_SECONDS
    assert asked > 32 * 2


async def test_what_failed_is_tried_again() -> None:
    tries = iter(range(2))

    async def find() -> str:
        if next(tries) == 0:
            raise ValueError("once")
        return "found"

    shared = Shared(find, seconds=0)
    with pytest.raises(ValueError, match="once"):
        await shared.get()
    assert await shared.get() == "found"


async def test_turns_are_so_far_apart_and_in_order() -> None:
    turns, times, loop = Turns(seconds=0.01), list[tuple[int, float]](), asyncio.get_running_loop()

    async def take(number: int) -> None:
        await turns.wait()
        times.append((number, loop.time()))

    began = loop.time()
    await asyncio.gather(*(take(number) for number in range(10)))
    assert [number for number, _ in times] == list(range(10))
    assert all(at >= began + 0.01 * number for number, at in times)


async def test_metrics_are_in_prometheus_text_format(aiohttp_client: AiohttpClient) -> None:
    app = web.Application()
    add_health_routes(app)
    response = await (await aiohttp_client(app)).get("/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(await response.text())}
    assert {"python_info", "process_open_fds"} <= names
