"""The command line, at work on the real web application and a real database."""

import asyncio
import csv
import json
import re
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from typer.testing import CliRunner, Result
from typing_extensions import override

from service_b.app import create_app
from service_b.client import __main__ as command_line
from service_b.client import sheets, submitting
from service_b.client.service import RefusedError, Service
from service_b.database import DatabaseSettings
from tests.clients import Client, serving
from tests.service_b.api import test_routes
from tests.service_b.api.test_access import TokensFile
from tests.service_b.api.test_routes import PARAMETERS, settings_for
from tests.system.spawning import free_port
from tests.tasks import end_by_hand

client = test_routes.client

HEADER = "equipmentId,timeoutInSeconds,username,password,interfaces\n"


def sheet(path: Path, *devices: str) -> Path:
    path.write_text(HEADER + "".join(f"{device},14,admin,admin,1 2\n" for device in devices))
    return path


# The service runs in the same process, and may log between what a command prints.


async def run(client: Client, *arguments: str | Path, **environment: str) -> Result:
    """Run a command in a thread: it has an event loop of its own."""
    given = {"CPE_URL": f"http://{client.host}:{client.port}"} | environment
    return await asyncio.to_thread(CliRunner().invoke, command_line.app, list(map(str, arguments)), env=given)


async def test_a_file_is_submitted_once_however_often(client: Client, sql: asyncpg.Connection, tmp_path: Path) -> None:
    path = sheet(tmp_path / "devices.csv", "DEVICE1", "DEVICE2")
    for _ in range(2):
        result = await run(client, "submit", path)
        assert (result.exit_code, "2 tasks: 2 accepted\n" in result.stdout) == (0, True)
    assert await sql.fetchval("SELECT count(*) FROM task") == 2


async def test_what_is_refused_is_told_in_a_file(client: Client, tmp_path: Path) -> None:
    path = sheet(tmp_path / "devices.csv", "DEVICE1", "no serial", "DEVICE3")
    result = await run(client, "submit", path)
    assert result.exit_code == 1
    assert "3 tasks: 2 accepted, 1 refused" in result.stdout
    [line] = csv.DictReader((tmp_path / "devices.csv.failures.csv").read_text().splitlines())
    assert (line["line"], line["equipmentId"], line["state"], line["code"]) == ("2", "no serial", "refused", "422")
    assert line["reason"].startswith("equipmentId: ")


async def test_who_follows_is_told_how_each_has_ended(client: Client, sql: asyncpg.Connection, tmp_path: Path) -> None:
    path = sheet(tmp_path / "devices.csv", "DEVICE1", "DEVICE2", "DEVICE3")
    following = asyncio.create_task(run(client, "submit", path, "--follow", "--failures", tmp_path / "failures"))

    async def count() -> int:
        return int(await sql.fetchval("SELECT count(*) FROM task"))

    while await count() < 3:
        assert not following.done()
        await asyncio.sleep(0.05)
    await end_by_hand(sql, "equipment_id = $1", "DEVICE2", code=404)
    await end_by_hand(sql, "true", code=200)
    result = await following
    assert (result.exit_code, "3 tasks: 2 succeeded, 1 failed" in result.stdout) == (1, True)
    [line] = csv.DictReader((tmp_path / "failures").read_text().splitlines())
    assert (line["equipmentId"], line["state"], line["code"]) == ("DEVICE2", "failed", "404")


class Breaking(Service):
    """Breaks off after so many answers, time and again."""

    def __init__(self, url: str, after: Sequence[int]) -> None:
        super().__init__(url, None)
        self.after = list(after)
        self.sent: list[int] = []

    @override
    async def submit(self, lines: Sequence[bytes]) -> AsyncGenerator[tuple[int, dict[str, Any]], None]:
        self.sent.append(len(lines))
        after = self.after.pop(0) if self.after else len(lines)
        if after < 0:
            raise RefusedError(503, "away")
        async for place, told in super().submit(lines):
            if place == after:
                raise aiohttp.ServerDisconnectedError
            yield place, told


async def test_broken_off_it_sends_what_has_no_answer_again(
    client: Client, sql: asyncpg.Connection, tmp_path: Path
) -> None:
    rows = sheets.read(sheet(tmp_path / "devices.csv", *(f"DEVICE{number:03}" for number in range(300))))
    advanced = []
    async with Breaking(f"http://{client.host}:{client.port}", [0, 120, -1, 50]) as service:
        outcomes = await submitting.submit(service, rows, lambda: advanced.append(1), pauses=[0, 0])
    assert service.sent == [300, 300, 180, 180, 130]
    assert [(outcome.row.number, outcome.state) for outcome in outcomes] == [(n, "accepted") for n in range(1, 301)]
    assert len(advanced) == 300
    assert await sql.fetchval("SELECT count(*) FROM task") == 300


async def test_it_gives_up_when_nothing_comes_for_long(client: Client, tmp_path: Path) -> None:
    rows = sheets.read(sheet(tmp_path / "devices.csv", "DEVICE1"))
    async with Breaking(f"http://{client.host}:{client.port}", [0, -1, 0]) as service:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await submitting.submit(service, rows, lambda: None, pauses=[0, 0])


async def test_the_other_commands(client: Client, sql: asyncpg.Connection) -> None:
    body = {"timeoutInSeconds": 14, "parameters": PARAMETERS}
    ids = [
        (await (await client.post("/api/v1/tasks", json=body | {"equipmentId": f"DEVICE{n}"})).json())["id"]
        for n in (1, 2)
    ]
    [shown] = re.findall(r"^{.*^}", (await run(client, "status", ids[0])).stdout, re.MULTILINE | re.DOTALL)
    assert json.loads(shown)["equipmentId"] == "DEVICE1"
    assert "cancelled\n" in (await run(client, "cancel", ids[0])).stdout
    again = await run(client, "cancel", ids[0])
    assert (again.exit_code, "409" in again.stderr) == (2, True)
    await end_by_hand(sql, "true", code=200)
    waited = await run(client, "wait", *ids)
    assert (waited.exit_code, "cancelled" in waited.stdout, "succeeded" in waited.stdout) == (1, True, True)
    assert (await run(client, "wait", ids[1])).exit_code == 0
    [retried] = re.findall(r"^[0-9a-f-]{36}$", (await run(client, "retry", ids[0])).stdout, re.MULTILINE)
    listed = (await run(client, "list", "--device", "DEVICE1")).stdout
    assert [each in listed for each in (retried, *ids)] == [True, True, False]
    assert (await run(client, "list", "--most", "1")).stdout.count("DEVICE") == 1


async def test_with_a_token(database: DatabaseSettings, tmp_path: Path) -> None:
    tokens = TokensFile(tmp_path / "tokens")
    token = tokens.add("oss", "submit")["Authorization"].removeprefix("Bearer ")
    (tmp_path / "token").write_text(token + "\n")
    path = sheet(tmp_path / "devices.csv", "DEVICE1")
    async with serving(create_app(settings_for(database, tokens_file=tokens.path))) as client:
        refused = await run(client, "submit", path)
        assert (refused.exit_code, "401" in refused.stderr) == (2, True)
        assert (await run(client, "submit", path, CPE_TOKEN=token)).exit_code == 0
        assert (await run(client, "submit", path, CPE_TOKEN_FILE=str(tmp_path / "token"))).exit_code == 0
        assert (await run(client, "submit", path, CPE_TOKEN_FILE=str(tmp_path / "nowhere"))).exit_code == 2


async def test_nobody_there(client: Client) -> None:
    result = await run(client, "status", "1", CPE_URL=f"http://127.0.0.1:{free_port()}")
    assert (result.exit_code, "no answer" in result.stderr) == (2, True)
