"""What the tests of the relay share: a real database and a real broker."""

from types import SimpleNamespace

import asyncpg
import pytest

from service_b import relay as relay_module
from service_b.tasks import claims
from tests.service_b.relay.relays import Watch


@pytest.fixture
def database_url(emptied_database_url: str) -> str:
    return emptied_database_url


@pytest.fixture
def watch(pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch(pool)
    monkeypatch.setattr(relay_module, "claims", SimpleNamespace(**vars(claims) | {"claim": watch.claim}))
    return watch
