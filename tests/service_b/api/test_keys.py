"""`Idempotency-Key` on the real web application and a real database: a request that is sent again makes one task."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

import asyncpg
import pytest
from aiohttp import ClientResponse

from service_b.app import create_app
from service_b.database import DatabaseSettings
from service_b.maintenance import keys as old_keys
from service_b.tasks import keys
from tests.clients import Client, serving
from tests.service_b.api.test_access import TokensFile
from tests.service_b.api.test_routes import BODY, PARAMETERS, PATH, settings_for
from tests.tasks import end_by_hand

DEVICE = "ABC1234"
WHOLE = {"equipmentId": DEVICE, **BODY}
ROUTES: Mapping[str, tuple[str, dict[str, Any], int]] = {
    "legacy": (f"{PATH}/{DEVICE}", BODY, 200),
    "resource": ("/api/v1/tasks", WHOLE, 202),
}


@pytest.fixture
async def client(database: DatabaseSettings) -> AsyncIterator[Client]:
    async with serving(create_app(settings_for(database))) as made:
        yield made


@pytest.fixture
async def replica(database: DatabaseSettings) -> AsyncIterator[Client]:
    """Another web process, as far as the database can tell."""
    async with serving(create_app(settings_for(database))) as made:
        yield made


async def post(client: Client, route: str, key: str, headers: Mapping[str, str] = {}, **change: Any) -> ClientResponse:
    path, body, _ = ROUTES[route]
    return await client.post(path, json=body | change, headers={"Idempotency-Key": key, **headers})


def told(response: ClientResponse) -> tuple[int, str, str | None]:
    """What an answer says: its code, which task, and whether that was there already."""
    location = response.headers.get("Location", "")
    return response.status, location.rsplit("/", 1)[-1], response.headers.get("Idempotent-Replayed")


@pytest.mark.parametrize("route", ROUTES)
async def test_the_same_request_answers_with_the_same_task(
    route: str, client: Client, replica: Client, sql: asyncpg.Connection
) -> None:
    code = ROUTES[route][2]
    first = await post(client, route, "k")
    status, task, replayed = told(first)
    assert (status, replayed) == (code, None)
    again = await post(replica, route, "k")
    assert told(again) == (code, task, "true")
    assert again.headers["Location"] == first.headers["Location"]
    assert await again.read() == await first.read()
    await end_by_hand(sql, "id = $1", UUID(task), code=200)
    assert told(await post(client, route, "k")) == (code, task, "true")
    assert (await sql.fetchval("SELECT count(*) FROM task"), await sql.fetchval("SELECT count(*) FROM finished")) == (
        0,
        1,
    )


async def test_how_a_request_is_written_makes_no_difference(client: Client, sql: asyncpg.Connection) -> None:
    times: dict[str, Any] = {"notAfter": "2026-11-27T12:00:00+02:00"}
    with patch("service_b.api.envelopes._faults", return_value=[]):
        _, task, _ = told(await post(client, "resource", "k", **times))
        backwards = dict(reversed((WHOLE | {"notAfter": "2026-11-27T10:00:00Z"}).items()))
        text = json.dumps(backwards | {"parameters": dict(reversed(PARAMETERS.items()))}, indent=4)
        again = await client.post("/api/v1/tasks", data=text, headers={"Idempotency-Key": "k"})
    assert told(again) == (202, task, "true")


@pytest.mark.parametrize("route", ROUTES)
async def test_another_request_is_refused(route: str, client: Client, sql: asyncpg.Connection) -> None:
    assert (await post(client, route, "k")).status == ROUTES[route][2]
    other = "resource" if route == "legacy" else "legacy"
    changes: list[dict[str, Any]] = [
        {"timeoutInSeconds": 15},
        {"parameters": PARAMETERS | {"vlan": 535}},
        {"parameters": PARAMETERS | {"vlan": None}},
        {"parameters": PARAMETERS | {"more": [1.0]}},
    ]
    if route == "resource":
        changes += [{"externalId": "order"}, {"notAfter": "2999-01-01T00:00:00Z"}, {"equipmentId": "ABC1235"}]
    with patch("service_b.api.envelopes._faults", return_value=[]):
        answers = [await post(client, route, "k", **change) for change in changes] + [await post(client, other, "k")]
    assert [answer.status for answer in answers] == [422] * len(answers)
    assert {(await answer.json()).get("errors") for answer in answers} == {None}
    problem = await answers[0].json()
    if route == "legacy":
        assert problem == {"code": 422, "message": "The Idempotency-Key was used for another request"}
    else:
        assert problem["type"] == "/problems/key-reused"
    assert await sql.fetchval("SELECT count(*) FROM task") == 1


async def test_a_key_belongs_to_what_it_was_sent_to(client: Client, sql: asyncpg.Connection) -> None:
    """Two failed tasks of one device may have been asked for in the same words; each has tries of its own."""
    tasks = [told(await post(client, "resource", key))[1] for key in "ab"]
    await end_by_hand(sql, "true")
    paths = [f"/api/v1/tasks/{task}/retry" for task in (*tasks, tasks[0])]
    answers = [await client.post(path, headers={"Idempotency-Key": "k"}) for path in paths]
    assert [answer.status for answer in answers] == [202, 422, 202]
    assert told(answers[2])[1:] == (told(answers[0])[1], "true")


async def test_50_duplicates_over_two_processes_make_one_task(
    client: Client, replica: Client, sql: asyncpg.Connection
) -> None:
    answers = await asyncio.gather(*(post(each, "legacy", "k") for each in (client, replica) * 25))
    tasks = {told(answer)[:2] for answer in answers}
    assert len(tasks) == 1
    assert sum(told(answer)[2] is None for answer in answers) == 1
    assert await sql.fetchval("SELECT count(*) FROM task") == 1


async def test_a_process_that_dies_before_it_answers_has_stored_the_key_with_the_task(
    client: Client, replica: Client, sql: asyncpg.Connection
) -> None:
    """Whatever its client got, the next one tells of the task that was committed."""
    insert = keys.insert_once

    async def die(*arguments: Any, **terms: Any) -> set[UUID]:
        await insert(*arguments, **terms)
        raise ConnectionResetError

    with patch.object(keys, "insert_once", die):
        assert (await post(client, "legacy", "k")).status == 503
    stored = await sql.fetchval("SELECT id FROM task")
    assert told(await post(replica, "legacy", "k")) == (200, str(stored), "true")


async def test_what_is_refused_leaves_no_key(database: DatabaseSettings, sql: asyncpg.Connection) -> None:
    async with serving(create_app(settings_for(database, max_tasks_per_device=1))) as client:
        assert (await post(client, "legacy", "bad", timeoutInSeconds=0)).status == 422
        _, task, _ = told(await post(client, "legacy", "first"))
        # The device is full, but who has a task already is told of it.
        assert (await post(client, "legacy", "bad")).status == 429
        assert told(await post(client, "legacy", "first")) == (200, task, "true")
        await end_by_hand(sql, "id = $1", UUID(task))
        assert told(await post(client, "legacy", "bad"))[2] is None


async def test_a_task_that_is_given_up_by_now_is_told_of_ever_after(client: Client, sql: asyncpg.Connection) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    _, task, _ = told(await post(client, "resource", "k", notAfter=soon.isoformat()))
    with patch("service_b.submission.datetime") as later:
        later.now.return_value = soon
        assert told(await post(client, "resource", "k", notAfter=soon.isoformat())) == (202, task, "true")
        new = await post(client, "resource", "new", notAfter=soon.isoformat())
        assert (new.status, (await new.json(content_type=None))["errors"][0]["loc"]) == (422, ["notAfter"])
    assert await sql.fetchval("SELECT count(*) FROM idempotency_key") == 1


async def test_a_token_has_keys_of_its_own(database: DatabaseSettings, tmp_path: Path, sql: asyncpg.Connection) -> None:
    tokens = TokensFile(tmp_path / "tokens")
    crm, oss = tokens.add("crm", "submit"), tokens.add("oss", "submit")
    settings = settings_for(database, tokens_file=tokens.path, max_tasks_per_token=1)
    async with serving(create_app(settings)) as client:
        tasks = [told(await post(client, "legacy", "k", headers)) for headers in (crm, oss, crm)]
        assert [replayed for _, _, replayed in tasks] == [None, None, "true"]
        assert tasks[0][1] == tasks[2][1] != tasks[1][1]
        assert (await post(client, "legacy", "another", crm)).status == 429
        assert (await post(client, "legacy", "k", oss, timeoutInSeconds=15)).status == 422
    assert await sql.fetchval("SELECT count(*) FROM idempotency_key") == 2


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "käse", "a\x7fb"])
async def test_a_malformed_key_is_refused(client: Client, sql: asyncpg.Connection, key: str) -> None:
    raw = json.dumps(BODY).encode()
    head = f"POST {PATH}/{DEVICE} HTTP/1.1\r\nHost: b\r\nConnection: close\r\nContent-Length: {len(raw)}\r\n"
    answer, _ = await client.ask_raw(f"{head}Idempotency-Key: {key}\r\n\r\n".encode() + raw)
    assert answer.startswith(b"HTTP/1.1 400 ")
    two = f"{head}Idempotency-Key: a\r\nIdempotency-Key: a\r\n\r\n".encode() + raw
    assert (await client.ask_raw(two))[0].startswith(b"HTTP/1.1 400 ")
    assert await sql.fetchval("SELECT count(*) FROM task") == 0
    assert told(await post(client, "legacy", "x" * 255))[0] == 200


async def test_what_was_sent_is_not_kept(database: DatabaseSettings, sql: asyncpg.Connection) -> None:
    """A digest that needs no secret would let a short password be found."""
    digests = []
    for secret in ("a secret of this test", "another secret of it"):
        async with serving(create_app(settings_for(database, idempotency_secret=secret))) as client:
            assert (await post(client, "legacy", secret)).status == 200
            digests.append(await sql.fetchval("SELECT digest FROM idempotency_key WHERE key = $1", secret))
    assert digests[0] != digests[1]


async def test_old_keys_are_forgotten(client: Client, pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    assert (await post(client, "legacy", "new")).status == 200
    await sql.execute(
        """
        INSERT INTO idempotency_key
        SELECT '', n, lpad(n::text, 32, '0')::uuid, sha256('') FROM generate_series(1, 5) AS n
        """
    )
    await old_keys.forget(pool, 90, batch=2)
    assert await sql.fetchval("SELECT array_agg(key) FROM idempotency_key") == ["new"]
