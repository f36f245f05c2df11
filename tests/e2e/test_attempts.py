"""Which ends of a call use up a task's attempts: by what clients are told and by the fake A's ledger."""

from collections import deque

from tests.conftest import eventually
from tests.e2e.conftest import Fleet, serials
from tests.fake_a import answer, reset

SHORT = {"SERVICE_A_GRACE_SECONDS": "1"}
"""After an end without an answer a device is left alone for the rest of a call's limit: two seconds."""


async def test_a_device_that_always_breaks_off_ends_as_an_error_after_three_while_others_are_answered(
    fleet: Fleet,
) -> None:
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


async def test_an_outage_in_which_nobody_is_answered_ends_no_task(fleet: Fleet) -> None:
    """A gateway in front of A says 502, for longer than three attempts take."""
    fleet.environment |= SHORT
    fake = fleet.fake_a
    web, *_ = await fleet.start("service_b", "service_b.results", "configurator")
    assert await fleet.final_codes(web, [await fleet.submit_one(web, "BEFORE01")]) == [200]
    fake.default = answer(502, "<html>Bad Gateway</html>")
    devices = serials(5)
    paths = await fleet.submit(web, devices)
    await eventually(lambda: min(len(fake.calls(serial)) for serial in devices) >= 5)
    assert {await fleet.code(web, path) for path in paths} == {204}
    fake.default = answer()
    assert await fleet.final_codes(web, paths) == [200] * len(paths)
    assert fake.overlapping() == []
