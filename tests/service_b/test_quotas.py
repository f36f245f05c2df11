"""How many unfinished tasks the tokens of one name may have, on a real PostgreSQL."""

from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

import runtime.clock
from service_b.quotas import BATCH, Quotas
from service_b.tasks import inserts
from tests.tasks import A, apply, claim, finish, new_task


async def store(pool: asyncpg.Pool, quotas: Quotas, names: Sequence[str | None]) -> list[bool]:
    """Store what is admitted, each for a device of its own."""
    new = [new_task(f"{name or 'NOBODY'}{number:06}", submitted_by=name) for number, name in enumerate(names)]
    admitted = await quotas.admit(new)
    kept = [task for task, may in zip(new, admitted, strict=True) if may]
    await inserts.insert(pool, kept, grace_seconds=0, deadline_seconds=3600)
    return admitted


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic time, to be set."""
    now = [1000.0]
    monkeypatch.setattr(runtime.clock, "now", lambda: now[0])
    return now


@pytest.mark.usefixtures("now")
async def test_a_name_gets_so_many_and_no_more(pool: asyncpg.Pool) -> None:
    quotas = Quotas(pool, 250)
    admitted = [sum(await store(pool, quotas, ["CLIENT"] * 100)) for _ in range(5)]
    assert admitted == [100, 100, 50, 0, 0]
    assert await store(pool, quotas, ["CLIENT", "OTHER0", None, "CLIENT"]) == [False, True, True, False]


async def test_what_has_ended_makes_room(pool: asyncpg.Pool, now: list[float]) -> None:
    quotas = Quotas(pool, 3)
    assert await store(pool, quotas, ["CLIENT"] * 5) == [True] * 3 + [False] * 2
    assert await store(pool, quotas, ["CLIENT"]) == [False]
    await apply(pool, *(finish(dispatch) for dispatch in await claim(pool, 2)))
    assert await store(pool, quotas, ["CLIENT"]) == [False], "not counted again so soon"
    now[0] += 1
    assert await store(pool, quotas, ["CLIENT"] * 3) == [True, True, False]


async def test_several_processes_exceed_it_by_a_batch_each(
    pool: asyncpg.Pool, sql: asyncpg.Connection, now: list[float]
) -> None:
    most, processes = 2000, [Quotas(pool, 2000) for _ in range(3)]
    while any([any(await store(pool, quotas, ["CLIENT"] * BATCH)) for quotas in processes]):
        now[0] += 0.01
    now[0] += 1
    assert not any([any(await store(pool, quotas, ["CLIENT"])) for quotas in processes])
    assert most <= await sql.fetchval("SELECT count(*) FROM task") <= most + 2 * BATCH


async def test_the_count_reads_no_more_than_it_must(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    """Far from the limit it counts seldom: of 2,000 tasks, one in a sixteenth of what is free."""
    counted = 0
    fetchval = pool.fetchval

    class Counting:
        async def fetchval(self, *arguments: Any) -> object:
            nonlocal counted
            counted += 1
            return await fetchval(*arguments)

    quotas = Quotas(Counting(), 100_000)  # type: ignore[arg-type]
    for _ in range(20):
        assert all(await quotas.admit([new_task(A, submitted_by="CLIENT")] * BATCH))
    assert counted == 1
