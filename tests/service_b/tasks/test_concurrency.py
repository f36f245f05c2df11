"""Many at once, on few devices, on a real PostgreSQL."""

import asyncio
import random
from collections import Counter, defaultdict
from uuid import UUID, uuid4

import asyncpg

from service_b.database import DatabaseSettings, create_pool
from service_b.tasks import claims
from service_b.tasks.outcomes import Change
from tests.tasks import accept, apply, expire, finish, give_back, promote_stranded


async def test_under_concurrent_load_every_task_ends_one_at_a_time_and_in_order(
    database_url: str, database: DatabaseSettings, sql: asyncpg.Connection
) -> None:
    """Inserts, outcomes, returns, expiry and promotion on few devices: no deadlock, nothing stranded, nothing lost."""
    devices = [f"DEVICE{number}" for number in range(6)]
    chance = random.Random(7776)
    working: Counter[str] = Counter()
    served: defaultdict[str, list[UUID]] = defaultdict(list)
    inserting = True

    async with create_pool(database.model_copy(update={"pool_size": 14})) as pool:

        async def accept_many() -> int:
            total = 0
            for _ in range(25):
                batch = chance.choices(devices, k=chance.randint(1, 12))
                await accept(pool, *batch, deadline_seconds=3600)
                total += len(batch)
            return total

        async def work() -> None:
            while inserting or await sql_pending():
                claimed = await claims.claim(pool, chance.randint(1, 5))
                changes = []
                for dispatch in claimed:
                    working[dispatch.equipment_id] += 1
                    assert working[dispatch.equipment_id] == 1, "two at once"
                await asyncio.sleep(0)
                unsent = []
                for dispatch in claimed:
                    working[dispatch.equipment_id] -= 1
                    match chance.random():
                        case dice if dice < 0.1:
                            unsent.append((dispatch.id, dispatch.attempt))
                        case dice if dice < 0.2:
                            changes.append(give_back(dispatch))
                        case _:
                            served[dispatch.equipment_id].append(dispatch.id)
                            changes += [finish(dispatch), Change(uuid4(), 1, 200, None)]
                chance.shuffle(changes)
                if unsent:
                    await claims.make_due_again(pool, unsent)
                if changes:
                    await apply(pool, *changes)
                    await apply(pool, *changes)

        async def sql_pending() -> bool:
            return bool(await pool.fetchval("SELECT EXISTS (SELECT FROM task WHERE status = 'pending')"))

        async def expire_many() -> None:
            while inserting or await sql_pending():
                # Some run out of time while they wait.
                await pool.execute(
                    "UPDATE task SET deadline_at = now() WHERE id IN (SELECT id FROM task"
                    " WHERE status = 'pending' AND NOT active ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED)"
                )
                await expire(pool, 5)
                await asyncio.sleep(0.01)

        async with asyncio.timeout(90):
            others = [*(asyncio.create_task(work()) for _ in range(5)), asyncio.create_task(expire_many())]
            totals = await asyncio.gather(*(accept_many() for _ in range(6)))
            inserting = False
            await asyncio.gather(*others)
        assert await promote_stranded(pool, "", 100) == ("", 0)

    ended = await sql.fetch("SELECT id, equipment_id, status, code FROM task ORDER BY seq")
    assert len(ended) == sum(totals)
    assert {found["status"] for found in ended} == {"success", "error"}
    for device in devices:
        succeeded = [found["id"] for found in ended if found["equipment_id"] == device and found["code"] == 200]
        assert served[device] == succeeded
