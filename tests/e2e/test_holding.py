"""Clients that never let go, several times as many as the process has room for, keep nobody out."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from messaging.settings import BrokerSettings
from tests.conftest import eventually
from tests.e2e.conftest import BODY, GUARDS, PATH, in_thread, new_client, open_fleet, samples
from tests.fake_a import FakeA
from tests.system.spawning import base_environment, end, free_port, spawn

DESCRIPTORS = 400
EACH = 200
ROUNDS = 100


async def answers(ask: Callable[..., Any], url: str, **options: Any) -> bool:
    """Ask once. Whoever takes a second to send, as on a busy machine, may lose its place, and has to come again."""
    try:
        async with ask(url, **options) as response:
            assert response.status == 200
            await response.read()
    except aiohttp.ServerDisconnectedError:
        return False
    return True


@pytest.mark.parametrize("apart", [False, True], ids=["one port", "two ports"])
async def test_who_holds_on_keeps_nobody_out(
    *, tmp_path: Path, broker: BrokerSettings, database_url: str, service_url: str, fake_a: FakeA, apart: bool
) -> None:
    watched = {"HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(free_port())} if apart else {}
    async with open_fleet(tmp_path, broker, database_url, fake_a, DATABASE_URL=service_url) as fleet:
        web = fleet.process("service_b", **watched)
        await in_thread(lambda: web.start(wait=False, descriptors=DESCRIPTORS))
        watch_url = f"http://127.0.0.1:{watched['HEALTH_PORT']}" if apart else web.url

        async def open_connections() -> float:
            try:
                async with fleet.client.get(f"{watch_url}/metrics") as response:
                    return samples(await response.text())["http_connections", frozenset()]
            except aiohttp.ClientError:
                return 0

        holding = spawn(
            [sys.executable, "-m", "tests.e2e.holding", str(web.port), str(EACH), *filter(None, [GUARDS.ca_file])],
            base_environment(),
            tmp_path / "holding.log",
        )
        try:

            async def is_full() -> bool:
                # Some have just given way to others.
                return await open_connections() >= 0.9 * (DESCRIPTORS - 200)

            await eventually(is_full)
            # Each request on a connection of its own, which has to find its place.
            worst = {"POST": 0.0, "scrape": 0.0}
            async with new_client(force_close=True) as client:
                for number in range(ROUNDS):
                    begun = time.monotonic()
                    await eventually(partial(answers, client.post, f"{web.url}{PATH}/DEVICE{number:03}", json=BODY))
                    posted = time.monotonic()
                    await eventually(partial(answers, client.get, f"{watch_url}/metrics"))
                    worst["POST"] = max(worst["POST"], posted - begun)
                    worst["scrape"] = max(worst["scrape"], time.monotonic() - posted)
                    await asyncio.sleep(0.05)
            print({what: f"{seconds * 1000:.0f} ms at worst" for what, seconds in worst.items()})
            assert holding.poll() is None
        finally:
            end(holding, signal.SIGKILL, timeout=30)
        assert await in_thread(web.terminate) == 0
