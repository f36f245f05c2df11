"""That every task ends, by the processes as they run in production."""

import asyncio

from tests.conftest import eventually
from tests.e2e.conftest import GRACE_SECONDS, Fleet, held, in_thread

LIMIT = 1 + GRACE_SECONDS


async def test_the_call_of_a_killed_configurator_is_made_again_after_its_limit(fleet: Fleet) -> None:
    """Its lease says when it began, so nothing has to be guessed: once limit and margin have passed, it is lost."""
    never = asyncio.Event()
    fleet.fake_a.script["DEVICE01"].append(held(never))
    web, _, configurator = await fleet.start("service_b", "service_b.results", "configurator")
    path = await fleet.submit_one(web, "DEVICE01")
    await fleet.calls(1)
    await in_thread(configurator.kill)
    await fleet.start("configurator")
    assert await fleet.final_codes(web, [path]) == [200]
    never.set()
    first, second = fleet.fake_a.ledger
    assert second.started - first.started >= LIMIT
    assert await fleet.metric(web, "tasks_lost_calls_total") == 1


async def test_the_deadline_ends_what_nobody_has_begun_though_it_is_dispatched(fleet: Fleet) -> None:
    web, _ = await fleet.start("service_b", "service_b.results", TASK_DEADLINE_SECONDS="3")
    paths = await asyncio.gather(*(fleet.submit_one(web, f"DEVICE0{number}") for number in range(3)))

    async def all_are_dispatched() -> bool:
        return bool(await fleet.sql.fetchval("SELECT count(*) = 3 FROM task WHERE dispatched_at IS NOT NULL"))

    await eventually(all_are_dispatched)
    assert await fleet.final_codes(web, paths) == [500] * 3
    await fleet.start("configurator")
    path = await fleet.submit_one(web, "DEVICE04")
    assert await fleet.codes(web, [path]) == [200], "the old messages were in front of it"
    assert [call.equipment_id for call in fleet.fake_a.ledger] == ["DEVICE04"], "their tasks had ended"
