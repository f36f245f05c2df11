"""The reconciler at work on a real database; it needs no broker.

Where time has to pass, the tests move what the table remembers into the past, instead of waiting.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from pydantic import SecretStr
from typing_extensions import override

from runtime import clock
from service_b.app import Periods, create_app
from service_b.database import Connection, DatabaseSettings
from service_b.maintenance.reconciler import Reconciler
from service_b.settings import Settings
from service_b.tasks import cancels, claims, expiry
from service_b.tasks.clock import Clock
from service_b.tasks.inserts import Wishes
from tests.conftest import eventually
from tests.queues import metric
from tests.system.spawning import free_port
from tests.tasks import A, B, accept, apply, begin, claim, end_by_hand, give_back, let_time_pass, row, states

ROUND = 0.05


@pytest.fixture
def database_url(emptied_database_url: str) -> str:
    return emptied_database_url


class CountingReconciler(Reconciler):
    """Counts its rounds."""

    turns = rounds = 0
    failure: Exception | None = None

    @override
    async def _take_turn(self, connection: Connection) -> None:
        self.turns += 1
        await super()._take_turn(connection)

    @override
    async def _go_round(self, connection: Connection) -> bool:
        self.rounds += 1
        if self.failure:
            failure, self.failure = self.failure, None
            raise failure
        return await super()._go_round(connection)


@asynccontextmanager
async def reconciling(pool: asyncpg.Pool) -> AsyncIterator[tuple[CountingReconciler, asyncio.Task[None]]]:
    """A reconciler at work."""
    reconciler = CountingReconciler(pool, Clock(settle_seconds=0), round_seconds=ROUND)
    running = asyncio.create_task(reconciler.run())
    try:
        yield reconciler, running
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_a_leader_without_a_broker_does_all_that_needs_none(
    database: DatabaseSettings, pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    """Deadlines (of dispatched tasks, too), cancels, starts, lost dispatches, stranded tasks."""
    expired, stranded = metric("tasks_expired_total"), metric("tasks_stranded_total")
    cancels_before = metric("tasks_cancelled_total")
    finished, lost = metric("tasks_finished_total", code="500"), metric("tasks_lost_dispatches_total")
    old = await accept(pool, A, A, A, deadline_seconds=60)
    new = await accept(pool, A, B, B)
    await claims.claim(pool, 9)
    await let_time_pass(sql, 61)
    [again, running] = await accept(pool, "DEVICE0C", "DEVICE0D")
    dispatches = {dispatch.id: dispatch for dispatch in await claims.claim(pool, 9)}
    [scheduled] = await accept(pool, "DEVICE0E", wishes=Wishes(not_before=datetime.now(UTC) + timedelta(hours=1)))
    await sql.execute("UPDATE task SET start_at = start_at - interval '2 h'")
    [cancelled] = await accept(pool, "DEVICE0F")
    [dispatch] = await claim(pool, 1)
    await apply(pool, give_back(dispatch, hold_seconds=1))
    async with pool.acquire() as connection:
        await cancels.cancel(connection, [(cancelled, None)])
    await begin(pool, dispatches[running])
    await sql.execute("UPDATE task SET dispatched_at = dispatched_at - interval '11 s' WHERE id = $1", again)
    await end_by_hand(sql, "equipment_id = $1 AND active", B)
    nowhere = SecretStr(f"amqp://127.0.0.1:{free_port()}")
    app = web.AppRunner(create_app(Settings(**database.model_dump() | {"amqp_url": nowhere}), Periods(round=ROUND)))
    await app.setup()

    async def all_is_well() -> bool:
        expected = ["error"] * 3 + ["due", "error", "due", "due", "running", "due", "error"]
        return await states(sql, [*old, *new, again, running, scheduled, cancelled]) == expected

    try:
        await eventually(all_is_well)
        # Counted a moment after the commit that we see.
        await eventually(lambda: metric("tasks_stranded_total") == stranded + 1)
        await eventually(lambda: metric("tasks_lost_dispatches_total") == lost + 1)
        assert (await row(sql, again))["attempt"] == 1, "it is claimed when there is a broker"
    finally:
        await app.cleanup()
    assert metric("tasks_expired_total") == expired + 3
    assert metric("tasks_cancelled_total") == cancels_before + 1
    assert metric("tasks_finished_total", code="500") == finished + 4


async def test_a_row_that_somebody_holds_delays_no_other(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    ids = await accept(pool, A, B, deadline_seconds=60)
    await let_time_pass(sql, 61)
    async with other.transaction(), reconciling(pool) as (reconciler, _):
        await other.execute("SELECT FROM task WHERE id = $1 FOR UPDATE", ids[0])

        async def the_other_one_ends() -> bool:
            return await states(sql, ids) == ["due", "error"]

        await eventually(the_other_one_ends)
        await eventually(rounds_of(reconciler, more=10))


def rounds_of(*reconcilers: CountingReconciler, more: int = 3) -> Callable[[], bool]:
    """A condition: so many rounds more than now."""

    def rounds() -> int:
        return sum(reconciler.rounds for reconciler in reconcilers)

    target = rounds() + more
    return lambda: rounds() >= target


async def test_one_reconciler_leads_and_another_takes_over(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    async with reconciling(pool) as (first, running):
        await eventually(rounds_of(first))
        async with reconciling(pool) as (second, _):
            await eventually(rounds_of(first, more=20))
            assert second.rounds == 0
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await sql.execute("UPDATE maintenance SET until = until - interval '16 s'")
            await eventually(rounds_of(second))
            assert second.leading


async def test_who_does_the_maintenance_and_when_it_was_done_are_shown(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    async with reconciling(pool) as (reconciler, _):
        await eventually(rounds_of(reconciler))
        assert metric("maintenance_leading") == 1
        assert 0 <= metric("maintenance_round_age_seconds") < 60
        await sql.execute("UPDATE maintenance SET holder = gen_random_uuid()")
        await eventually(lambda: metric("maintenance_leading") == 0)


@pytest.mark.parametrize("by", [3600, -3600, 40, -40])
async def test_who_leads_corrects_a_jump_of_the_databases_clock(
    pool: asyncpg.Pool, sql: asyncpg.Connection, by: float
) -> None:
    jumps = metric("clock_jumps_total")
    async with reconciling(pool) as (reconciler, _), reconciling(pool) as (other, _):
        await eventually(rounds_of(reconciler, other))
        await sql.execute("UPDATE task_clock SET correction = make_interval(secs => $1)", by)
        await eventually(lambda: metric("clock_jumps_total") == jumps + 1)
        await eventually(rounds_of(reconciler, other))
        correction = await sql.fetchval("SELECT correction FROM task_clock")
        assert abs(correction.total_seconds()) < 1
        assert metric("clock_jumps_total") == jumps + 1


async def test_what_is_committed_after_a_jump_was_corrected_is_mended_too(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    [id_] = await accept(pool, A)
    jumps = metric("clock_jumps_total")
    async with reconciling(pool) as (reconciler, _):
        await eventually(rounds_of(reconciler))
        await sql.execute("UPDATE task_clock SET correction = interval '1 hour'")
        await eventually(lambda: metric("clock_jumps_total") == jumps + 1)
        # As an outcome does that was written while the clock was ahead.
        await sql.execute("UPDATE task SET due_at = due_at + interval '1 hour'")

        async def is_due() -> bool:
            return bool((await row(sql, id_))["due_in"] < 60)

        await eventually(is_due)


async def test_a_slow_round_is_followed_by_a_long_rest(pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while an old snapshot lives."""
    real, ahead = clock.now, 0.0
    monkeypatch.setattr(clock, "now", lambda: real() + ahead)
    expire = expiry.expire

    async def slow(*arguments: Any) -> list[expiry.Ended]:
        nonlocal ahead
        ahead += 1000
        return await expire(*arguments)

    monkeypatch.setattr(expiry, "expire", slow)
    async with reconciling(pool) as (reconciler, _):
        await eventually(lambda: reconciler.turns > 10)
        assert (reconciler.rounds, reconciler.leading) == (1, True)
        ahead += 4000
        await eventually(rounds_of(reconciler, more=1))


@pytest.mark.parametrize("failure", [asyncpg.PostgresConnectionError("gone"), ZeroDivisionError("a bug")])
async def test_a_reconciler_goes_on_after_any_failure(pool: asyncpg.Pool, failure: Exception) -> None:
    async with reconciling(pool) as (reconciler, running):
        await eventually(rounds_of(reconciler))
        reconciler.failure = failure
        await eventually(lambda: reconciler.failure is None)
        await eventually(rounds_of(reconciler))
        assert not running.done()


async def test_other_work_is_done_while_leading_and_goes_on_after_any_failure(pool: asyncpg.Pool) -> None:
    first, second = (Reconciler(pool, Clock(settle_seconds=0), round_seconds=ROUND) for _ in range(2))
    first.leading = True
    failures: list[Exception] = [asyncpg.UndefinedFunctionError("not migrated"), ZeroDivisionError("a bug")]
    done: list[Reconciler] = []

    async def work(reconciler: Reconciler) -> None:
        done.append(reconciler)
        if failures:
            raise failures.pop()

    running = [asyncio.create_task(each.whenever_leading(partial(work, each))) for each in (first, second)]
    await eventually(lambda: len(done) > 5)
    assert set(done) == {first}
    first.leading, second.leading = False, True
    await eventually(lambda: second in done)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
