"""Lists of tasks, on the real web application and a real database."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from yarl import URL

from service_b import listings
from service_b.app import create_app
from service_b.database import DatabaseSettings
from tests.clients import Client, serving
from tests.conftest import eventually
from tests.service_b.api import test_access, test_routes
from tests.service_b.api.test_access import PERIODS, TokensFile
from tests.service_b.api.test_routes import settings_for
from tests.service_b.api.test_tasks import BODY, TASKS, assert_problem, hours
from tests.tasks import end_by_hand

client, refusing, shared_database_url = test_routes.client, test_routes.refusing, test_routes.shared_database_url
tokens = test_access.tokens

DEVICE, OTHER = "ABC1234", "XYZ9876"
HISTORY = f"{test_routes.PATH}/{DEVICE}/tasks"


async def make(client: Client, device: str = DEVICE, headers: dict[str, str] | None = None, **wishes: Any) -> str:
    """Make a task."""
    response = await client.post(TASKS, json=BODY | {"equipmentId": device} | wishes, headers=headers)
    assert response.status == 202
    task: str = (await response.json())["id"]
    return task


async def ids(client: Client, path: str, headers: dict[str, str] | None = None, **query: str) -> list[str]:
    """The ids that a list tells, page after page by its links."""
    told: list[str] = []
    url = URL(path).with_query(query)
    while True:
        response = await client.get(url, headers=headers)
        assert response.status == 200
        page = await response.json()
        told += [task["id"] for task in page["items"]]
        assert (page["next"] is None) == ("Link" not in response.headers)
        if page["next"] is None:
            return told
        link = response.headers["Link"]
        assert link.endswith('>; rel="next"')
        assert URL(link[1:].partition(">")[0], encoded=True) == url.update_query(cursor=page["next"])
        url = url.update_query(cursor=page["next"])


async def test_the_newest_come_first_page_by_page(client: Client, sql: asyncpg.Connection) -> None:
    made = [await make(client, f"DEVICE{n % 3}") for n in range(7)]
    await end_by_hand(sql, "id = ANY($1::uuid[])", [made[1], made[4], made[6]])
    for limit in ("1", "3", "7", "500"):
        assert await ids(client, TASKS, limit=limit) == made[::-1]
    response = await client.get(TASKS)
    page = await response.json()
    assert page["next"] is None
    assert page["items"][1] == await (await client.get(f"{TASKS}/{made[5]}")).json()
    assert (await client.head(TASKS)).headers["Content-Length"] == response.headers["Content-Length"]


async def test_filters(client: Client, sql: asyncpg.Connection) -> None:
    odd = 'order 77/"<>&=ü'
    first, second, third = await make(client), await make(client, externalId=odd), await make(client, OTHER)
    await end_by_hand(sql, "id = $1", first)
    assert await ids(client, TASKS, equipmentId=DEVICE) == await ids(client, HISTORY) == [second, first]
    assert await ids(client, TASKS, externalId=odd) == [second]
    assert await ids(client, TASKS, state="failed") == await ids(client, HISTORY, state="failed") == [first]
    assert await ids(client, TASKS, createdFrom=hours(-1), createdTo=hours(1), limit="1") == [third, second, first]
    assert await ids(client, TASKS, createdFrom=hours(1)) == await ids(client, TASKS, createdTo=hours(-1)) == []
    assert await ids(client, TASKS, campaign="none") == []
    created = datetime.fromisoformat((await (await client.get(f"{TASKS}/{second}")).json())["createdAt"])
    assert second not in await ids(client, TASKS, createdTo=created.isoformat())
    assert second in await ids(client, TASKS, createdFrom=created.isoformat())
    plus = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert (await client.get(URL(f"{TASKS}?createdFrom={plus}", encoded=True))).status == 200, "not escaped"


async def test_a_cursor_belongs_to_its_filters(client: Client) -> None:
    for _ in range(3):
        await make(client)
    cursor = (await (await client.get(TASKS, params={"limit": "1", "state": "waiting"})).json())["next"]
    assert cursor
    for query in (
        {"cursor": cursor},
        {"cursor": cursor, "state": "due"},
        {"cursor": f"{cursor}A", "state": "waiting"},
        {"cursor": cursor[:-4], "state": "waiting"},
        {"cursor": "", "state": "waiting"},
        {"cursor": "ü", "state": "waiting"},
    ):
        await assert_problem(await client.get(TASKS, params=query), 400, "bad-request")
    # How many at once is no filter.
    response = await client.get(TASKS, params={"cursor": cursor, "state": "waiting", "limit": "2"})
    assert len((await response.json())["items"]) == 1


async def test_any_process_goes_on_where_another_has_ended(client: Client, database: DatabaseSettings) -> None:
    """After a restart, too."""
    made = [await make(client) for _ in range(3)]
    first = await (await client.get(TASKS, params={"limit": "1"})).json()
    async with serving(create_app(settings_for(database))) as another:
        assert await ids(another, TASKS, cursor=first["next"]) == made[1::-1]


@pytest.mark.parametrize(
    ("query", "loc"),
    [
        ("equipmentId=short", ["equipmentId"]),
        ("equipmentId=", ["equipmentId"]),
        ("state=done", ["state"]),
        ("state=due&state=waiting", ["state"]),
        ("externalId=", ["externalId"]),
        ("externalId=%00", ["externalId"]),
        ("externalId=" + "x" * 129, ["externalId"]),
        ("createdFrom=yesterday", ["createdFrom"]),
        ("createdTo=2026-11-26T10:00:00", ["createdTo"]),
        ("limit=0", ["limit"]),
        ("limit=501", ["limit"]),
        ("limit=-1", ["limit"]),
        ("limit=1e2", ["limit"]),
        ("limit=²", ["limit"]),
        ("sort=id", []),
    ],
)
async def test_what_cannot_be_asked_for(refusing: Client, query: str, loc: list[str]) -> None:
    response = await refusing.get(f"{TASKS}?{query}")
    [fault] = (await response.json(content_type=None))["errors"]
    assert fault["loc"] == loc
    await assert_problem(response, 422, "invalid-request", errors=[fault])


async def test_a_device_has_its_history(refusing: Client) -> None:
    assert await ids(refusing, HISTORY) == []
    await assert_problem(await refusing.get(HISTORY.replace(DEVICE, "short")), 404, "equipment-not-found")
    response = await refusing.get(f"{HISTORY}?equipmentId={OTHER}")
    assert response.status == 422


async def test_a_token_lists_what_it_may_see(database: DatabaseSettings, tokens: TokensFile) -> None:
    oss = tokens.add("oss", "submit", "read", devices="*")
    narrow = tokens.add("oss", "read", devices="ABC*")
    operator = tokens.add("noc", "operate", devices="*9876")
    admin = tokens.add("root", "admin", devices="ABC*")
    async with serving(create_app(settings_for(database, tokens_file=tokens.path), PERIODS)) as client:
        own, foreign = await make(client, DEVICE, oss), await make(client, OTHER, oss)
        theirs, elsewhere = await make(client, DEVICE, admin), await make(client, OTHER, admin)
        for headers, seen in (
            (oss, [foreign, own]),
            (narrow, [own]),
            (operator, [elsewhere, foreign]),
            (admin, [elsewhere, theirs, foreign, own]),
        ):
            assert await ids(client, TASKS, headers, limit="1") == seen
        assert await ids(client, HISTORY, oss) == await ids(client, HISTORY, narrow) == [own]
        assert await ids(client, HISTORY, admin) == [theirs, own]
        await assert_problem(await client.get(HISTORY, headers=operator), 404, "equipment-not-found")
        assert await ids(client, TASKS, operator, equipmentId=DEVICE) == []


async def test_lists_do_not_take_all_connections(
    database: DatabaseSettings, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ask for them, and however long that takes: others are served, and those are told to come again."""
    monkeypatch.setattr(listings, "TIMEOUT_SECONDS", 1.0)
    async with serving(create_app(settings_for(database))) as client:
        await make(client)
        async with sql.transaction():
            await sql.execute("LOCK TABLE finished")
            asked = [asyncio.create_task(client.get(TASKS, params={"state": "failed"})) for _ in range(20)]
            blocked = "SELECT count(*) = $1 FROM pg_locks WHERE relation = 'finished'::regclass AND NOT granted"
            await eventually(lambda: sql.fetchval(blocked, listings.AT_ONCE))
            assert (await client.post(f"{test_routes.PATH}/{OTHER}", json=test_routes.BODY)).status == 200
            assert not any(each.done() for each in asked)
            for each in asked:
                await assert_problem(await each, 503, "storage-unavailable")
        assert (await client.get(TASKS)).status == 200
