"""Which ends of a call use up a task's attempts: by what clients are told and by the fake A's ledger."""

from collections import deque

import pytest

from tests.conftest import eventually
from tests.e2e.conftest import Errors, Fleet, Scenario, Stage, raise_error, serials
from tests.fake_a import answer, reset

SHORT = {"SERVICE_A_GRACE_SECONDS": "1"}
"""After an end without an answer a device is left alone for the rest of a call's limit: two seconds."""


async def a_device_that_always_breaks_off_ends_as_an_error_after_three_while_others_are_answered(fleet: Fleet) -> None:
    fleet.environment |= SHORT
    fake = fleet.fake_a
    fake.script["BROKEN01"] = deque([reset()] * 20)
    web, *_ = await fleet.start("service_b", "service_b.results", "configurator")
    broken = await fleet.submit_one(web, "BROKEN01")
    others: list[str] = []

    async def is_over() -> bool:
        others.append(await fleet.submit_one(web, "ANSWERED1"))
        return await fleet.code(web, broken) != 204

    await eventually(is_over, every=0.1)
    assert await fleet.final_codes(web, [broken, *others]) == [500] + [200] * len(others)
    assert [work.attempt for work in fake.calls("BROKEN01")] == [1, 2, 3]
    assert fake.overlapping() == []


async def an_outage_in_which_nobody_is_answered_ends_no_task(fleet: Fleet) -> None:
    """A gateway in front of A says 502, for longer than three attempts take."""
    fleet.environment |= SHORT
    fake = fleet.fake_a
    web, *_ = await fleet.start("service_b", "service_b.results", "configurator")
    assert await fleet.final_codes(web, [await fleet.submit_one(web, "BEFORE01")]) == [200]
    fake.default = answer(502, "<html>Bad Gateway</html>")
    devices = serials(3)
    paths = await fleet.submit(web, devices)
    await eventually(lambda: min(len(fake.calls(serial)) for serial in devices) >= 5)
    assert {await fleet.code(web, path) for path in paths} == {204}
    fake.default = answer()
    assert await fleet.final_codes(web, paths) == [200] * len(paths)
    assert fake.overlapping() == []


SCENARIOS: dict[str, Scenario] = {
    "an outage in which nobody is answered ends no task": an_outage_in_which_nobody_is_answered_ends_no_task,
    "a device that always breaks off ends as an error after three while others are answered": (
        a_device_that_always_breaks_off_ends_as_an_error_after_three_while_others_are_answered
    ),
}


@pytest.fixture(scope="module")
def errors(stage: Stage) -> Errors:
    return stage.play(SCENARIOS, at_once=len(SCENARIOS), users=True)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_how_many_count(errors: Errors, scenario: str) -> None:
    raise_error(errors, scenario)
