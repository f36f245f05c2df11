"""What a client does that does not know: it sends its request again under the same key, and waits elsewhere."""

import asyncio
from functools import partial

import aiohttp
import pytest

from tests.conftest import eventually
from tests.e2e.conftest import BODY, PATH, Fleet, held, in_thread
from tests.e2e.test_crash_points import start_dying
from tests.system.processes import Process

DEVICE = "DEVICE1"


async def post(fleet: Fleet, web: Process, key: str) -> tuple[str, bool]:
    """POST under a key; return the task's path, and whether it was there already."""
    headers = {"Idempotency-Key": key}
    async with fleet.client.post(f"{web.url}{PATH}/{DEVICE}", json=BODY, headers=headers) as response:
        assert response.status == 200, await response.text()
        return response.headers["Location"], "Idempotent-Replayed" in response.headers


async def wait(fleet: Fleet, web: Process, path: str) -> tuple[int, str]:
    """Wait for the end of a task; return what is told, and which wait was applied."""
    async with fleet.client.get(web.url + path, headers={"Prefer": "wait=120"}) as response:
        return (await response.json())["code"], response.headers["Preference-Applied"]


async def test_a_key_is_one_task_over_two_processes_a_crash_and_a_restart(fleet: Fleet) -> None:
    webs = await fleet.start("service_b", "service_b")
    answers = await asyncio.gather(*(post(fleet, web, "k") for web in webs * 25))
    assert len({path for path, _ in answers}) == 1
    assert sum(not replayed for _, replayed in answers) == 1

    doomed = fleet.process("service_b")
    dying = await in_thread(start_dying, doomed, "web: committed, not answered")
    await eventually(partial(in_thread, doomed.is_ready), every=0.1)
    with pytest.raises(aiohttp.ClientError):
        await post(fleet, doomed, "lost")
    await eventually(lambda: dying.poll() is not None, every=0.1)
    assert dying.returncode == -9
    await in_thread(doomed.start)
    stored = {f"{PATH}/{DEVICE}/task/{row['id']}" for row in await fleet.sql.fetch("SELECT id FROM task")}
    assert len(stored) == 2
    [lost] = stored - {answers[0][0]}
    assert [await post(fleet, web, "lost") for web in (doomed, *webs)] == [(lost, True)] * 3


async def test_a_wait_goes_on_with_another_process_when_the_first_one_stops(fleet: Fleet) -> None:
    fleet.environment |= {"SERVICE_A_GRACE_SECONDS": "120"}
    gate = asyncio.Event()
    fleet.fake_a.default = held(gate)
    webs = await fleet.start("service_b", "service_b")
    await fleet.start("service_b.results", "configurator")
    path = await fleet.submit_one(webs[0], DEVICE)
    for web in webs:
        waiting = asyncio.create_task(wait(fleet, web, path))
        await eventually(partial(_waits, fleet, web))
        if web is webs[0]:
            await in_thread(web.terminate)
            assert await waiting == (204, "wait=120")
        else:
            gate.set()
            assert await waiting == (200, "wait=120")


async def _waits(fleet: Fleet, web: Process) -> bool:
    return await fleet.metric(web, "requests_waiting") == 1
