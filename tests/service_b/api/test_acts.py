"""Cancelling tasks and trying them again, on the real web application and a real database."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from service_b.app import create_app
from service_b.database import DatabaseSettings
from service_b.tasks import claims, leases
from tests.clients import Client, serving
from tests.conftest import eventually
from tests.service_b.api import test_routes
from tests.service_b.api.test_access import PERIODS, TokensFile
from tests.service_b.api.test_routes import NO_TASK, PARAMETERS, PATH, settings_for
from tests.service_b.api.test_tasks import BODY, DEVICE, TASKS, assert_problem
from tests.tasks import apply, claim, end_by_hand, expire, finish, give_back, let_time_pass, one_of_each

client = test_routes.client

OTHERS = PARAMETERS | {"vlan": 7}


async def make(client: Client, **others: Any) -> str:
    response = await client.post(TASKS, json=BODY | others)
    assert response.status == 202
    task: str = (await response.json())["id"]
    return task


async def legacy_code(client: Client, task: str, device: str = DEVICE) -> tuple[int, int]:
    response = await client.get(f"{PATH}/{device}/task/{task}")
    return response.status, (await response.json())["code"]


# Cancel


async def test_a_task_that_has_not_begun_is_cancelled_for_certain(client: Client, pool: asyncpg.Pool) -> None:
    task = await make(client, externalId="order-77")
    response = await client.post(f"{TASKS}/{task}/cancel")
    assert response.status == 200
    told = await response.json()
    assert (told["state"], told["code"], told["reason"]) == ("cancelled", 500, "cancelled")
    assert told["finishedAt"]
    [event] = told["history"]
    assert event.pop("at").endswith("Z")
    assert event == {"event": "cancelled", "attempt": None, "outcome": None, "reason": None, "by": None}
    assert await claims.claim(pool, 9) == []
    assert await (await client.get(f"{TASKS}/{task}")).json() == told | {
        "history": [event | {"at": told["finishedAt"]}]
    }
    assert await legacy_code(client, task) == (500, 500)
    await assert_problem(await client.post(f"{TASKS}/{task}/cancel"), 409, "task-ended")


async def test_a_task_that_is_under_way_is_not_tried_again(
    client: Client, pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    task = await make(client)
    [dispatch] = await claim(pool, 9)
    for _ in range(2):
        response = await client.post(f"{TASKS}/{task}/cancel")
        assert response.status == 202
        told = await response.json()
        assert (told["state"], told["cancelRequested"], told["code"]) == ("running", True, None)
        assert [(event["event"], event["attempt"]) for event in told["history"]] == [("cancel requested", 1)]
    await apply(pool, give_back(dispatch, outcome="unknown"))
    await expire(pool, 9)
    told = await (await client.get(f"{TASKS}/{task}")).json()
    assert (told["state"], told["cancelRequested"], told["reason"]) == ("cancelled", True, "cancelled")
    assert [event["event"] for event in told["history"]] == ["cancel requested", "attempt ended"]
    assert told["history"][1]["outcome"] == "unknown"


async def test_an_answer_that_comes_after_all_is_the_end(client: Client, pool: asyncpg.Pool) -> None:
    task = await make(client)
    [dispatch] = await claim(pool, 9)
    assert (await client.post(f"{TASKS}/{task}/cancel")).status == 202
    await apply(pool, finish(dispatch))
    told = await (await client.get(f"{TASKS}/{task}")).json()
    assert (told["state"], told["cancelRequested"], told["code"]) == ("succeeded", True, 200)
    await assert_problem(await client.post(f"{TASKS}/{task}/cancel"), 409, "task-ended")


async def test_each_state_has_its_answer(client: Client, pool: asyncpg.Pool) -> None:
    answers = {
        state: (await client.post(f"{TASKS}/{dispatch.id}/cancel")).status
        for state, dispatch in (await one_of_each(pool)).items()
    }
    assert answers == {
        "scheduled": 200,
        "waiting": 200,
        "due": 202,
        "dispatched": 200,
        "running": 202,
        "success": 409,
        "error": 409,
    }


@pytest.mark.parametrize("act", ["cancel", "retry"])
async def test_what_is_not_there_cannot_be_acted_on(client: Client, act: str) -> None:
    for task in (NO_TASK, str(uuid4()), "nonsense"):
        await assert_problem(await client.post(f"{TASKS}/{task}/{act}"), 404, "task-not-found")
    response = await client.get(f"{TASKS}/{NO_TASK}/{act}")
    await assert_problem(response, 405, "method-not-allowed")
    assert response.headers["Allow"] == "POST"


async def test_a_cancel_and_a_lease_race_over_http_and_one_of_them_wins(client: Client, pool: asyncpg.Pool) -> None:
    tasks = [await make(client, equipmentId=f"DEVICE{number:03}") for number in range(60)]
    await claims.claim(pool, 100)

    async def begin_it(task: str) -> bool:
        while (answers := await leases.grant(pool, [(UUID(task), 1, uuid4())])) == ["held"]:
            pass
        return answers == ["granted"]

    async def cancel_it(task: str) -> int:
        return (await client.post(f"{TASKS}/{task}/cancel")).status

    ends = [await asyncio.gather(cancel_it(task), begin_it(task)) for task in tasks]
    assert {tuple(end) for end in ends} <= {(200, False), (202, True)}


# Retry


@pytest.mark.parametrize("state", ["failed", "cancelled", "expired"])
async def test_what_has_not_succeeded_is_tried_again_as_it_was(
    client: Client, pool: asyncpg.Pool, sql: asyncpg.Connection, state: str
) -> None:
    task = await make(client, externalId="order-77")
    if state == "failed":
        [dispatch] = await claim(pool, 9)
        await apply(pool, finish(dispatch, 404))
    elif state == "cancelled":
        assert (await client.post(f"{TASKS}/{task}/cancel")).status == 200
    else:
        await let_time_pass(sql, 100_000)
        await expire(pool, 9)
    before = await (await client.get(f"{TASKS}/{task}")).json()
    assert before["state"] == state
    response = await client.post(f"{TASKS}/{task}/retry")
    assert response.status == 202
    told = await response.json()
    assert response.headers["Location"] == f"{TASKS}/{told['id']}"
    assert (told["state"], told["retryOf"], told["equipmentId"], told["timeoutInSeconds"], told["externalId"]) == (
        "due",
        task,
        DEVICE,
        14,
        "order-77",
    )
    [again] = await claim(pool, 9)
    assert (str(again.id), json.loads(again.parameters)) == (told["id"], PARAMETERS)
    assert await (await client.get(f"{TASKS}/{task}")).json() == before, "the old record stays"


async def test_it_may_be_tried_with_something_else(client: Client, pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    task = await make(client)
    await end_by_hand(sql, "true")
    response = await client.post(f"{TASKS}/{task}/retry", json={"parameters": OTHERS, "timeoutInSeconds": 7})
    assert (response.status, (await response.json())["timeoutInSeconds"]) == (202, 7)
    [again] = await claim(pool, 9)
    assert (again.timeout_seconds, json.loads(again.parameters)) == (7, OTHERS)


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({"timeoutInSeconds": 0}, ["timeoutInSeconds"]),
        ({"parameters": {}}, ["parameters", "username"]),
        ({"parameters": None}, ["parameters"]),
        ({"equipmentId": "ANOTHER1"}, []),
        ([], []),
    ],
)
async def test_a_body_is_judged_as_strictly_as_a_tasks(
    client: Client, sql: asyncpg.Connection, body: object, loc: list[str]
) -> None:
    task = await make(client)
    await end_by_hand(sql, "true")
    response = await client.post(f"{TASKS}/{task}/retry", json=body)
    assert response.status == 422
    assert (await response.json(content_type=None))["errors"][0]["loc"] == loc
    await assert_problem(await client.post(f"{TASKS}/{task}/retry", data=b"{"), 400, "bad-request")
    assert await sql.fetchval("SELECT count(*) FROM task") == 0


async def test_what_has_not_ended_or_has_succeeded_is_not_tried_again(client: Client, pool: asyncpg.Pool) -> None:
    task = await make(client)
    await assert_problem(await client.post(f"{TASKS}/{task}/retry"), 409, "not-retryable")
    [dispatch] = await claim(pool, 9)
    await apply(pool, finish(dispatch))
    await assert_problem(await client.post(f"{TASKS}/{task}/retry"), 409, "not-retryable")


async def test_without_what_was_not_kept_the_body_must_bring_it(
    database: DatabaseSettings, sql: asyncpg.Connection
) -> None:
    async with serving(create_app(settings_for(database, keep_parameters="none"))) as client:
        task = await make(client)
        await end_by_hand(sql, "true")
        await assert_problem(await client.post(f"{TASKS}/{task}/retry"), 409, "parameters-forgotten")
        assert (await client.post(f"{TASKS}/{task}/retry", json={"parameters": OTHERS})).status == 202


async def test_a_retry_counts_for_the_cap_and_may_carry_a_key(
    database: DatabaseSettings, sql: asyncpg.Connection
) -> None:
    async with serving(create_app(settings_for(database, max_tasks_per_device=1))) as client:
        tasks = []
        for _ in range(2):
            tasks.append(await make(client))
            await end_by_hand(sql, "true")
        once = {"Idempotency-Key": "key-1"}
        answers = [await client.post(f"{TASKS}/{tasks[0]}/retry", headers=once) for _ in range(2)]
        assert [answer.status for answer in answers] == [202, 202]
        assert len({(await answer.json())["id"] for answer in answers}) == 1
        assert answers[1].headers["Idempotent-Replayed"] == "true"
        await assert_problem(await client.post(f"{TASKS}/{tasks[1]}/retry", headers=once), 422, "key-reused")
        await assert_problem(await client.post(f"{TASKS}/{tasks[1]}/retry"), 429, "too-many-tasks")


# Whose task


@pytest.fixture
def tokens(tmp_path: Path) -> TokensFile:
    return TokensFile(tmp_path / "tokens")


@pytest.fixture
async def guarded(database: DatabaseSettings, tokens: TokensFile) -> AsyncIterator[Client]:
    tokens.add("nobody", "read")
    settings = settings_for(database, tokens_file=tokens.path)
    async with serving(create_app(settings, PERIODS)) as made:
        yield made


@pytest.mark.parametrize("act", ["cancel", "retry"])
async def test_who_may_act_on_a_task(guarded: Client, sql: asyncpg.Connection, tokens: TokensFile, act: str) -> None:
    owner = tokens.add("owner", "submit")
    clients = {
        "owner": owner,
        "namesake": tokens.add("owner", "submit", devices="XYZ*"),
        "stranger": tokens.add("stranger", "submit", "read"),
        "operator": tokens.add("operator", "operate"),
        "operator elsewhere": tokens.add("elsewhere", "operate", devices="XYZ*"),
        "reader": tokens.add("owner", "read"),
    }
    expected = {
        "owner": 202 if act == "retry" else 200,
        "namesake": 404,
        "stranger": 404,
        "operator": 202 if act == "retry" else 200,
        "operator elsewhere": 404,
        "reader": 403,
    }

    async def is_known() -> bool:
        return (await guarded.post(f"{TASKS}/{NO_TASK}/cancel", headers=clients["operator"])).status == 404

    await eventually(is_known)
    told = {}
    for name, header in clients.items():
        response = await guarded.post(TASKS, json=BODY, headers=owner)
        task = (await response.json())["id"]
        if act == "retry":
            await end_by_hand(sql, "true")
        response = await guarded.post(f"{TASKS}/{task}/{act}", headers=header)
        told[name] = response.status
        if response.status < 300:
            shown = await response.json()
            by = "owner" if name == "owner" else "operator"
            assert (shown["submittedBy"] if act == "retry" else shown["history"][0]["by"]) == by
    assert told == expected
