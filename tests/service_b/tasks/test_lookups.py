"""Looking tasks up, on a real PostgreSQL."""

from uuid import uuid4

import asyncpg

from service_b.tasks import lookups
from service_b.tasks.lookups import Status
from tests.tasks import (
    A,
    B,
    C,
    accept,
    apply,
    claimed_by_id,
    finish,
)


async def test_statuses_come_in_the_order_asked_for(pool: asyncpg.Pool) -> None:
    ids = await accept(pool, A, B, C)
    claimed = await claimed_by_id(pool)
    await apply(pool, finish(claimed[ids[0]]), finish(claimed[ids[1]], 404))
    asked = [ids[2], uuid4(), ids[1], ids[0], ids[1]]
    assert await lookups.look_up(pool, asked) == [Status(C, None), None, Status(B, 404), Status(A, 200), Status(B, 404)]
