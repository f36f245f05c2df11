"""A session with the run's broker."""

from collections.abc import AsyncIterator

import pytest

from messaging.session import Session
from messaging.settings import BrokerSettings


@pytest.fixture
async def session(broker: BrokerSettings) -> AsyncIterator[Session]:
    """A session with the shared broker."""
    async with Session(broker, "test") as opened:
        yield opened
