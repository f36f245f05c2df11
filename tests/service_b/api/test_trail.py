"""The audit trail, on the real web application."""

import asyncio
import json
import logging
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from service_b.app import create_app
from service_b.database import DatabaseSettings
from tests.clients import Client, serving
from tests.conftest import eventually
from tests.service_b.api import test_access
from tests.service_b.api.test_access import DEVICE, FOREIGN
from tests.service_b.api.test_routes import BODY, PATH, settings_for

by_role, client, tokens = test_access.by_role, test_access.client, test_access.tokens

ROUTE = "/api/v1/equipment/cpe/{id}"


@pytest.fixture(autouse=True)
def _listen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="audit")


def written(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for record in caplog.records if record.name == "audit" for line in record.message.splitlines()]


async def trail(caplog: pytest.LogCaptureFixture, lines: int) -> list[dict[str, Any]]:
    """The lines, without their times, as soon as so many are there."""
    await eventually(lambda: len(written(caplog)) >= lines)
    entries = [json.loads(line) for line in written(caplog)]
    for entry in entries:
        assert abs((datetime.now(UTC) - datetime.fromisoformat(entry.pop("timestamp"))).total_seconds()) < 60
    return entries


async def test_an_act_leaves_one_line(
    client: Client, by_role: dict[str, dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    """Who, from where, what, for which device, which task, and what came of it."""
    response = await client.post(f"{PATH}/{DEVICE}", json=BODY, headers=by_role["submit"])
    task = (await response.json())["taskId"]
    assert (await client.get(response.headers["Location"], headers=by_role["operate"])).status == 200
    assert await trail(caplog, 1) == [
        {
            "event": "api.act",
            "level": "info",
            "logger": "audit",
            "token": "submit",
            "remote": "127.0.0.1",
            "method": "POST",
            "route": ROUTE,
            "equipment_id": DEVICE,
            "task_id": task,
            "code": 200,
        }
    ]


async def test_the_new_routes_leave_the_device_too(
    client: Client, by_role: dict[str, dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    made = []
    for device in (DEVICE, FOREIGN):
        response = await client.post("/api/v1/tasks", json=BODY | {"equipmentId": device}, headers=by_role["admin"])
        made.append((await response.json())["id"])
    await client.get(f"/api/v1/tasks/{made[1]}", headers=by_role["operate"])
    await client.get(f"/api/v1/tasks/{made[0]}", headers=by_role["operate"])
    told = [
        (entry["route"], entry["equipment_id"], entry["task_id"], entry["code"]) for entry in await trail(caplog, 3)
    ]
    assert told == [
        ("/api/v1/tasks", DEVICE, made[0], 202),
        ("/api/v1/tasks", FOREIGN, made[1], 202),
        ("/api/v1/tasks/{id}", FOREIGN, made[1], 404),
    ]


async def test_every_refusal_leaves_one_line(
    client: Client, by_role: dict[str, dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    nobody, status = str(uuid4()), f"{ROUTE}/task/{{task}}"
    foreign = await client.post(f"{PATH}/{FOREIGN}", json=BODY, headers=by_role["admin"])
    theirs = await client.post(f"{PATH}/{DEVICE}", json=BODY, headers=by_role["admin"])
    made = [(await response.json())["taskId"] for response in (foreign, theirs)]
    await trail(caplog, 2)
    caplog.clear()
    for method, path, headers in (
        ("POST", f"{PATH}/{DEVICE}", {}),
        ("GET", "/api/v1/", {"Authorization": "Bearer cpe_SECRET"}),
        ("POST", f"{PATH}/{DEVICE}", by_role["read"]),
        ("POST", f"{PATH}/{FOREIGN}", by_role["submit"]),
        ("GET", f"{PATH}/{FOREIGN}/task/{made[0]}", by_role["operate"]),
        ("GET", f"{PATH}/{DEVICE}/task/{made[1]}", by_role["read"]),
        ("POST", f"{PATH}/{DEVICE}", by_role["submit"] | {"Sec-Fetch-Site": "cross-site"}),
        ("POST", f"{PATH}/SECRET-DEVICE", by_role["submit"]),
        # These are none.
        ("GET", f"{PATH}/{DEVICE}/task/{nobody}", by_role["operate"]),
        ("POST", "/SECRET", {}),
        ("GET", "/health/live", {}),
    ):
        await client.request(method, path, json=BODY if method == "POST" else None, headers=headers)
    told = [
        (entry["token"], entry["method"], entry["route"], entry["equipment_id"], entry["task_id"], entry["code"])
        for entry in await trail(caplog, 8)
    ]
    assert told == [
        (None, "POST", ROUTE, DEVICE, None, 401),
        (None, "GET", "/api/v1/", None, None, 401),
        ("read", "POST", ROUTE, DEVICE, None, 403),
        ("submit", "POST", ROUTE, FOREIGN, None, 404),
        ("operate", "GET", status, FOREIGN, None, 404),
        ("read", "GET", status, DEVICE, made[1], 404),
        (None, "POST", ROUTE, DEVICE, None, 403),
        ("submit", "POST", ROUTE, None, None, 404),
    ]
    assert "SECRET" not in caplog.text


async def test_the_lines_of_many_at_once_are_all_there(
    client: Client, by_role: dict[str, dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    async def post(number: int) -> str:
        async with client.post(f"{PATH}/ABC{number:05}", json=BODY, headers=by_role["submit"]) as response:
            task: str = (await response.json())["taskId"]
            return task

    made = await asyncio.gather(*map(post, range(95)))
    assert sorted(entry["task_id"] for entry in await trail(caplog, len(made))) == sorted(made)
    records = [record for record in caplog.records if record.name == "audit"]
    assert len(records) < len(made)
    assert max(len(record.message) for record in records) < 4096, "goes into a pipe at once"


async def test_a_clean_stop_writes_the_last_lines(
    database: DatabaseSettings,
    tokens: test_access.TokensFile,
    by_role: dict[str, dict[str, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(create_app(settings_for(database, tokens_file=tokens.path))) as stopping:
        for _ in range(3):
            assert (await stopping.post(f"{PATH}/{DEVICE}", json=BODY, headers=by_role["submit"])).status == 200
    assert len(written(caplog)) == 3


async def test_without_tokens_there_is_no_trail(database: DatabaseSettings, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(create_app(settings_for(database))) as open_to_all:
        assert (await open_to_all.post(f"{PATH}/{DEVICE}", json=BODY)).status == 200
    assert written(caplog) == []
