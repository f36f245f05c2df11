"""Whose turn it is, on a real PostgreSQL."""

from collections.abc import Awaitable

import asyncpg

from service_b.tasks import deployment
from tests.tasks import (
    A,
    B,
    C,
    accept,
    apply,
    claim,
    claimed_by_id,
    end_by_hand,
    expire,
    finish,
    give_back,
    promote_stranded,
    states,
)


async def test_what_becomes_due_is_notified_at_once_and_what_is_held_is_not(
    pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    heard: list[str] = []
    await sql.add_listener(await deployment.name_due(sql), lambda *arguments: heard.append(str(arguments[2])))

    async def notifications(awaitable: Awaitable[object]) -> int:
        heard.clear()
        await awaitable
        await sql.execute("SELECT 1")  # What was sent before comes with the answer, at the latest.
        return len(heard)

    assert await notifications(accept(pool, A, A, A, B)) == 0
    claimed = list((await claimed_by_id(pool)).values())
    of_a, of_b = sorted(claimed, key=lambda dispatch: dispatch.equipment_id)
    assert await notifications(apply(pool, give_back(of_b, hold_seconds=60))) == 0
    assert await notifications(apply(pool, finish(of_b))) == 0
    assert await notifications(apply(pool, give_back(of_a))) == 1
    [of_a] = await claim(pool, 1)
    assert await notifications(apply(pool, finish(of_a))) == 1
    assert await notifications(apply(pool, finish(of_a))) == 0
    await accept(pool, C, C)
    await sql.execute("UPDATE task SET deadline_at = now() WHERE equipment_id = $1 AND active", C)
    assert await notifications(expire(pool, 10)) == 1


async def strand(sql: asyncpg.Connection, *devices: str) -> None:
    await end_by_hand(sql, "active AND equipment_id = ANY($1::text[])", devices)


async def test_stranded_tasks_are_promoted_round_and_round(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    devices = ["DEVICE0a", *(f"DEVICE{number}" for number in range(10, 17)), "aDEVICE"]
    first = await accept(pool, *devices)
    second, third = await accept(pool, *devices), await accept(pool, *devices)
    assert await promote_stranded(pool, "", 100) == ("", 0)
    stranded = [devices[0], devices[2], devices[8]]
    await strand(sql, *stranded)
    after, found = "", 0
    rounds: list[str] = []
    while not rounds or after:
        after, promoted = await promote_stranded(pool, after, 4)
        rounds.append(after)
        found += promoted
    assert rounds == [sorted(devices)[3], sorted(devices)[7], ""]
    assert found == 3
    expected = ["due" if device in stranded else "waiting" for device in devices]
    assert await states(sql, second) == expected
    assert await states(sql, third) == ["waiting"] * 9
    assert (await states(sql, first)).count("due") == 6
    assert await promote_stranded(pool, "", 100) == ("", 0)


async def test_with_nothing_waiting_nothing_is_stranded(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    await accept(pool, A)
    await strand(sql, A)
    assert await promote_stranded(pool, "", 10) == ("", 0)
    assert await promote_stranded(pool, "zzz", 10) == ("", 0)
