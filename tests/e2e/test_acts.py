"""Tasks that are cancelled, scheduled and tried again, by processes that die meanwhile."""

import asyncio
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.conftest import eventually
from tests.e2e.conftest import BODY, Fleet, in_thread
from tests.fake_a import Behaviour, FakeA, answer
from tests.seals import make_keys
from tests.system.processes import Process

TASKS = "/api/v1/tasks"


async def post(fleet: Fleet, process: Process, path: str = TASKS, **body: Any) -> tuple[int, dict[str, Any]]:
    """POST, and return the status and the task that is shown."""
    async with fleet.client.post(f"{process.url}{path}", json=BODY | body if path == TASKS else None) as response:
        return response.status, await response.json()


async def reach(fleet: Fleet, process: Process, task: str, *states: str) -> dict[str, Any]:
    """Wait until a task is in one of these states, and return it."""
    shown: dict[str, Any] = {}

    async def is_there() -> bool:
        async with fleet.client.get(f"{process.url}{TASKS}/{task}") as response:
            shown.update(await response.json())
        return shown["state"] in states

    await eventually(is_there, every=0.1)
    return shown


async def test_what_is_cancelled_before_its_lease_never_reaches_a_and_what_is_scheduled_does_in_time(
    fleet: Fleet,
) -> None:
    """Its message lies there while nobody grants leases; the web process that cancels and schedules is killed."""
    fleet.process("configurator"), fleet.process("service_b.results")
    configurator, results = fleet.processes
    await in_thread(lambda: configurator.start(wait=False))
    [first_web] = await fleet.start("service_b")
    _, cancelled = await post(fleet, first_web, equipmentId="DEVICE1")
    _, behind = await post(fleet, first_web, equipmentId="DEVICE1")
    at = datetime.now(UTC) + timedelta(seconds=4)
    code, scheduled = await post(fleet, first_web, equipmentId="DEVICE2", notBefore=at.isoformat())
    assert (code, scheduled["state"]) == (202, "scheduled")
    _, meanwhile = await post(fleet, first_web, equipmentId="DEVICE2")
    await reach(fleet, first_web, cancelled["id"], "dispatched")
    code, shown = await post(fleet, first_web, f"{TASKS}/{cancelled['id']}/cancel")
    assert (code, shown["state"]) == (200, "cancelled")
    await in_thread(first_web.kill)
    await in_thread(results.start)
    [second_web] = await fleet.start("service_b")
    for task in (behind, meanwhile):
        assert (await reach(fleet, second_web, task["id"], "succeeded"))["attempt"]
    begun = (await reach(fleet, second_web, scheduled["id"], "succeeded"))["begunAt"]
    assert datetime.fromisoformat(begun) >= at
    assert (await reach(fleet, second_web, cancelled["id"], "cancelled"))["begunAt"] is None
    called = [work.task_id for work in fleet.fake_a.ledger]
    assert sorted(called) == sorted(task["id"] for task in (behind, meanwhile, scheduled))


def unavailable(begun: asyncio.Event, go_on: asyncio.Event) -> Behaviour:
    """Work until the test lets go, then be away."""

    async def behave(fake: FakeA, request: web.Request) -> web.StreamResponse:
        begun.set()
        await go_on.wait()
        return await answer(503)(fake, request)

    return behave


async def test_what_is_cancelled_during_its_call_is_not_tried_again_until_somebody_wants_that(
    fleet: Fleet, tmp_path: Path
) -> None:
    """The results process is killed and started again; the parameters are sealed, and B cannot open them."""
    keys, begun, go_on = make_keys(tmp_path / "keys"), asyncio.Event(), asyncio.Event()
    fleet.fake_a.script["DEVICE1"] = deque([unavailable(begun, go_on)])
    results, _ = await fleet.start("service_b.results", "configurator", SEAL_KEY_FILE=str(keys.private))
    [web_process] = await fleet.start("service_b", **keys.sealing, SERVICE_A_GRACE_SECONDS="60")
    _, task = await post(fleet, web_process, equipmentId="DEVICE1", externalId="order-77")
    path = f"{TASKS}/{task['id']}"
    await begun.wait()
    code, shown = await post(fleet, web_process, f"{path}/cancel")
    assert (code, shown["state"], shown["cancelRequested"]) == (202, "running", True)
    await in_thread(results.kill)
    go_on.set()
    await in_thread(results.start)
    ended = await reach(fleet, web_process, task["id"], "cancelled")
    assert [event["event"] for event in ended["history"]] == ["cancel requested", "attempt ended"]
    assert len(fleet.fake_a.ledger) == 1
    code, again = await post(fleet, web_process, f"{path}/retry")
    assert (code, again["retryOf"], again["externalId"]) == (202, task["id"], "order-77")
    assert (await reach(fleet, web_process, again["id"], "succeeded"))["history"] == []
    assert [work.task_id for work in fleet.fake_a.ledger] == [task["id"], again["id"]]
    assert [work.body["parameters"] for work in fleet.fake_a.ledger] == [BODY["parameters"]] * 2
