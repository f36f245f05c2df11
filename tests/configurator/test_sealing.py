"""Sealed tasks in the configurator: opened just before the call, or ended, or left to others."""

import json
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from configurator.jobs import Job
from messaging.messages import ConfigureTask, OutcomeKind
from messaging.sealing.sealer import Sealer
from tests.configurator.calls import make_delivery, make_task
from tests.configurator.wire import Start, Wire
from tests.conftest import eventually
from tests.fake_a import FakeA, answer
from tests.fake_results import FakeResults
from tests.seals import KeyPair, make_keys

SECRET = "hunter2-Secret"
PAUSE_SECONDS = 2
"""A message that is given back ten times is dead-lettered."""
KEPT = "the password \"***\" of '***' is too short"


@pytest.fixture
def keys(tmp_path: Path) -> KeyPair:
    return make_keys(tmp_path / "keys")


def seal(task: ConfigureTask, keys: KeyPair) -> ConfigureTask:
    """What service B would have made of it."""
    sealed = Sealer(keys.public).seal(task.parameters, task.task_id, task.equipment_id)
    return task.model_copy(update={"v": 3, "parameters": sealed})


def sealed_tasks(count: int, keys: KeyPair) -> list[ConfigureTask]:
    return [
        seal(make_task(f"ROUTER{n}", username="admin", password=f"{SECRET}{n}", interfaces=[]), keys)
        for n in range(count)
    ]


async def test_a_is_told_what_the_client_wrote_and_nobody_else_is(
    start: Start, wire: Wire, fake_a: FakeA, keys: KeyPair
) -> None:
    said = f"the password \"{SECRET}0\" of 'admin' is too short"
    fake_a.default = answer(422, json.dumps({"code": 422, "message": said}))
    app = await start(seal_key_file=str(keys.private))
    [task] = sealed_tasks(1, keys)
    with capture_logs() as logs:
        await wire.put(task)
        (outcome,) = await wire.ends(task)
        metrics = await (await app.get("/metrics")).text()
    assert [work.body["parameters"] for work in fake_a.ledger] == [
        {"username": "admin", "password": f"{SECRET}0", "interfaces": []}
    ]
    assert (outcome.kind, outcome.reason) == (OutcomeKind.REJECTED, f"422 {KEPT}")
    assert SECRET not in f"{logs} {metrics} {outcome} {Job(task, make_delivery())!r}"


async def test_what_was_sealed_for_the_task_that_this_one_tries_again_is_opened(
    start: Start, wire: Wire, fake_a: FakeA, keys: KeyPair
) -> None:
    await start(seal_key_file=str(keys.private))
    [first] = sealed_tasks(1, keys)
    again = first.model_copy(update={"v": 4, "task_id": uuid4(), "sealed_for": first.task_id})
    await wire.put(again)
    assert [outcome.kind for outcome in await wire.ends(again)] == [OutcomeKind.SUCCESS]
    assert fake_a.ledger[0].body["parameters"]["password"] == f"{SECRET}0"


async def test_what_is_not_sealed_is_served_by_whoever_has_keys(
    start: Start, wire: Wire, fake_a: FakeA, keys: KeyPair
) -> None:
    await start(seal_key_file=str(keys.private))
    plain, [sealed] = make_task(), sealed_tasks(1, keys)
    await wire.put(plain, sealed)
    assert await wire.kinds(plain, sealed) == [OutcomeKind.SUCCESS] * 2


def swapped(task: ConfigureTask, keys: KeyPair) -> str:
    """Sealed for another task of the same device."""
    return seal(task.model_copy(update={"task_id": uuid4()}), keys).parameters


def moved(task: ConfigureTask, keys: KeyPair) -> str:
    """Sealed for the same task of another device."""
    return seal(task.model_copy(update={"equipment_id": "ANOTHER1"}), keys).parameters


def tampered(task: ConfigureTask, keys: KeyPair) -> str:
    text = seal(task, keys).parameters
    return f"{text[:-12]}{'AB'[text[-12] == 'A']}{text[-11:]}"


def foreign(task: ConfigureTask, keys: KeyPair) -> str:
    """Sealed for another key, under the name of ours."""
    other = make_keys(keys.private.parent / "other")
    return seal(task, other).parameters.replace(other.id, keys.id)


def garbled(task: ConfigureTask, keys: KeyPair) -> str:
    return '{"sealed":"garbage"}'


@pytest.mark.parametrize("forge", [swapped, moved, tampered, foreign, garbled])
async def test_what_cannot_be_opened_ends_its_task_and_is_logged(
    start: Start, wire: Wire, fake_a: FakeA, keys: KeyPair, forge: Callable[[ConfigureTask, KeyPair], str]
) -> None:
    app = await start(seal_key_file=str(keys.private))
    task = make_task(username="admin", password=SECRET, interfaces=[])
    forged = task.model_copy(update={"parameters": forge(task, keys)})
    [good] = sealed_tasks(1, keys)
    with capture_logs() as logs:
        await wire.put(forged, good)
        outcome, other = await wire.ends(forged, good)
    assert outcome.kind is OutcomeKind.UNOPENED
    assert outcome.reason == "the parameters were sealed for another task, or tampered with"
    assert (outcome.lease is not None, outcome.hold_seconds) == (True, 0)
    assert other.kind is OutcomeKind.SUCCESS
    assert len(fake_a.ledger) == 1
    [error] = [log for log in logs if log["log_level"] == "error"]
    assert error["event"] == "call.unopened"
    assert (error["task_id"], error["attempt"]) == (str(task.task_id), 1)
    assert SECRET not in f"{logs} {outcome}"
    assert (await app.get("/health/ready")).status == 200


async def missing(app: TestClient[web.Request, web.Application]) -> list[str]:
    """What it says that it misses."""
    said: list[str] = (await (await app.get("/health/ready")).json()).get("missing", [])
    return said


@pytest.mark.parametrize("has_another", [False, True])
async def test_without_the_key_it_takes_no_work_and_says_so_until_the_key_is_there(
    start: Start, wire: Wire, fake_results: FakeResults, keys: KeyPair, *, has_another: bool
) -> None:
    file = keys.private.parent / "another" / "seal.key"
    make_keys(file.parent)
    app = await start(seal_key_file=str(file) if has_another else None, pause_seconds=PAUSE_SECONDS)
    tasks = sealed_tasks(10, keys)
    with capture_logs() as logs:
        await wire.put(*tasks)

        async def says_so() -> bool:
            return await missing(app) == [f"SEAL_KEY_FILE: no key {keys.id}, which tasks are sealed for"]

        await eventually(says_so)
        await eventually(lambda: REGISTRY.get_sample_value("seal_key_missing") == 1)
        await eventually(lambda: wire.waiting_is(10))
    [error] = [log for log in logs if log["log_level"] == "error"]
    assert (error["event"], error["key"]) == ("seal.key_missing", keys.id)
    assert not fake_results.asked
    if not has_another:
        await app.close()
        await eventually(lambda: wire.waiting_is(10))
        app = await start(seal_key_file=str(keys.private))
    file.write_bytes(keys.private.read_bytes())
    assert set(await wire.kinds(*tasks)) == {OutcomeKind.SUCCESS}

    async def is_ready() -> bool:
        return not await missing(app)

    await eventually(is_ready)
    assert REGISTRY.get_sample_value("seal_key_missing") == 0


async def test_one_task_whose_key_is_nowhere_does_not_stop_the_others(
    start: Start, wire: Wire, keys: KeyPair, tmp_path: Path
) -> None:
    lost = make_keys(tmp_path / "lost")
    app = await start(seal_key_file=str(keys.private), pause_seconds=PAUSE_SECONDS)
    [poison] = sealed_tasks(1, lost)
    for _ in range(2):
        tasks = sealed_tasks(5, keys)
        await wire.put(*tasks[:2], poison, *tasks[2:])
        assert set(await wire.kinds(*tasks)) == {OutcomeKind.SUCCESS}
    assert await missing(app)
    other = await start(seal_key_file=f"{keys.private},{lost.private}")
    assert await wire.kinds(poison) == [OutcomeKind.SUCCESS], "who has the key gets it"

    async def is_ready() -> bool:
        return not await missing(app)

    await eventually(is_ready)
    assert not await missing(other)
