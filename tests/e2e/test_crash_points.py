"""Whatever a process is about when it is killed, after a restart every task ends, and no device is worked on twice."""

import asyncio
import json
from functools import partial

import pytest
from aiohttp import web
from pydantic import SecretStr
from uuid_utils.compat import uuid7

from service_b.database import DatabaseSettings, create_pool
from service_b.tasks.inserts import NewTask, insert
from tests.conftest import eventually
from tests.e2e.conftest import (
    BODY,
    GRACE_SECONDS,
    NURSERY,
    PATH,
    Errors,
    Fleet,
    Scenario,
    Stage,
    in_thread,
    raise_error,
    serials,
)
from tests.e2e.crash_at import POINTS
from tests.fake_a import Behaviour, FakeA, answer
from tests.system.nursery import Child
from tests.system.processes import Module, Process
from tests.system.spawning import base_environment

MODULES: dict[str, Module] = {
    "relay": "service_b",
    "configurator": "configurator",
    "results": "service_b.results",
}
DEVICES = serials(5)
# Two tasks more wait for the first device.
TASKS = [*DEVICES, DEVICES[0], DEVICES[0]]
ANSWERS = {DEVICES[3]: 404, DEVICES[4]: 500}

CALLING = "configurator: calling"
"""Whether A has got a call is known to A only: it kills its caller, and works on."""

# How often A may be called. A device's first call is made again when its configurator may have died during it.
CALLS = dict.fromkeys([*POINTS, CALLING], (len(TASKS), len(TASKS))) | {
    CALLING: (len(TASKS) + len(DEVICES), len(TASKS) + len(DEVICES)),
    "configurator: answered, not published": (len(TASKS) + 1, len(TASKS) + len(DEVICES)),
    "configurator: published, not confirmed": (len(TASKS), len(TASKS) + len(DEVICES)),
    "configurator: confirmed, not acknowledged": (len(TASKS), len(TASKS) + len(DEVICES)),
}


async def crash(point: str, fleet: Fleet, starting: asyncio.Semaphore) -> None:
    """Let one process die at the point, start it again, and look at what became of the tasks."""
    fake = fleet.fake_a
    fake.delay, fake.default = 0.2, answer_or_kill()
    module = MODULES[point.split(":", maxsplit=1)[0]]
    others: list[Module] = ["service_b", "service_b.results", "configurator"]
    others.remove(module)
    async with starting:
        healthy = await fleet.start(*others)
        doomed = fleet.process(module)
        if module == "service_b":
            # The tasks are there before it starts, or it could die before it has answered the POSTs.
            paths = await store(fleet.environment["DATABASE_URL"])
            dying = await in_thread(start_dying, doomed, point)
            web_process = doomed
        else:
            dying = await in_thread(start_dying, doomed, point)
            web_process = healthy[0]
            await eventually(partial(in_thread, doomed.is_ready), every=0.1)
            fake.default = answer_or_kill(dying if point == CALLING else None)
            paths = await fleet.submit(web_process, TASKS)
        await eventually(lambda: dying.poll() is not None, every=0.1)
        assert dying.returncode == -9, "it ended before it came to the point"
        await in_thread(doomed.start)
    codes = await fleet.final_codes(web_process, paths)
    assert codes == [ANSWERS.get(serial, 200) for serial in TASKS]
    assert fake.overlapping() == []
    least, most = CALLS[point]
    assert least <= len(fake.ledger) <= most


def answer_or_kill(caller: Child | None = None) -> Behaviour:
    """Answer each device with a code of its own; kill the caller once, when it calls for every device."""

    async def behave(fake: FakeA, request: web.Request) -> web.StreamResponse:
        if caller and len(fake.ledger) == len(DEVICES):
            caller.kill()
        return await answer(ANSWERS.get(request.match_info["id"], 200))(fake, request)

    return behave


async def store(database_url: str) -> list[str]:
    """Accept the tasks as a web process does; return their paths."""
    new = [NewTask(uuid7(), serial, 1, json.dumps(BODY["parameters"])) for serial in TASKS]
    async with create_pool(DatabaseSettings(database_url=SecretStr(database_url))) as pool:
        await insert(pool, new, grace_seconds=GRACE_SECONDS, deadline_seconds=86400)
    return [f"{PATH}/{task.equipment_id}/task/{task.id}" for task in new]


def start_dying(process: Process, point: str) -> Child:
    arguments = [process.module] if point == CALLING else ["tests.e2e.crash_at", process.module, point]
    return NURSERY.fork(arguments, base_environment() | process.environment, process.log_file)


@pytest.fixture(scope="module")
def crashes(stage: Stage) -> Errors:
    """All points at the same time, but few processes start at once."""
    starting = asyncio.Semaphore(4)

    def crash_at(point: str) -> Scenario:
        return lambda fleet: crash(point, fleet, starting)

    return stage.play({point: crash_at(point) for point in CALLS}, at_once=len(CALLS), heartbeat=1, users=True)


@pytest.mark.parametrize("point", CALLS)
def test_killed_at(crashes: Errors, point: str) -> None:
    raise_error(crashes, point)
