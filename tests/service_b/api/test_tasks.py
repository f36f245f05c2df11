"""The task as a resource, on the real web application and a real database."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from aiohttp import ClientResponse

from service_b.app import create_app
from service_b.database import DatabaseSettings
from service_b.tasks import claims
from tests.clients import Client, serving
from tests.service_b.api import test_routes
from tests.service_b.api.test_routes import NO_TASK, PARAMETERS, settings_for
from tests.tasks import apply, begin, end_by_hand, finish, give_back, one_of_each, step_clock

client, refusing, shared_database_url = test_routes.client, test_routes.refusing, test_routes.shared_database_url

TASKS = "/api/v1/tasks"
DEVICE = "ABC1234"
BODY = {"equipmentId": DEVICE, "timeoutInSeconds": 14, "parameters": PARAMETERS}


def hours(number: float) -> str:
    """A time so many hours from now."""
    return (datetime.now(UTC) + timedelta(hours=number)).isoformat()


async def assert_problem(response: ClientResponse, code: int, slug: str, **others: Any) -> None:
    assert (response.status, response.content_type) == (code, "application/problem+json")
    told = await response.json(content_type=None)
    assert (told["type"], told["status"]) == (f"/problems/{slug}", code)
    assert told["title"]
    assert told["detail"]
    assert {key: value for key, value in told.items() if key not in ("type", "status", "title", "detail")} == others


# POST


async def test_post_stores_a_task_and_shows_it(client: Client, sql: asyncpg.Connection) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    response = await client.post(TASKS, json=BODY)
    row = await sql.fetchrow("SELECT * FROM task")
    assert row is not None
    assert response.status == 202
    assert response.headers["Location"] == f"{TASKS}/{row['id']}"
    told = await response.json()
    created = datetime.fromisoformat(told.pop("createdAt"))
    assert before < created < datetime.now(UTC)
    deadline = datetime.fromisoformat(told.pop("notAfter"))
    assert timedelta(hours=23) < deadline - created < timedelta(hours=25)
    assert told == {
        "id": str(row["id"]),
        "equipmentId": DEVICE,
        "state": "due",
        "externalId": None,
        "campaign": None,
        "submittedBy": None,
        "timeoutInSeconds": 14,
        "attempt": 0,
        "ahead": None,
        "cancelRequested": False,
        "retryOf": None,
        "notBefore": None,
        "begunAt": None,
        "finishedAt": None,
        "nextAttemptAt": None,
        "code": None,
        "reason": None,
        "history": [],
    }
    assert (row["equipment_id"], row["timeout_seconds"]) == (DEVICE, 14)
    assert json.loads(row["parameters"]) == PARAMETERS


async def test_post_takes_what_may_be_wished(client: Client, sql: asyncpg.Connection) -> None:
    wishes = {"externalId": "order-77", "notBefore": hours(-1), "notAfter": hours(2)}
    told = await (await client.post(TASKS, json=BODY | wishes)).json()
    assert told["externalId"] == "order-77"
    for key in ("notBefore", "notAfter"):
        difference = datetime.fromisoformat(told[key]) - datetime.fromisoformat(wishes[key])
        assert abs(difference) < timedelta(milliseconds=2)
    none = dict.fromkeys(wishes)
    told = await (await client.post(TASKS, json=BODY | none)).json()
    assert (told["externalId"], told["notBefore"]) == (None, None)


NOT_RFC_3339 = ["2026-11-26T10:00:00", "2026-11-26", "now", "", "20261126T100000Z", "2026-13-26T10:00:00Z"]


@pytest.mark.parametrize(
    ("sent", "loc"),
    [
        ({"equipmentId": "short"}, ["equipmentId"]),
        ({"equipmentId": f"{DEVICE}\n"}, ["equipmentId"]),
        ({"equipmentId": 1234567}, ["equipmentId"]),
        ({"timeoutInSeconds": "14"}, ["timeoutInSeconds"]),
        ({"parameters": PARAMETERS | {"vlan": 0}}, ["parameters", "vlan"]),
        ({"parameters": [PARAMETERS]}, ["parameters"]),
        ({"externalId": ""}, ["externalId"]),
        ({"externalId": "x" * 129}, ["externalId"]),
        ({"externalId": 77}, ["externalId"]),
        ({"externalId": "a\0b"}, ["externalId"]),
        ({"externalId": "\ud800"}, ["externalId"]),
        *(({"notBefore": text}, ["notBefore"]) for text in NOT_RFC_3339),
        ({"notAfter": 1764151200}, ["notAfter"]),
        ({"notAfter": "0001-01-01T00:00:00+14:00"}, ["notAfter"]),
        ({"notAfter": hours(-0.1)}, ["notAfter"]),
        ({"notAfter": hours(1), "notBefore": hours(2)}, ["notAfter"]),
        ({"notAfter": hours(24 * 46)}, ["notAfter"]),
        ({"notBefore": hours(24 * 46)}, ["notBefore"]),
        ({"notBefor": hours(1)}, []),
    ],
)
async def test_post_refuses(refusing: Client, sent: dict[str, Any], loc: list[str]) -> None:
    response = await refusing.post(TASKS, json=BODY | sent)
    [fault] = (await response.json(content_type=None))["errors"]
    assert fault["loc"] == loc
    assert "notBefor" not in fault["msg"] or "notBefore" in fault["msg"], "no echo"
    await assert_problem(response, 422, "invalid-request", errors=[fault])


@pytest.mark.parametrize(
    ("sent", "headers", "code", "slug"),
    [
        (b"{", {}, 400, "bad-request"),
        (b" " * 70_000, {}, 413, "body-too-large"),
        (b"{}", {"Content-Encoding": "gzip"}, 415, "compressed-body"),
        (b"{}", {"Sec-Fetch-Site": "cross-site"}, 403, "other-site"),
    ],
)
async def test_post_refuses_what_it_cannot_read(
    refusing: Client, sent: bytes, headers: dict[str, str], code: int, slug: str
) -> None:
    await assert_problem(await refusing.post(TASKS, data=sent, headers=headers), code, slug)


async def test_too_many_tasks_are_a_problem(database: DatabaseSettings) -> None:
    async with serving(create_app(settings_for(database, max_tasks_per_device=1))) as client:
        assert (await client.post(TASKS, json=BODY)).status == 202
        response = await client.post(TASKS, json=BODY)
        await assert_problem(response, 429, "too-many-tasks")
        assert int(response.headers["Retry-After"]) > 0


async def test_a_database_that_is_away_is_a_problem(database: DatabaseSettings, sql: asyncpg.Connection) -> None:
    async with serving(create_app(settings_for(database))) as client:
        await sql.execute("ALTER TABLE task RENAME TO gone")
        for response in (await client.post(TASKS, json=BODY), await client.get(f"{TASKS}/{NO_TASK}")):
            await assert_problem(response, 503, "storage-unavailable")
            assert int(response.headers["Retry-After"]) > 0


# GET


async def get(client: Client, task: UUID | str) -> dict[str, Any]:
    """What is told of a task; and HEAD is answered the same."""
    response = await client.get(f"{TASKS}/{task}")
    assert response.status == 200
    head = await client.head(f"{TASKS}/{task}")
    assert (head.status, head.headers["Content-Length"]) == (200, response.headers["Content-Length"])
    told: dict[str, Any] = await response.json()
    return told


@pytest.mark.parametrize("task", [NO_TASK, "nonsense", NO_TASK.replace("-", "")])
async def test_no_such_task(refusing: Client, task: str) -> None:
    await assert_problem(await refusing.get(f"{TASKS}/{task}"), 404, "task-not-found")


async def test_each_state(client: Client, pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    made = await one_of_each(pool)
    told = {state: await get(client, dispatch.id) for state, dispatch in made.items()}
    assert {state: (task["state"], task["code"], task["ahead"], task["attempt"]) for state, task in told.items()} == {
        "scheduled": ("scheduled", None, None, 0),
        "waiting": ("waiting", None, 1, 0),
        "due": ("due", None, None, 1),
        "dispatched": ("dispatched", None, None, 1),
        "running": ("running", None, None, 1),
        "success": ("succeeded", 200, None, 1),
        "error": ("failed", 404, None, 1),
    }
    assert {state for state, task in told.items() if task["nextAttemptAt"]} == {"scheduled"}
    assert {state for state, task in told.items() if task["begunAt"]} == {"success", "error", "running"}
    assert {state for state, task in told.items() if task["finishedAt"]} == {"success", "error"}
    assert told["due"]["reason"] == "given back"


async def test_what_was_ended_otherwise(client: Client, sql: asyncpg.Connection) -> None:
    for ended_by, state in (("cancel", "cancelled"), ("deadline", "expired")):
        task = (await (await client.post(TASKS, json=BODY)).json())["id"]
        await end_by_hand(sql, "true")
        await sql.execute("UPDATE finished SET ended_by = $1 WHERE id = $2", ended_by, task)
        told = await get(client, task)
        assert (told["state"], told["code"], told["reason"]) == (state, 500, "by hand")


async def test_those_in_front_are_counted(client: Client, pool: asyncpg.Pool) -> None:
    made = [await (await client.post(TASKS, json=BODY)).json() for _ in range(4)]
    assert [(task["state"], task["ahead"]) for task in made] == [
        ("due", None),
        ("waiting", 1),
        ("waiting", 2),
        ("waiting", 3),
    ]
    [first] = await claims.claim(pool, 9)
    await begin(pool, first)
    await apply(pool, finish(first))
    assert [(await get(client, task["id"]))["ahead"] for task in made] == [None, None, 1, 2]


async def test_when_it_is_tried_again(client: Client, pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    """By the clock that people know, whatever internal time is."""
    await step_clock(sql, 3600)
    task = (await (await client.post(TASKS, json=BODY)).json())["id"]
    [dispatch] = await claims.claim(pool, 9)
    await begin(pool, dispatch)
    begun = datetime.fromisoformat((await get(client, task))["begunAt"])
    assert abs(begun - datetime.now(UTC)) < timedelta(minutes=1)
    await apply(pool, give_back(dispatch, hold_seconds=600))
    told = await get(client, task)
    assert (told["state"], told["begunAt"]) == ("scheduled", None)
    ahead = datetime.fromisoformat(told["nextAttemptAt"]) - datetime.now(UTC)
    assert timedelta(minutes=9) < ahead <= timedelta(minutes=10)


async def test_its_history_is_told(client: Client, sql: asyncpg.Connection) -> None:
    task = (await (await client.post(TASKS, json=BODY)).json())["id"]
    stored = {"at": "2026-11-26T03:04:05.678901+02:00", "event": "cancelled", "by": "oss"}
    await sql.execute("UPDATE task SET history = $1", json.dumps([stored]))
    history = [{"attempt": None, "outcome": None, "reason": None} | stored | {"at": "2026-11-26T01:04:05.678Z"}]
    assert (await get(client, task))["history"] == history
    await end_by_hand(sql, "true")
    assert (await get(client, task))["history"] == history


async def test_the_legacy_routes_tell_the_same_task(client: Client) -> None:
    task = (await (await client.post(TASKS, json=BODY)).json())["id"]
    legacy = await client.get(f"{test_routes.PATH}/{DEVICE}/task/{task}")
    assert await legacy.json() == {"code": 204, "message": "Task is still running"}
    response = await client.post(f"{test_routes.PATH}/{DEVICE}", json=test_routes.BODY)
    assert (await get(client, (await response.json())["taskId"]))["equipmentId"] == DEVICE
