"""What a browser sends for a page of another site is refused, with tokens and without."""

from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest

from service_b.app import create_app
from service_b.database import DatabaseSettings
from tests.clients import Client, serving
from tests.service_b.api.test_routes import BODY, NO_TASK, PATH, settings_for


@pytest.fixture
async def client(database: DatabaseSettings) -> AsyncIterator[Client]:
    async with serving(create_app(settings_for(database))) as made:
        yield made


@pytest.mark.parametrize(
    "headers",
    [
        [("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "same-site")],
        [("Sec-Fetch-Site", "something-new")],
        [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "cross-site"), ("Origin", "http://{host}")],
        [("Origin", "http://evil.example")],
        [("Origin", "http://{host}.evil.example")],
        [("Origin", "http://{host}@evil.example")],
        [("Origin", "http://127.0.0.1")],
        [("Origin", "null")],
        [("Origin", "")],
        [("Origin", "http://{host}"), ("Origin", "http://evil.example")],
    ],
)
async def test_another_sites_page(client: Client, sql: asyncpg.Connection, headers: Sequence[tuple[str, str]]) -> None:
    sent = [(name, value.format(host=f"127.0.0.1:{client.port}")) for name, value in headers]
    for method, path in (("POST", f"{PATH}/ABC1234"), ("GET", "/api/v1/"), ("OPTIONS", f"{PATH}/ABC1234")):
        response = await client.request(method, path, json=BODY, headers=sent)
        assert response.status == 403
        assert await response.json() == {"code": 403, "message": "Requests from other sites are refused"}
        assert not [name for name in response.headers if name.startswith("Access-Control")]
    assert await sql.fetchval("SELECT count(*) FROM task") == 0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        # The proxy in front of us may have given us another name.
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://cpe.example"},
        {"Origin": "http://127.0.0.1:{port}"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "https://CPE.example", "Host": "cpe.EXAMPLE"},
    ],
)
async def test_a_page_of_ours_and_a_client_that_is_no_browser(client: Client, headers: dict[str, str]) -> None:
    sent = {name: value.format(port=client.port) for name, value in headers.items()}
    assert (await client.post(f"{PATH}/ABC1234", json=BODY, headers=sent)).status == 200
    assert (await client.get(f"{PATH}/ABC1234/task/{NO_TASK}", headers=sent)).status == 404


async def test_no_host_is_nobodys_origin(client: Client) -> None:
    told, _ = await client.ask_raw(b"GET /api/v1/ HTTP/1.0\r\nOrigin: null\r\n\r\n")
    assert b" 403 " in told.splitlines()[0]
