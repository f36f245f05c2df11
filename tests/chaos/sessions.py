"""What somebody else's sessions do to the database: a `psql` forgotten with its transaction open."""

import random
from collections.abc import AsyncIterator

from tests.chaos.rig import Rig, until

LOCKED = 20


async def locked_rows(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """Some unfinished tasks' rows are locked. Their devices have to wait; no other may."""
    async with rig.admin() as connection:
        transaction = connection.transaction()
        await transaction.start()
        locked: list[str] = []

        async def lock() -> bool:
            # In all states, and again and again: those that are dispatched are there for some milliseconds only.
            for state in ("begun_at IS NULL AND due_at IS NULL", "begun_at IS NOT NULL", "due_at IS NOT NULL"):
                rows = await connection.fetch(
                    f"SELECT id::text FROM task WHERE active AND {state} LIMIT 3 FOR UPDATE SKIP LOCKED"
                )
                locked.extend(row["id"] for row in rows)
            return len(locked) >= LOCKED

        await until(lock, 2)
        rig.history.write("locked", tasks=locked)
        yield
        rig.history.write("unlocked", tasks=locked)
        await transaction.rollback()


async def old_snapshot(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """Somebody reads for so long that no row that has died meanwhile may be cleared away."""
    async with rig.admin() as connection, connection.transaction(isolation="repeatable_read"):
        await connection.fetchval("SELECT count(*) FROM chaos_unfinished")
        yield
