"""A file of tasks, while the web process that takes it is killed, and stopped, and started again."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, Self

import aiohttp
from typing_extensions import override

from service_b.client import sheets, submitting
from service_b.client.service import Service
from tests.e2e.conftest import GUARDS, Fleet, in_thread

COUNT = 5000


class Counting(Service):
    """Counts its requests; and knows of the guards that the system may have on."""

    sent = 0

    @override
    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=GUARDS.client() or True)
        self._session = aiohttp.ClientSession(self._url, connector=connector, headers=GUARDS.headers)
        return self

    @override
    async def submit(self, lines: Sequence[bytes]) -> AsyncGenerator[tuple[int, dict[str, Any]], None]:
        self.sent += 1
        async for told in super().submit(lines):
            yield told


async def test_each_line_is_one_task_though_the_web_process_is_killed_and_stopped(fleet: Fleet, tmp_path: Path) -> None:
    [web] = await fleet.start("service_b")
    sheet = tmp_path / "devices.csv"
    lines = "".join(f"DEVICE{number:04},14,admin,admin,1 2\n" for number in range(COUNT))
    sheet.write_text("equipmentId,timeoutInSeconds,username,password,interfaces\n" + lines)
    accepted = 0
    stopping = list[asyncio.Task[None]]()

    async def stop() -> None:
        assert await in_thread(web.terminate) == 0
        web.start(wait=False)

    def advance() -> None:
        nonlocal accepted
        accepted += 1
        if accepted == COUNT // 4:
            web.kill()
            web.start(wait=False)
        elif accepted == COUNT // 2:
            stopping.append(asyncio.create_task(stop()))

    async with Counting(web.url, None) as service:
        outcomes = await submitting.submit(service, sheets.read(sheet), advance, pauses=[0.2] * 300)
    await asyncio.gather(*stopping)
    assert [outcome.state for outcome in outcomes] == ["accepted"] * COUNT
    assert service.sent > 2
    assert await fleet.sql.fetchval("SELECT count(*) FROM task WHERE bulk") == COUNT
    assert await fleet.sql.fetchval("SELECT count(DISTINCT equipment_id) FROM task") == COUNT
