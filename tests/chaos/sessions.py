"""What somebody else's sessions do to the database: a `psql` forgotten with its transaction open."""

import random
from collections.abc import AsyncIterator

from tests.chaos.rig import Rig, until

LOCKED = 10


async def locked_rows(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """Some unfinished tasks' rows are locked. Their devices have to wait; no other may."""
    async with rig.admin() as connection:
        transaction = connection.transaction()
        await transaction.start()
        locked: list[str] = []

        async def lock() -> bool:
            rows = await connection.fetch(
                "SELECT id::text FROM task WHERE id IN (SELECT id FROM chaos_unfinished) AND active"
                f" ORDER BY random() LIMIT {LOCKED - len(locked)} FOR UPDATE SKIP LOCKED"
            )
            locked.extend(row["id"] for row in rows)
            return len(locked) >= LOCKED

        await until(lock, 1)
        rig.history.write("locked", tasks=locked)
        yield
        rig.history.write("unlocked", tasks=locked)
        await transaction.rollback()


async def old_snapshot(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """Somebody reads for so long that no row that has died meanwhile may be cleared away."""
    async with rig.admin() as connection, connection.transaction(isolation="repeatable_read"):
        await connection.fetchval("SELECT count(*) FROM chaos_unfinished")
        yield
