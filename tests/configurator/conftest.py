"""The configurator's process between a real broker, a results process and a service A of the test's own."""

from typing import Any

import aiormq
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from configurator.app import create_app
from configurator.settings import Settings
from messaging.settings import BrokerSettings
from tests.configurator.wire import Start, Wire
from tests.fake_a import FakeA
from tests.fake_results import FakeResults
from tests.queues import declare


@pytest.fixture
async def wire(amqp: aiormq.abc.AbstractChannel, broker: BrokerSettings) -> Wire:
    """The queues, declared before the configurator starts."""
    await declare(amqp, broker)
    return Wire(amqp, broker)


@pytest.fixture
async def start(
    aiohttp_client: AiohttpClient, broker: BrokerSettings, fake_a: FakeA, fake_results: FakeResults
) -> Start:
    """Start a configurator; keywords are its settings, and how long it waits for a key."""

    async def start(*, pause_seconds: float = 0.05, **changed: Any) -> TestClient[web.Request, web.Application]:
        urls = {"service_a_url": fake_a.url, "results_url": fake_results.url}
        own = urls | {"concurrency": 10, "shutdown_grace_seconds": 30}
        settings = Settings(**broker.model_dump() | own | changed)
        return await aiohttp_client(create_app(settings, probe_seconds=0.05, pause_seconds=pause_seconds))

    return start
