"""Two clients of the whole system: the one with thousands of tasks does not hold up the other one's single task."""

import asyncio
from pathlib import Path

from aiohttp import web

from messaging.settings import BrokerSettings
from service_b.tokens import token
from service_b.tokens.file import write_line
from tests.e2e.conftest import BODY, PATH, open_fleet, serials
from tests.fake_a import FakeA, answer

SLOTS = 50


async def test_one_task_waits_for_a_free_slot_and_not_for_anothers_thousands(
    tmp_path: Path, broker: BrokerSettings, database_url: str, service_url: str, fake_a: FakeA
) -> None:
    """With tokens, and a token for the leases. It is behind what lies in the queue already, and nothing else."""
    bulk, single = token.make(), token.make()
    lines = [write_line(text, name, ["submit"], ["*"], None) for text, name in ((bulk, "bulk"), (single, "single"))]
    tokens_file = tmp_path / "tokens"
    tokens_file.write_text("\n".join(lines))
    may_end = asyncio.Semaphore(0)

    async def hold(fake: FakeA, request: web.Request) -> web.StreamResponse:
        await may_end.acquire()
        return await answer()(fake, request)

    fake_a.default = hold
    opened = open_fleet(
        tmp_path / "logs",
        broker,
        database_url,
        fake_a,
        DATABASE_URL=service_url,
        TOKENS_FILE=str(tokens_file),
        LEASE_TOKEN="s3cret",
        CONCURRENCY=str(SLOTS),
        SERVICE_A_GRACE_SECONDS="600",
        SHUTDOWN_GRACE_SECONDS="0",
    )
    async with opened as fleet:
        [service_b, *_] = await fleet.start("service_b", "service_b.results", "configurator")

        async def submit(serial: str, by: str) -> int:
            headers = {"Authorization": f"Bearer {by}"}
            async with fleet.client.post(f"{service_b.url}{PATH}/{serial}", json=BODY, headers=headers) as response:
                return response.status

        devices = serials(4000)
        for start in range(0, len(devices), 200):
            assert set(await asyncio.gather(*(submit(each, bulk) for each in devices[start : start + 200]))) == {200}
        await fleet.calls(SLOTS)
        assert await submit("SINGLE1", single) == 200
        for _ in range(SLOTS):
            may_end.release()
        await fleet.calls(2 * SLOTS)
        assert "SINGLE1" in [work.equipment_id for work in fake_a.ledger[: 2 * SLOTS]]
