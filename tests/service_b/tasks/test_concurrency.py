"""Many at once, on few devices, on a real PostgreSQL."""

import asyncio
import random
from collections import Counter, defaultdict
from uuid import UUID, uuid4

import asyncpg

from service_b.database import DatabaseSettings, create_pool
from service_b.tasks import claims, leases, outcomes
from service_b.tasks.outcomes import Change
from tests.tasks import accept, expire, finish, give_back, lease_of, promote_stranded


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

        async def accept_many() -> list[UUID]:
            ids: list[UUID] = []
            for _ in range(25):
                batch = chance.choices(devices, k=chance.randint(1, 12))
                # Some run out of time while they wait.
                ids += await accept(pool, *batch, deadline_seconds=chance.choice([0.1, 3600, 3600, 3600]))
            return ids

        async def work() -> None:
            while inserting or await sql_pending():
                claimed = await claims.claim(pool, chance.randint(1, 5))
                changes = []
                for dispatch in claimed:
                    working[dispatch.equipment_id] += 1
                    assert working[dispatch.equipment_id] == 1, "two at once"
                await asyncio.sleep(0)
                unsent = [(dispatch.id, dispatch.attempt) for dispatch in claimed if chance.random() < 0.1]
                wishes = [(dispatch.id, dispatch.attempt, lease_of(dispatch)) for dispatch in claimed]
                answers = await leases.grant(pool, [wish for wish in wishes if wish[:2] not in unsent])
                for dispatch in claimed:
                    working[dispatch.equipment_id] -= 1
                    if (dispatch.id, dispatch.attempt) in unsent:
                        continue
                    answer = answers.pop(0)
                    match chance.random():
                        case _ if answer in (leases.Answer.HELD, leases.Answer.EXPIRED):
                            unsent.append((dispatch.id, dispatch.attempt))
                        case dice if dice < 0.1:
                            changes.append(give_back(dispatch))
                        case _:
                            served[dispatch.equipment_id].append(dispatch.id)
                            changes += [finish(dispatch), Change(uuid4(), 1, uuid4(), 200, None)]
                chance.shuffle(changes)
                while unsent:
                    unsent = await claims.make_due_again(pool, unsent)
                await record(changes)
                await record(changes)

        async def record(changes: list[Change]) -> None:
            """Repeat what is held for a moment by a claim, or by the one that finds out that it is late, too."""
            while changes:
                async with pool.acquire() as connection:
                    applied = await outcomes.apply(connection, changes, max_attempts=3)
                changes = [change for change in changes if change.key in applied.held]

        async def sql_pending() -> bool:
            return bool(await pool.fetchval("SELECT EXISTS (SELECT FROM task)"))

        async def expire_many() -> None:
            while inserting or await sql_pending():
                await expire(pool, 5)
                await asyncio.sleep(0.01)

        async with asyncio.timeout(90):
            others = [*(asyncio.create_task(work()) for _ in range(5)), asyncio.create_task(expire_many())]
            accepted = await asyncio.gather(*(accept_many() for _ in range(6)))
            inserting = False
            await asyncio.gather(*others)
        assert await promote_stranded(pool, "", 100) == ("", 0)

    ended = {found["id"]: found for found in await sql.fetch("SELECT id, equipment_id, status, code FROM finished")}
    assert len(ended) == sum(len(ids) for ids in accepted)
    assert {found["status"] for found in ended.values()} == {"success", "error"}
    order = {id_: position for ids in served.values() for position, id_ in enumerate(ids)}
    assert order.keys() == {id_ for id_, found in ended.items() if found["code"] == 200}
    for ids in accepted:
        for device in devices:
            # Each was accepted before the next was sent.
            positions = [order[id_] for id_ in ids if id_ in order and ended[id_]["equipment_id"] == device]
            assert positions == sorted(positions)
