"""What the ends of calls say of service A: written down at once or later, and never lost."""

from uuid import uuid4

import asyncpg
import pytest

import runtime.clock
from messaging.messages import Outcome, OutcomeKind
from service_b.results.silence import Silence

SUCCESS, UNKNOWN = OutcomeKind.SUCCESS, OutcomeKind.UNKNOWN


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the test makes, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(runtime.clock, "now", lambda: now[0])
    return now


async def say(silence: Silence, *kinds: OutcomeKind) -> None:
    for kind in kinds:
        silence.add(Outcome(task_id=uuid4(), attempt=1, lease=uuid4(), kind=kind))
    await silence.note()


async def noted(sql: asyncpg.Connection) -> tuple[int, int]:
    [row] = await sql.fetch("SELECT answers, silent_ends FROM service_a")
    return row["answers"], row["silent_ends"]


async def test_answers_are_noted_once_a_second_and_silent_ends_at_once(
    pool: asyncpg.Pool, sql: asyncpg.Connection, now: list[float]
) -> None:
    silence = Silence(pool)
    await say(silence, UNKNOWN, SUCCESS, SUCCESS)
    assert await noted(sql) == (1, 0)
    await say(silence, SUCCESS)
    now[0] += 0.9
    await say(silence, OutcomeKind.NOT_FOUND)
    assert await noted(sql) == (1, 0)
    await say(silence, UNKNOWN, UNKNOWN)
    assert await noted(sql) == (2, 2), "with the answer that was kept"
    await say(silence, UNKNOWN, OutcomeKind.LOST)
    assert await noted(sql) == (2, 3)
    await say(silence, OutcomeKind.REJECTED)
    assert await noted(sql) == (2, 3)
    now[0] += 1
    await say(silence)
    assert await noted(sql) == (3, 0)
    now[0] += 1
    await say(silence, OutcomeKind.UNOPENED)
    assert await noted(sql) == (3, 0), "service A was not asked"


async def test_what_cannot_be_noted_is_kept(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    silence = Silence(pool)
    async with sql.transaction():
        await sql.fetch("SELECT FROM service_a FOR UPDATE")
        await say(silence, SUCCESS, UNKNOWN)
    await sql.execute("ALTER TABLE service_a RENAME TO elsewhere")
    await say(silence, UNKNOWN)
    await sql.execute("ALTER TABLE elsewhere RENAME TO service_a")
    await say(silence, UNKNOWN)
    assert await noted(sql) == (1, 3)
