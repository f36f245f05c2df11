"""That every task ends, by the processes as they run in production."""

import asyncio
from collections.abc import Mapping
from functools import partial

import pytest

from tests.conftest import eventually
from tests.e2e.conftest import GRACE_SECONDS, Errors, Fleet, Scenario, Stage, held, in_thread, raise_error, serials
from tests.fake_a import reset
from tests.tasks import step_clock

LIMIT = 1 + GRACE_SECONDS


async def the_call_of_a_killed_configurator_is_made_again_after_its_limit(fleet: Fleet) -> None:
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
    first, second, *_ = fleet.fake_a.ledger  # A busy machine may take longer than a call may.
    assert second.started - first.started >= LIMIT
    assert await fleet.metric(web, "tasks_lost_calls_total") == 1


async def the_deadline_ends_what_nobody_has_begun_though_it_is_dispatched(fleet: Fleet) -> None:
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


async def a_step_of_the_clock_shortens_no_hold_delays_nothing_for_long_and_ends_nothing(
    fleet: Fleet, by: float
) -> None:
    fleet.fake_a.script["BROKEN01"].append(reset())
    fleet.fake_a.delay = 0.5
    await fleet.start("service_b.results", "configurator")
    web, second = webs = await fleet.start("service_b", "service_b")

    async def one_leads() -> bool:
        return any([await fleet.metric(each, "maintenance_leading") for each in webs])

    await eventually(one_leads)  # By then each of them knows what time it is.
    held_paths = [await fleet.submit_one(web, "BROKEN01")]
    await fleet.calls(1)

    async def is_held() -> bool:
        return bool(await fleet.sql.fetchval("SELECT count(*) FROM task WHERE chances IS NOT NULL"))

    await eventually(is_held)
    before = await fleet.submit(web, [*serials(50), *serials(50)])
    await step_clock(fleet.sql, by)
    after = await fleet.submit(second, serials(50, "LATER"))
    paths = [*held_paths, *before, *after]
    assert await fleet.codes(web, paths, 60) == [200] * len(paths)
    first, again, *_ = fleet.fake_a.calls("BROKEN01")
    # Less how far an estimate may be off, and the time from the lease to the call.
    assert again.started - first.started >= LIMIT - 0.5


SCENARIOS: Mapping[str, Scenario] = {
    "the call of a killed configurator is made again after its limit": (
        the_call_of_a_killed_configurator_is_made_again_after_its_limit
    ),
    "the deadline ends what nobody has begun though it is dispatched": (
        the_deadline_ends_what_nobody_has_begun_though_it_is_dispatched
    ),
} | {
    f"a step of the clock by {by} s shortens no hold, delays nothing for long, and ends nothing": partial(
        a_step_of_the_clock_shortens_no_hold_delays_nothing_for_long_and_ends_nothing, by=by
    )
    for by in (3600, -3600, 15, -15)
}


@pytest.fixture(scope="module")
def errors(stage: Stage) -> Errors:
    return stage.play(SCENARIOS, at_once=3, users=True)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_ends(errors: Errors, scenario: str) -> None:
    raise_error(errors, scenario)
