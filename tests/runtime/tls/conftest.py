"""TLS is the event loop's: these tests run on uvloop's, as our processes do."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import uvloop

from tests.certificates import Authority


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Name the loop."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """The CA of a test."""
    return Authority(tmp_path)
