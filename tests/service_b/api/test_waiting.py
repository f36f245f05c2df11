"""`Prefer: wait=N` on the real web application and a real database: told when the task ends, whatever ends it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import aiohttp
import asyncpg
import pytest
from aiohttp import ClientResponse, web
from multidict import CIMultiDict

from service_b.api import middleware, parts
from service_b.api.waiting import preferred_seconds
from service_b.app import Periods, create_app
from service_b.database import DatabaseSettings
from service_b.tasks import cancels
from service_b.waits import Waits
from tests.clients import Client, serving
from tests.conftest import eventually
from tests.service_b.api.test_access import TokensFile
from tests.service_b.api.test_routes import BODY, PATH, settings_for
from tests.tasks import accept, apply, claim, connected, end_by_hand, expire, finish, let_time_pass

DEVICE = "ABC1234"
NEVER, OFTEN = Periods(waits=3600), Periods(waits=0.02)
"""How often a process looks at what is waited for, without having been told."""
RUNNING = b'{"code":204,"message":"Task is still running"}'
PREFER = {"Prefer": "wait=300"}
"""For longer than a test waits for anything: no answer is given because the time was over."""


@pytest.fixture
async def client(database: DatabaseSettings) -> AsyncIterator[Client]:
    """A process that hears of ends, and does not look."""
    async with serving(create_app(settings_for(database), NEVER)) as made:
        yield made


def path_of(task: object) -> str:
    return f"{PATH}/{DEVICE}/task/{task}"


async def ask(client: Client, path: str, **headers: str) -> asyncio.Task[ClientResponse]:
    """Begin to ask for a task, and wait until that waits."""
    before = client.app[parts.WAITS]._count
    asked = asyncio.create_task(client.get(path, headers=PREFER | headers))
    await eventually(lambda: client.app[parts.WAITS]._count > before)
    return asked


async def told(asked: asyncio.Task[ClientResponse]) -> tuple[int, bytes, str | None]:
    """What an answer says, and which wait was applied."""
    await eventually(asked.done)
    answer = await asked
    return answer.status, await answer.read(), answer.headers.get("Preference-Applied")


async def is_heard(client: Client, sql: asyncpg.Connection) -> None:
    """Until the process listens."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%ended%' AND datname = current_database()"
    await eventually(lambda: sql.fetchval(query))


@pytest.mark.parametrize("code", [200, 404, 500])
async def test_an_outcome_ends_the_wait(code: int, client: Client, pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    await is_heard(client, sql)
    ids = await accept(pool, DEVICE)
    asked = [await ask(client, path) for path in (path_of(ids[0]), path_of(str(ids[0]).upper()))]
    asked.append(await ask(client, f"/api/v1/tasks/{ids[0]}"))
    [dispatch] = await claim(pool, 9)
    await apply(pool, finish(dispatch, code))
    answers = [await told(each) for each in asked]
    assert [(status, applied) for status, _, applied in answers] == [(code, "wait=300")] * 2 + [(200, "wait=300")]
    without = await client.get(path_of(ids[0]))
    assert answers[0][1] == answers[1][1] == await without.read()
    assert client.app[parts.WAITS]._waiting == {}


async def test_an_expiry_and_a_cancel_end_the_wait(client: Client, pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    await is_heard(client, sql)
    cancelled, expired = await accept(pool, DEVICE, "ABC1235", deadline_seconds=60)
    asked = [await ask(client, f"/api/v1/tasks/{id_}") for id_ in (cancelled, expired)]
    async with connected(pool) as connection:
        assert await cancels.cancel(connection, [(cancelled, None)]) == [cancels.Answer.CANCELLED]
    await let_time_pass(sql, 61)
    assert await expire(pool, 9) == [expired]
    await eventually(lambda: all(each.done() for each in asked))
    states = [(await (await each).json())["state"] for each in asked]
    assert states == ["cancelled", "expired"]


async def test_all_of_a_batch_hear_of_their_ends(
    database: DatabaseSettings, client: Client, pool: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    """450 ids are more than one notification holds; and nobody waits for one of the ten connections meanwhile."""
    await is_heard(client, sql)
    ids = await accept(pool, *(f"DEVICE{number}" for number in range(450)), DEVICE)
    async with aiohttp.ClientSession(
        f"http://{client.host}:{client.port}", connector=aiohttp.TCPConnector(limit=0)
    ) as many:
        asked = [asyncio.create_task(many.get(f"/api/v1/tasks/{id_}", headers=PREFER)) for id_ in ids[:-1]]
        await eventually(lambda: client.app[parts.WAITS]._count == len(asked))
        assert await told(asyncio.create_task(client.get(path_of(ids[-1])))) == (200, RUNNING, None)
        await apply(pool, *(finish(dispatch) for dispatch in await claim(pool, 999)))
        await eventually(lambda: all(each.done() for each in asked))
        answers = await asyncio.gather(*asked)
        assert {(await answer.json())["state"] for answer in answers} == {"succeeded"}


@pytest.mark.parametrize("seconds", [0, 1])
async def test_one_that_has_not_ended_is_told_as_it_stands(seconds: int, client: Client, pool: asyncpg.Pool) -> None:
    [task] = await accept(pool, DEVICE)
    asked = asyncio.create_task(client.get(path_of(task), headers={"Prefer": f"wait={seconds}"}))
    assert await told(asked) == (200, RUNNING, f"wait={seconds}")
    assert (await asked).headers["Retry-After"] == "5"


async def test_one_that_has_ended_is_told_at_once(client: Client, pool: asyncpg.Pool) -> None:
    [task] = await accept(pool, DEVICE)
    [dispatch] = await claim(pool, 9)
    await apply(pool, finish(dispatch))
    response = await client.head(path_of(task), headers=PREFER)
    assert (response.status, response.headers["Preference-Applied"]) == (200, "wait=300")


async def test_a_post_may_wait_for_what_it_made(client: Client, pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    await is_heard(client, sql)
    posts: list[tuple[str, dict[str, Any]]]
    [failed] = await accept(pool, "ABC1236")
    await end_by_hand(sql, "true")
    posts = [
        (f"{PATH}/{DEVICE}", BODY),
        ("/api/v1/tasks", {"equipmentId": "ABC1235", **BODY}),
        (f"/api/v1/tasks/{failed}/retry", {}),
    ]
    asked = [asyncio.create_task(client.post(path, json=body, headers=PREFER)) for path, body in posts]
    await eventually(lambda: client.app[parts.WAITS]._count == len(posts))
    await apply(pool, *(finish(dispatch) for dispatch in await claim(pool, 9)))
    await eventually(lambda: all(each.done() for each in asked))
    legacy, *resources = await asyncio.gather(*asked)
    task = legacy.headers["Location"].rsplit("/", 1)[1]
    assert await legacy.read() == b'{"code":200,"taskId":"%s"}' % task.encode()
    assert [(each.status, (await each.json())["state"]) for each in resources] == [(202, "succeeded")] * 2
    assert {answer.headers["Preference-Applied"] for answer in (legacy, *resources)} == {"wait=300"}


async def test_an_end_that_nobody_told_of_is_found(database: DatabaseSettings, sql: asyncpg.Connection) -> None:
    """As when the connection that listens was away; also of a task that is not there any more."""
    async with serving(create_app(settings_for(database), OFTEN)) as client:
        ended, gone = [(await client.post(f"{PATH}/{DEVICE}", json=BODY)).headers["Location"] for _ in range(2)]
        asked = [await ask(client, path) for path in (ended, gone)]
        await sql.execute(
            """
            WITH gone AS (DELETE FROM task WHERE id = $1 RETURNING *)
            INSERT INTO finished
                (id, seq, created_at, finished_at, timeout_seconds, attempt, code, status, equipment_id)
            SELECT id, seq, created_at, now(), 1, 1, 200, 'success', equipment_id FROM gone
            """,
            UUID(ended.rsplit("/", 1)[1]),
        )
        assert (await told(asked[0]))[0] == 200
        await sql.execute("DELETE FROM task")
        assert (await told(asked[1]))[0] == 404


async def test_a_client_that_leaves_is_waited_with_no_longer(database: DatabaseSettings, pool: asyncpg.Pool) -> None:
    [task] = await accept(pool, DEVICE)
    async with serving(create_app(settings_for(database), OFTEN)) as client:
        (await ask(client, path_of(task))).cancel()
        await eventually(lambda: client.app[parts.WAITS]._count == 0)


async def test_a_stop_answers_at_once(database: DatabaseSettings, pool: asyncpg.Pool) -> None:
    [task] = await accept(pool, DEVICE)
    app = create_app(settings_for(database), NEVER)
    async with aiohttp.ClientSession() as session:
        async with serving(app) as client:
            url = f"http://{client.host}:{client.port}{path_of(task)}"
            asked = asyncio.create_task(session.get(url, headers={"Prefer": "wait=300"}))
            await eventually(lambda: app[parts.WAITS]._count)
        assert await told(asked) == (200, RUNNING, "wait=300")


async def test_a_wait_is_no_slowness(client: Client, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever watches how long answers take sees what we took, not what clients asked for."""
    observed: list[float] = []
    monkeypatch.setattr(middleware, "observe", lambda _request, _code, seconds: observed.append(seconds))
    wait = Waits.wait

    async def wait_long(*arguments: Any) -> tuple[object, float]:
        seen, _ = await wait(*arguments)
        return seen, 1000.0

    monkeypatch.setattr(Waits, "wait", wait_long)
    [task] = await accept(pool, DEVICE)
    for headers in ({}, {"Prefer": "wait=0"}, {"Prefer": "respond-async"}):
        assert (await client.get(path_of(task), headers=headers)).status == 200
    assert [seconds > 0 for seconds in observed] == [True, False, True]


async def test_who_waits_leaves_connections_to_others(database: DatabaseSettings, pool: asyncpg.Pool) -> None:
    """Of ten, seven may wait; more are answered at once."""
    [task] = await accept(pool, DEVICE)
    async with serving(create_app(settings_for(database, max_connections=10), NEVER)) as client:
        asked = [await ask(client, path_of(task)) for _ in range(7)]
        assert await told(asyncio.create_task(client.get(path_of(task), headers=PREFER))) == (200, RUNNING, None)
        client.app[parts.WAITS].stop()
        assert {await told(each) for each in asked} == {(200, RUNNING, "wait=300")}


async def test_what_may_not_be_seen_is_not_waited_for(database: DatabaseSettings, tmp_path: Path) -> None:
    tokens = TokensFile(tmp_path / "tokens")
    oss, crm = tokens.add("oss", "submit", "read"), tokens.add("crm", "read")
    async with serving(create_app(settings_for(database, tokens_file=tokens.path), NEVER)) as client:
        path = (await client.post(f"{PATH}/{DEVICE}", json=BODY, headers=oss)).headers["Location"]
        for at in (path, f"/api/v1/tasks/{path.rsplit('/', 1)[1]}", path.replace(DEVICE, "ABC1235")):
            assert (await client.get(at, headers=PREFER | crm)).status == 404


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (["wait=10"], 10),
        (["WAIT = 10"], 10),
        (['wait="10"'], 10),
        (["respond-async, wait=10; foo=bar"], 10),
        (["respond-async", "wait=10"], 10),
        (["wait=10", "wait=20"], 10),
        (['foo="a, wait=5", wait=10'], 10),
        (["wait=0"], 0),
        (["wait=300"], 300),
        (["wait=301"], 300),
        ([f"wait={'9' * 7000}"], 300),
        ([f"wait={'0' * 7000}5"], 5),
        *(
            ([text], None)
            for text in ("wait", "wait=", "wait=-1", "wait=1.5", "wait=x", "await=1", "wait=1 2", "wait=\u0661")
        ),
        *(([text], None) for text in ("", ",", '"', 'foo="wait=5', "wait=5\\", "0" * 7000, f"wait={'0' * 7000}x")),
    ],
)
def test_a_preference_is_read_leniently(sent: list[str], seconds: int | None) -> None:
    headers = CIMultiDict([("Prefer", text) for text in sent])
    app = {parts.WAITS: SimpleNamespace(is_full=False)}
    assert preferred_seconds(cast(web.Request, SimpleNamespace(headers=headers, app=app))) == seconds
