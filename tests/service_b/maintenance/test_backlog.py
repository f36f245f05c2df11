"""The backlog's gauges: fresh, of one process, or not there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from yarl import URL

from messaging.sealing.sealer import Sealer
from service_b.database import DatabaseSettings, create_pool
from service_b.maintenance.backlog import BacklogMeter
from service_b.maintenance.reconciler import Reconciler
from service_b.tasks import inserts
from service_b.tasks.clock import Clock
from tests.conftest import eventually
from tests.proxy import Proxy
from tests.seals import make_keys
from tests.tasks import accept, let_time_pass, new_task

PERIOD = 0.05


@pytest.fixture
def database_url(emptied_database_url: str) -> str:
    return emptied_database_url


class Meter:
    """A meter at work, what its process shows, and whether it leads."""

    def __init__(self, made: BacklogMeter, leads: list[bool]) -> None:
        self.made = made
        self._leads = leads
        self._registry = CollectorRegistry(auto_describe=True)
        self._registry.register(made)

    def leads(self, leads: bool) -> None:
        self._leads[0] = leads

    def shown(self, name: str, **labels: str) -> float | None:
        return self._registry.get_sample_value(name, labels)


@asynccontextmanager
async def running(
    settings: DatabaseSettings, *, seals: bool = False, period_seconds: float = PERIOD
) -> AsyncIterator[Meter]:
    leads = [True]
    async with create_pool(settings) as pool:
        made = BacklogMeter(pool, lambda: leads[0], seals=seals, period_seconds=period_seconds)
        reconciler = Reconciler(pool, Clock(settle_seconds=0), round_seconds=PERIOD)
        reconciler.leading = True
        task = asyncio.create_task(reconciler.whenever_leading(made.measure))
        yield Meter(made, leads)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_one_that_leads_shows_what_is_there(database: DatabaseSettings, sql: asyncpg.Connection) -> None:
    async with create_pool(database) as pool, running(database) as meter:
        await accept(pool, "DEVICE01", "DEVICE01", "DEVICE02")
        await let_time_pass(sql, 100)
        await eventually(lambda: meter.shown("tasks_unfinished", state="due") == 2)
        await eventually(lambda: meter.shown("tasks_unfinished", state="waiting") == 1)
        assert meter.shown("tasks_unfinished", state="dispatched") == 0
        await eventually(lambda: (meter.shown("tasks_oldest_unfinished_seconds") or 0) >= 100)
        assert meter.shown("tasks_backlog_age_seconds") is not None


async def test_where_tasks_are_sealed_it_shows_for_which_keys(database: DatabaseSettings, tmp_path: Path) -> None:
    keys, task = make_keys(tmp_path), new_task("DEVICE01")
    sealed = replace(task, parameters=Sealer(keys.public).seal("{}", task.id, task.equipment_id))
    async with create_pool(database) as pool, running(database) as meter, running(database, seals=True) as sealing:
        await inserts.insert(pool, [sealed, new_task("DEVICE02")], grace_seconds=0, deadline_seconds=60)
        await eventually(lambda: sealing.shown("tasks_sealed", key=keys.id) == 1)
        await eventually(lambda: meter.shown("tasks_unfinished", state="due") == 2)
        assert meter.shown("tasks_sealed", key=keys.id) is None
        await pool.execute("DELETE FROM task")
        await eventually(lambda: sealing.shown("tasks_sealed", key=keys.id) is None)


async def test_one_that_does_not_lead_shows_nothing(database: DatabaseSettings) -> None:
    async with running(database) as meter:
        await eventually(lambda: meter.shown("tasks_unfinished", state="due") == 0)
        meter.leads(False)
        assert meter.shown("tasks_unfinished", state="due") is None
        assert meter.shown("tasks_oldest_unfinished_seconds") is None
        assert meter.shown("tasks_backlog_age_seconds") is None
        meter.leads(True)
        await eventually(lambda: meter.shown("tasks_unfinished", state="due") == 0)


async def test_what_cannot_be_measured_any_more_grows_old_and_goes(database_url: str) -> None:
    url = URL(database_url)
    assert url.host
    assert url.port
    async with Proxy(url.host, url.port) as proxy:
        settings = DatabaseSettings.model_validate({"database_url": str(url.with_port(proxy.url_port))})
        async with running(settings, period_seconds=0.5) as meter:
            await eventually(lambda: meter.shown("tasks_unfinished", state="due") == 0)
            await proxy.stop()
            await eventually(lambda: (meter.shown("tasks_backlog_age_seconds") or 0) > 0.75)
            assert meter.shown("tasks_unfinished", state="due") == 0
            await eventually(lambda: meter.shown("tasks_unfinished", state="due") is None)
            assert meter.shown("tasks_oldest_unfinished_seconds") is None
            await proxy.start()
            await eventually(lambda: meter.shown("tasks_unfinished", state="due") == 0)


async def test_no_age_is_negative_whatever_the_clock_does(database: DatabaseSettings, sql: asyncpg.Connection) -> None:
    async with create_pool(database) as pool, running(database) as meter:
        await accept(pool, "DEVICE01")
        await let_time_pass(sql, -1000)
        await eventually(lambda: meter.shown("tasks_unfinished", state="due") == 1)
        assert meter.shown("tasks_oldest_unfinished_seconds") == 0
