"""Claiming in turn, on a real PostgreSQL."""

import asyncio
from collections import Counter
from datetime import timedelta

import asyncpg
import pytest

import runtime.clock
from service_b.database import DatabaseSettings, create_pool
from service_b.tasks import claims
from service_b.tasks.claims import Dispatch
from service_b.tasks.lanes import Lanes
from service_b.tasks.turns import claim_in_turn
from tests.tasks import A, accept, apply, begin, finish, rows_read, states


async def store(pool: asyncpg.Pool, **counts: int) -> None:
    """So many tasks for each client, due in this order; `nobody` has no name."""
    for name, count in counts.items():
        devices = [f"{name.upper():X<6}{number:06}" for number in range(count)]
        for start in range(0, count, 500):
            await accept(pool, *devices[start : start + 500], submitted_by=None if name == "nobody" else name)


def whose(dispatches: list[Dispatch]) -> dict[str, int]:
    return dict(Counter(dispatch.equipment_id.rstrip("0123456789").rstrip("X").lower() for dispatch in dispatches))


async def test_one_task_is_not_held_up_by_anothers_thousands(pool: asyncpg.Pool) -> None:
    await store(pool, bulk=4000, single=1)
    claimed = await claim_in_turn(pool, 32, Lanes())
    assert whose(claimed) == {"bulk": 31, "single": 1}
    assert "single" in whose(claimed[:2]), "it is published first, too"


async def test_each_gets_its_share_and_nothing_is_left_free(pool: asyncpg.Pool) -> None:
    await store(pool, a=100, b=100, c=5, nobody=100)
    turns = Lanes()
    first = whose(await claim_in_turn(pool, 40, turns))
    # A share of ten each, and a share of the longest due; what `c` leaves goes there, too.
    assert first == {"a": 25, "b": 10, "c": 5}
    claimed = [whose(await claim_in_turn(pool, 40, turns)) for _ in range(8)]
    assert [sum(each.values()) for each in claimed] == [40] * 6 + [25, 0]
    assert claimed[0] == {"a": 27, "b": 13}


async def test_who_has_no_name_is_not_forgotten(pool: asyncpg.Pool) -> None:
    await store(pool, nobody=50, a=1000, b=1000)
    assert whose(await claim_in_turn(pool, 30, Lanes())) == {"nobody": 10, "a": 10, "b": 10}


async def test_where_not_all_have_a_turn_the_others_come_next(pool: asyncpg.Pool) -> None:
    await store(pool, a=9, b=9, c=9, d=9, e=9)
    turns = Lanes()
    served = [whose(await claim_in_turn(pool, 2, turns)) for _ in range(5)]
    assert served == [{"a": 1, "b": 1}, {"c": 1, "d": 1}, {"a": 1, "e": 1}, {"b": 1, "c": 1}, {"d": 1, "e": 1}]
    one = [whose(await claim_in_turn(pool, 1, turns)) for _ in range(5)]
    assert one == [{name: 1} for name in "abcde"]


async def test_within_a_client_the_longest_due_comes_first(pool: asyncpg.Pool) -> None:
    await store(pool, a=20)
    claimed = [await claim_in_turn(pool, 5, Lanes()) for _ in range(5)]
    assert [sorted(dispatch.equipment_id[-2:] for dispatch in each) for each in claimed] == [
        [f"{number:02}" for number in range(start, start + 5)] for start in (0, 5, 10, 15)
    ] + [[]]


async def test_what_is_not_due_yet_or_past_its_deadline_is_not_claimed(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    await store(pool, a=3)
    await sql.execute("UPDATE task SET due_at = now() + interval '1 minute' WHERE equipment_id LIKE '%0'")
    await sql.execute("UPDATE task SET deadline_at = now() WHERE equipment_id LIKE '%1'")
    [dispatch] = await claim_in_turn(pool, 9, Lanes())
    assert dispatch.equipment_id.endswith("2")
    due_at = await sql.fetchval("SELECT due_at FROM task WHERE equipment_id LIKE '%0'")
    assert await claim_in_turn(pool, 9, Lanes(), latest=due_at - timedelta(seconds=61)) == []


async def test_what_is_claimed_is_dispatched(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    ids = await accept(pool, A, A, submitted_by="a")
    [dispatch] = await claim_in_turn(pool, 9, Lanes())
    assert (dispatch.id, dispatch.attempt) == (ids[0], 1)
    assert await states(sql, ids) == ["dispatched", "waiting"]


async def test_concurrent_claims_are_disjoint_and_wait_for_nobody(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await store(pool, a=200, b=100)
    async with other.transaction():
        await other.execute("SELECT FROM task WHERE equipment_id LIKE '%000007' FOR UPDATE")
        async with asyncio.timeout(60):
            batches = await asyncio.gather(*(claim_in_turn(pool, 30, Lanes()) for _ in range(8)))
            while more := await claim_in_turn(pool, 100, Lanes()):
                batches.append(more)
    assert sum(map(len, batches)) == 298
    assert len(await claim_in_turn(pool, 100, Lanes())) == 2
    assert await sql.fetchval("SELECT max(attempt) FROM task") == 1


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic time, to be set."""
    now = [1000.0]
    monkeypatch.setattr(runtime.clock, "now", lambda: now[0])
    return now


async def test_what_was_left_behind_is_not_below_the_floor(
    pool: asyncpg.Pool, sql: asyncpg.Connection, now: list[float]
) -> None:
    """However long it has been due: the newer ones of others are claimed before it."""
    await store(pool, a=100, b=1)
    await sql.execute("UPDATE task SET due_at = due_at - interval '1 hour' WHERE submitted_by = 'a'")
    turns = Lanes()
    claimed = []
    while dispatches := await claim_in_turn(pool, 30, turns):
        claimed += dispatches
    assert len(claimed) == 101
    # All is claimed: so it looks a little below that from now on, and at everything now and then.
    await store(pool, d=1)
    assert len(await claim_in_turn(pool, 30, turns)) == 1
    await store(pool, c=2)
    await sql.execute("UPDATE task SET due_at = now() - interval '1 hour' WHERE equipment_id LIKE '%CX%1'")
    await sql.execute("UPDATE task SET due_at = now() - interval '1 second' WHERE equipment_id LIKE '%CX%0'")
    assert [each.equipment_id[-1] for each in await claim_in_turn(pool, 30, turns)] == ["0"]
    now[0] += 10
    assert [each.equipment_id[-1] for each in await claim_in_turn(pool, 30, turns)] == ["1"]


async def claim_all(pool: asyncpg.Pool, turns: Lanes) -> int:
    """Claim by the thirty until nothing is found; return how many there were."""
    claimed = 0
    while dispatches := await claim_in_turn(pool, 30, turns):
        claimed += len(dispatches)
    return claimed


async def test_the_floor_does_not_rise_while_something_is_left_behind(
    pool: asyncpg.Pool, sql: asyncpg.Connection, now: list[float]
) -> None:
    turns = Lanes(margin_seconds=0)
    for counts, found in (({"d": 1}, 1), ({"a": 100, "b": 1}, 101)):
        await store(pool, **counts)
        assert await claim_all(pool, turns) == found
    # The clock was put back.
    await store(pool, c=100)
    await sql.execute("UPDATE task SET due_at = due_at - interval '1 hour' WHERE submitted_by = 'c'")
    assert await claim_all(pool, turns) == 0
    now[0] += 10
    assert await claim_all(pool, turns) == 100


async def test_it_reads_little_more_than_it_claims(database: DatabaseSettings, sql: asyncpg.Connection) -> None:
    """Of 20 clients' 20,000 tasks, planned for no table at all."""
    async with create_pool(database.model_copy(update={"pool_size": 1})) as pool:
        await claim_in_turn(pool, 1, Lanes())
        await store(pool, **{f"client{chr(97 + number)}": 1000 for number in range(20)})
        turns = Lanes()
        for _ in range(8):
            before = await rows_read(pool, sql)
            dispatches = await claim_in_turn(pool, 40, turns)
            assert await rows_read(pool, sql) - before < 30 * 40
            await begin(pool, *dispatches)
            await apply(pool, *(finish(dispatch) for dispatch in dispatches))
        assert len(await claims.claim(pool, 5)) == 5
