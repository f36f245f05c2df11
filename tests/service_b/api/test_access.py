"""Tokens on the real web application and a real database: who may ask for what."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from aiohttp import ClientResponse
from structlog.testing import capture_logs
from yarl import URL

from service_b.api import docs
from service_b.app import Periods, create_app
from service_b.database import DatabaseSettings
from service_b.tokens import token
from tests.clients import Client, serving
from tests.conftest import eventually
from tests.service_b.api.test_routes import BODY, EQUIPMENT_NOT_FOUND, PATH, TASK_NOT_FOUND, settings_for
from tests.tasks import end_by_hand

ROLES = ("submit", "read", "operate", "admin")
DEVICE, FOREIGN = "ABC1234", "XYZ9876"
PERIODS = Periods(tokens=0.01)


class TokensFile:
    """A file of tokens, and what clients send."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, str] = {}

    def add(self, name: str, *roles: str, devices: str = "*", expires: str | None = None) -> dict[str, str]:
        """Write one more token into the file; return the header that it is sent by."""
        text = token.make()
        line = {"name": name, "sha256": hashlib.sha256(text.encode()).hexdigest(), "roles": roles, "devices": [devices]}
        self.lines[text] = json.dumps(line | ({"expires": expires} if expires else {}))
        self._write()
        return {"Authorization": f"Bearer {text}"}

    def revoke(self, header: Mapping[str, str]) -> None:
        """Take a token out of the file."""
        del self.lines[header["Authorization"].removeprefix("Bearer ")]
        self._write()

    def _write(self) -> None:
        new = self.path.with_suffix(".new")
        new.write_text("\n".join(self.lines.values()))
        new.rename(self.path)


@pytest.fixture
def tokens(tmp_path: Path) -> TokensFile:
    return TokensFile(tmp_path / "tokens")


@pytest.fixture
def by_role(tokens: TokensFile) -> dict[str, dict[str, str]]:
    """A token of each role for the devices ABC*, by its role; and none."""
    return {"none": {}} | {role: tokens.add(role, role, devices="ABC*") for role in ROLES}


@pytest.fixture
async def client(
    database: DatabaseSettings, tokens: TokensFile, by_role: dict[str, dict[str, str]]
) -> AsyncIterator[Client]:
    async with serving(create_app(settings_for(database, tokens_file=tokens.path), PERIODS)) as made:
        yield made


CPE, STATUS = "/api/v1/equipment/cpe/{id}", "/api/v1/equipment/cpe/{id}/task/{task}"
TASK = "/api/v1/tasks/{id}"

MATRIX: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {
    # none, submit, read, operate, admin
    ("GET", "/api/v1/"): {"": (401, 200, 200, 200, 200)},
    ("POST", CPE): {
        "own device": (401, 200, 403, 403, 200),
        "other's device": (401, 404, 403, 403, 200),
        "no device": (401, 404, 403, 403, 404),
    },
    ("GET", STATUS): {
        "own task": (401, 403, 200, 200, 200),
        "other's task": (401, 403, 404, 200, 200),
        "other's device": (401, 403, 404, 404, 200),
        "other's task by another device": (401, 403, 404, 404, 404),
        "no task": (401, 403, 404, 404, 404),
        "no device": (401, 403, 404, 404, 404),
    },
    ("GET", "/openapi.json"): {"": (200,) * 5},
    **{("GET", path): {"": (200,) * 5} for path in docs.FILES},
    ("POST", "/api/v1/tasks"): {
        "own device": (401, 202, 403, 403, 202),
        "other's device": (401, 404, 403, 403, 202),
        "no device": (401, 422, 403, 403, 422),
    },
    ("GET", TASK): {
        "own task": (401, 403, 200, 200, 200),
        "other's task": (401, 403, 404, 200, 200),
        "other's device": (401, 403, 404, 404, 200),
        "no task": (401, 403, 404, 404, 404),
    },
    ("GET", "/api/v1/tasks"): {"": (401, 403, 200, 200, 200)},
    ("GET", "/api/v1/equipment/cpe/{id}/tasks"): {
        "own task": (401, 403, 200, 200, 200),
        "other's device": (401, 403, 404, 404, 200),
        "no device": (401, 403, 404, 404, 404),
    },
    ("GET", "/problems/{slug}"): {"": (200,) * 5},
    ("GET", "/health/live"): {"": (200,) * 5},
    ("GET", "/health/ready"): {"": (200,) * 5},
    ("GET", "/metrics"): {"": (200,) * 5},
    # At the end, for what is cancelled is so for whoever asks next.
    ("POST", f"{TASK}/retry"): {
        "own task": (401, 422, 403, 422, 422),
        "other's task": (401, 404, 403, 422, 422),
        "other's device": (401, 404, 403, 404, 422),
        "no task": (401, 404, 403, 404, 404),
    },
    ("POST", f"{TASK}/cancel"): {
        "own task": (401, 200, 403, 200, 200),
        "other's task": (401, 404, 403, 200, 409),
        "other's device": (401, 404, 403, 404, 200),
        "no task": (401, 404, 403, 404, 404),
    },
}
"""Sections 8 and 9 of the contract, route by route: what each of `by_role` is answered. HEAD is answered as GET is."""


def served(client: Client) -> set[tuple[str, str]]:
    """All routes of the application, by method and path."""
    return {
        (route.method, route.resource.canonical)
        for route in client.app.router.routes()
        if route.resource and route.method != "HEAD"
    }


async def test_the_matrix(client: Client, sql: asyncpg.Connection, by_role: dict[str, dict[str, str]]) -> None:
    """Role by route by own, another's and no device; a route that is added must get its row."""
    assert served(client) == set(MATRIX)

    async def submit(device: str, by: str) -> str:
        """Accept a task; it carries the name `by`, whoever may see it."""
        response = await client.post(f"{PATH}/{device}", json=BODY, headers=by_role["admin"])
        task = (await response.json())["taskId"]
        await sql.execute("UPDATE task SET submitted_by = $2 WHERE id = $1", task, by)
        return str(task)

    theirs, foreign = await submit(DEVICE, "crm"), await submit(FOREIGN, "crm")
    found = {}
    for (method, path), cases in MATRIX.items():
        for case in cases:
            answers = []
            for role, header in by_role.items():
                device, task = {
                    "own task": (DEVICE, await submit(DEVICE, role)),
                    "other's task": (DEVICE, theirs),
                    "other's device": (FOREIGN, foreign),
                    "other's task by another device": (DEVICE, foreign),
                    "no device": ("short", theirs),
                }.get(case, (DEVICE, str(uuid4())))
                at = URL(path.format(id=task if path.startswith(TASK) else device, task=task, slug="no-token"))
                body = BODY | {"equipmentId": device} if method == "POST" else None
                response = await client.request(method, at, json=body, headers=header)
                answers.append(response.status)
                if method == "GET":
                    assert (await client.head(at, headers=header)).status == response.status
            found[method, path, case] = tuple(answers)
    assert found == {
        (method, path, case): told for (method, path), cases in MATRIX.items() for case, told in cases.items()
    }


async def test_refusals_are_problems_on_the_new_routes(client: Client, by_role: dict[str, dict[str, str]]) -> None:
    for sent, code, slug in (
        ({}, 401, "no-token"),
        ({"Authorization": "Bearer SECRET"}, 401, "invalid-token"),
        (by_role["read"], 403, "insufficient-scope"),
    ):
        response = await client.post("/api/v1/tasks", json=BODY, headers=sent)
        assert (response.status, response.content_type) == (code, "application/problem+json")
        assert (await response.json(content_type=None))["type"] == f"/problems/{slug}"
        assert response.headers["WWW-Authenticate"].startswith("Bearer")


async def assert_refused(response: ClientResponse, code: int, message: str, challenge: str) -> None:
    assert (response.status, await response.json()) == (code, {"code": code, "message": message})
    assert response.headers["WWW-Authenticate"] == challenge


async def test_no_token(client: Client) -> None:
    await assert_refused(await client.post(f"{PATH}/{DEVICE}", json=BODY), 401, "A token is needed", "Bearer")


@pytest.mark.parametrize("kind", ["unknown", "nonsense", "empty", "another scheme", "no scheme", "a line's sha256"])
async def test_an_invalid_token(client: Client, tokens: TokensFile, kind: str) -> None:
    known = next(iter(tokens.lines))
    sent = {
        "unknown": f"Bearer {token.make()}",
        "nonsense": "Bearer SECRET",
        "empty": "Bearer",
        "another scheme": f"Basic {known}",
        "no scheme": known,
        "a line's sha256": f"Bearer {json.loads(tokens.lines[known])['sha256']}",
    }[kind]
    response = await client.get("/api/v1/", headers={"Authorization": sent})
    await assert_refused(response, 401, "The token is not valid", 'Bearer error="invalid_token"')


async def test_two_tokens_are_none(client: Client, by_role: dict[str, dict[str, str]]) -> None:
    both = [(name, value) for role in ("admin", "read") for name, value in by_role[role].items()]
    assert (await client.get("/api/v1/", headers=both[:1])).status == 200
    assert (await client.get("/api/v1/", headers=both)).status == 401


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
async def test_the_scheme_is_taken_in_any_case(client: Client, by_role: dict[str, dict[str, str]], scheme: str) -> None:
    sent = by_role["read"]["Authorization"].replace("Bearer", scheme)
    assert (await client.get("/api/v1/", headers={"Authorization": sent})).status == 200


async def test_a_role_that_is_not_enough(client: Client, by_role: dict[str, dict[str, str]]) -> None:
    """Told before anything of the request is read."""
    response = await client.post(f"{PATH}/short", data=b"{", headers=by_role["read"])
    challenge = 'Bearer error="insufficient_scope"'
    await assert_refused(response, 403, "The token does not allow this", challenge)


async def test_what_a_token_may_not_see_answers_as_what_does_not_exist(
    client: Client, by_role: dict[str, dict[str, str]], sql: asyncpg.Connection
) -> None:
    tasks = []
    for device in (DEVICE, FOREIGN):
        response = await client.post(f"{PATH}/{device}", json=BODY, headers=by_role["admin"])
        tasks.append(URL(response.headers["Location"]))
    for ended in (False, True):
        if ended:
            await end_by_hand(sql, "true", code=200)
        theirs = await client.get(tasks[0], headers=by_role["read"])
        assert (theirs.status, await theirs.read()) == (404, TASK_NOT_FOUND)
        # Not even that a task of that id is another device's.
        elsewhere = await client.get(
            tasks[0].parent.parent.parent / "ABC0000/task" / tasks[0].name, headers=by_role["read"]
        )
        assert (elsewhere.status, await elsewhere.read()) == (404, TASK_NOT_FOUND)
        for request in (
            client.get(tasks[1], headers=by_role["operate"]),
            client.get(tasks[1], headers=by_role["read"]),
        ):
            response = await request
            assert (response.status, await response.read()) == (404, EQUIPMENT_NOT_FOUND)
        assert (await client.get(tasks[0], headers=by_role["operate"])).status == 200
    refused = await client.post(f"{PATH}/{FOREIGN}", json=BODY, headers=by_role["submit"])
    assert (refused.status, await refused.read()) == (404, EQUIPMENT_NOT_FOUND)


async def test_a_task_carries_the_name_of_its_token_until_it_is_forgotten(
    client: Client, tokens: TokensFile, sql: asyncpg.Connection
) -> None:
    header = tokens.add("oss", "submit", "read")
    await eventually(lambda: _is_known(client, header))
    for device in (DEVICE, DEVICE, FOREIGN):
        assert (await client.post(f"{PATH}/{device}", json=BODY, headers=header)).status == 200
    named = "SELECT array_agg(DISTINCT submitted_by) FROM {}"
    assert await sql.fetchval(named.format("task")) == ["oss"]
    await end_by_hand(sql, "true", code=200)
    assert await sql.fetchval(named.format("finished")) == ["oss"]
    location = f"{PATH}/{FOREIGN}/task/{await sql.fetchval('SELECT id FROM finished WHERE equipment_id = $1', FOREIGN)}"
    assert (await client.get(location, headers=header)).status == 200
    # A client changes its token, and still sees its tasks.
    tokens.revoke(header)
    again = tokens.add("oss", "read")
    await eventually(lambda: _is_known(client, again))
    assert (await client.get(location, headers=header)).status == 401
    assert (await client.get(location, headers=again)).status == 200


async def _is_known(client: Client, header: Mapping[str, str]) -> bool:
    return (await client.get("/api/v1/", headers=header)).status == 200


async def test_every_process_hears_of_a_token_and_of_its_end(
    client: Client, database: DatabaseSettings, tokens: TokensFile
) -> None:
    async with serving(create_app(settings_for(database, tokens_file=tokens.path), PERIODS)) as second:
        header = tokens.add("new", "read")
        for each in (client, second):
            await eventually(lambda each=each: _is_known(each, header))
        tokens.revoke(header)
        for each in (client, second):
            await eventually(lambda each=each: _is_unknown(each, header))


async def _is_unknown(client: Client, header: Mapping[str, str]) -> bool:
    return not await _is_known(client, header)


async def test_an_expired_token(database: DatabaseSettings, tokens: TokensFile) -> None:
    late = tokens.add("late", "read", expires="2001-01-01T00:00:00Z")
    early = tokens.add("early", "read", expires="2999-01-01T00:00:00Z")
    async with serving(create_app(settings_for(database, tokens_file=tokens.path), PERIODS)) as client:
        assert (await client.get("/api/v1/", headers=early)).status == 200
        response = await client.get("/api/v1/", headers=late)
        await assert_refused(response, 401, "The token is not valid", 'Bearer error="invalid_token"')


async def test_without_tokens_the_api_is_open_and_says_so(database: DatabaseSettings, sql: asyncpg.Connection) -> None:
    with capture_logs() as logs:
        app = create_app(settings_for(database))
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("api.open", "warning")]
    async with serving(app) as client:
        response = await client.post(f"{PATH}/{DEVICE}", json=BODY, headers={"Authorization": "Bearer nonsense"})
        assert (await client.get(response.headers["Location"])).status == 200
    assert await sql.fetchval("SELECT submitted_by FROM task") is None


async def test_a_token_is_never_logged(client: Client, by_role: dict[str, dict[str, str]]) -> None:
    with capture_logs() as logs:
        for role in ("admin", "read"):
            await client.post(f"{PATH}/{DEVICE}", json=BODY, headers=by_role[role])
        await client.post(f"{PATH}/{DEVICE}", json=BODY, headers={"Authorization": "Bearer cpe_SECRET"})
    assert "cpe_" not in str(logs)


# --- How many


async def test_a_client_gets_no_more_tasks_than_it_may_have(
    database: DatabaseSettings, tokens: TokensFile, sql: asyncpg.Connection
) -> None:
    """All tokens of its name together; others are not harmed."""
    first, second, other = (tokens.add(name, "submit") for name in ("oss", "oss", "crm"))
    settings = settings_for(database, tokens_file=tokens.path, max_tasks_per_token=3)
    async with serving(create_app(settings, PERIODS)) as client:
        statuses = []
        for number, header in enumerate((first, second, first, second, other)):
            response = await client.post(f"{PATH}/DEVICE{number}", json=BODY, headers=header)
            statuses.append(response.status)
            if response.status == 429:
                assert await response.json() == {"code": 429, "message": "Too many tasks of this client are unfinished"}
                assert int(response.headers["Retry-After"]) > 0
    assert statuses == [200, 200, 200, 429, 200]
    assert await sql.fetchval("SELECT array_agg(submitted_by ORDER BY seq) FROM task") == ["oss"] * 3 + ["crm"]


async def test_a_flood_for_one_device_is_stopped_at_its_limit(
    database: DatabaseSettings, sql: asyncpg.Connection
) -> None:
    """With tokens and without; its first task is as it was."""
    async with serving(create_app(settings_for(database))) as client:
        first = await (await client.post(f"{PATH}/{DEVICE}", json=BODY)).json()

        async def post(_: int) -> int:
            async with client.post(f"{PATH}/{DEVICE}", json=BODY) as response:
                if response.status == 429:
                    message = "Too many tasks of this equipment are unfinished"
                    assert await response.json() == {"code": 429, "message": message}
                    assert int(response.headers["Retry-After"]) > 0
                return response.status

        statuses = Counter(await asyncio.gather(*map(post, range(1439))))
        assert statuses == {200: 999, 429: 440}
        assert (await client.post(f"{PATH}/{FOREIGN}", json=BODY)).status == 200
    unharmed = "SELECT due_at IS NOT NULL AND seq = (SELECT min(seq) FROM task) FROM task WHERE id = $1"
    assert await sql.fetchval(unharmed, first["taskId"])
