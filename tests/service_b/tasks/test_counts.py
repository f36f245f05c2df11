"""Counting the backlog, on a real PostgreSQL."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from messaging.sealing.sealer import Sealer
from service_b.tasks import claims, counts, inserts
from service_b.tasks.inserts import Wishes
from tests.seals import make_keys
from tests.tasks import (
    A,
    B,
    C,
    accept,
    begin,
    let_time_pass,
    new_task,
)


async def test_the_backlog_is_counted_by_state(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    assert await counts.count(pool) == counts.Backlog(0, 0, 0, 0, 0, None, None, None)
    await accept(pool, A, A, A, B, C, "DEVICE0D")
    await accept(pool, C, wishes=Wishes(not_before=datetime.now(UTC) + timedelta(hours=1)))
    [first, *_] = await claims.claim(pool, 3)
    await let_time_pass(sql, 100)
    await begin(pool, first)
    await let_time_pass(sql, 200)
    backlog = await counts.count(pool)
    assert (backlog.scheduled, backlog.waiting, backlog.due, backlog.dispatched, backlog.running) == (1, 2, 1, 2, 1)
    assert backlog.oldest_seconds
    assert backlog.dispatched_seconds
    assert backlog.running_seconds
    assert 200 <= backlog.running_seconds < 300 <= backlog.dispatched_seconds <= backlog.oldest_seconds
    await accept(pool, "DEVICE0E")
    assert ((await counts.count(pool)).oldest_seconds or 0) >= 300


async def test_the_keys_that_unfinished_tasks_need_are_counted_and_nothing_else_is_told(
    pool: asyncpg.Pool, tmp_path: Path
) -> None:
    assert await counts.count_keys(pool) == {}
    keys = [make_keys(tmp_path / name) for name in ("old", "new")]
    tasks = [new_task(f"DEVICE{n}") for n in range(6)]
    parameters = [
        *(
            Sealer(keys[which].public).seal("{}", task.id, task.equipment_id)
            for which, task in zip((0, 1, 1, 1), tasks, strict=False)
        ),
        # What a client calls so is not for everybody to see.
        '{"sealed":"1.0123456789abcdef.secret","username":"a"}',
        '{"sealed":"1.hunter2-Secret..a"}',
    ]
    sealed = [replace(task, parameters=text) for task, text in zip(tasks, parameters, strict=True)]
    await inserts.insert(pool, sealed, grace_seconds=0, deadline_seconds=60)
    assert await counts.count_keys(pool) == {keys[0].id: 1, keys[1].id: 3}
