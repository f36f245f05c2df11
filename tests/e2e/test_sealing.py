"""Sealing, from the client to service A: keys change while work goes on; what was tampered with ends as an error."""

import asyncio
from pathlib import Path

import asyncpg

from tests.conftest import eventually
from tests.e2e.conftest import BODY, Fleet, held, in_thread, serials
from tests.seals import KeyPair, make_keys
from tests.system.processes import Process

LONG = {"SERVICE_A_GRACE_SECONDS": "120"}
"""No call ends by its limit while the test holds it."""


async def needed_keys(fleet: Fleet, webs: list[Process], *ids: str) -> list[float]:
    """How many tasks need each of these keys, by the process that counts them."""
    return [sum([await fleet.metric(web, "tasks_sealed", key=each) or 0 for web in webs]) for each in ids]


async def test_keys_are_changed_with_300_tasks_in_flight_and_nothing_is_lost(fleet: Fleet, tmp_path: Path) -> None:
    old, new = make_keys(tmp_path / "old"), make_keys(tmp_path / "new")
    current = KeyPair(tmp_path / "seal.key", tmp_path / "seal.pub")
    public, private = current.public, current.private
    public.write_bytes(old.public.read_bytes())
    private.write_bytes(old.private.read_bytes())
    gate = asyncio.Event()
    fleet.fake_a.default = held(gate)
    await fleet.start("service_b.results")
    [configurator] = await fleet.start("configurator", SEAL_KEY_FILE=f"{private},{old.private}", CONCURRENCY="100")
    webs = await fleet.start("service_b", **current.sealing, **LONG)
    paths = await fleet.submit(webs[0], serials(150, "FORMER"))
    await fleet.calls(100)

    # The wrong order: sealed for a key that no configurator has.
    public.write_bytes(new.public.read_bytes())
    webs += await fleet.start("service_b", **current.sealing, **LONG)
    paths += await fleet.submit(webs[1], serials(150, "LATER"))

    async def counted() -> bool:
        return await needed_keys(fleet, webs, old.id, new.id) == [150, 150]

    await eventually(counted)
    gate.set()
    await eventually(lambda: in_thread(configurator.missing), every=0.2)
    assert configurator.missing() == [f"SEAL_KEY_FILE: no key {new.id}, which tasks are sealed for"]
    assert await fleet.codes(webs[0], paths[:150]) == [200] * 150
    assert {work.equipment_id[:6] for work in fleet.fake_a.ledger} == {"FORMER"}

    # The key comes; then a configurator that never had the old one.
    private.write_bytes(new.private.read_bytes())
    await eventually(lambda: in_thread(configurator.is_ready), every=0.2)
    await in_thread(configurator.terminate)
    await fleet.start("configurator", SEAL_KEY_FILE=str(private))
    assert await fleet.final_codes(webs[1], paths) == [200] * 300
    assert len(fleet.fake_a.ledger) == 300
    assert all(work.body["parameters"] == BODY["parameters"] for work in fleet.fake_a.ledger)

    async def counted_again() -> bool:
        return await needed_keys(fleet, webs, old.id, new.id) == [0, 0]

    await eventually(counted_again)


async def test_what_was_sealed_for_another_task_ends_as_an_error(
    fleet: Fleet, tmp_path: Path, sql: asyncpg.Connection
) -> None:
    keys, gate = make_keys(tmp_path), asyncio.Event()
    fleet.fake_a.default = held(gate)
    await fleet.start("service_b.results")
    [configurator] = await fleet.start("configurator", SEAL_KEY_FILE=str(keys.private))
    [web] = await fleet.start("service_b", **keys.sealing, **LONG)
    [first] = await fleet.submit(web, ["DEVICE1"])
    await fleet.calls(1)
    [second] = await fleet.submit(web, ["DEVICE1"])
    await sql.execute("UPDATE task SET parameters = (SELECT parameters FROM task WHERE active) WHERE NOT active")
    gate.set()
    assert await fleet.final_codes(web, [first, second]) == [200, 500]
    [row] = await sql.fetch("SELECT id, reason, attempt FROM finished WHERE code = 500")
    assert row["reason"] == "the parameters were sealed for another task, or tampered with"
    assert row["attempt"] == 1
    [line] = [line for line in configurator.log_file.read_text().splitlines() if "call.unopened" in line]
    assert str(row["id"]) in line
    assert len(fleet.fake_a.ledger) == 1
