"""Faults that heal when limits have passed: seen by clients and by the fake A's ledger."""

import asyncio
from functools import partial

import aiormq
import pytest

from tests.conftest import eventually
from tests.e2e.conftest import Errors, Fleet, Scenario, Stage, held, in_thread, raise_error, serials
from tests.queues import holds, patient


async def kill_a_configurator(fleet: Fleet) -> None:
    """Its devices are left alone until A, which works on, has let go of them."""
    killed = asyncio.Event()
    fake = fleet.fake_a
    fake.delay = 2
    for serial in serials(200):
        fake.script[serial].append(held(killed))
    fleet.environment["SERVICE_A_GRACE_SECONDS"] = "10"
    web, _, doomed, _ = await fleet.start(
        "service_b", "service_b.results", "configurator", "configurator", CONCURRENCY="100"
    )
    # Two for each device: neither may begin while A still works on the first for nobody.
    paths = await fleet.submit(web, serials(200) * 2)
    await fleet.calls(200)
    await in_thread(doomed.kill)
    killed.set()
    assert await fleet.final_codes(web, paths) == [200] * 400
    assert fake.overlapping() == []
    assert len(fake.ledger) == 500, "each of the 100 calls that it had in flight is made once more"


async def lose_messages(fleet: Fleet, *, delete: bool) -> None:
    """What is lost with a queue's messages is found missing and done again."""
    web, results, configurator = await fleet.start("service_b", "service_b.results", "configurator")
    connection = await aiormq.connect(patient(fleet.queues))
    channel = await connection.channel()
    # Whoever reads a queue is away, so that there is something to lose; no call begins without the results process.
    ending = asyncio.Event()
    fleet.fake_a.default = held(ending)
    paths = await fleet.submit(web, serials(30, "OUTCOME"))
    await fleet.calls(30)
    readers = {fleet.queues.configured_queue: results, fleet.queues.to_configure_queue: configurator}
    await in_thread(results.terminate)
    ending.set()
    await eventually(partial(holds, channel, fleet.queues.configured_queue, 30), every=0.1)
    await in_thread(configurator.terminate)
    paths += await fleet.submit(web, serials(30, "TASK"))
    await eventually(partial(holds, channel, fleet.queues.to_configure_queue, 30), every=0.1)
    for queue in readers:
        await (channel.queue_delete(queue) if delete else channel.queue_purge(queue))
    await connection.close()
    await asyncio.gather(*(in_thread(reader.start) for reader in readers.values()))
    assert await fleet.final_codes(web, paths) == [200] * 60
    assert fleet.fake_a.overlapping() == []
    assert len(fleet.fake_a.ledger) == 90, "only the calls whose outcomes were lost are made again"


HEALING: dict[str, Scenario] = {
    "a killed configurator": kill_a_configurator,
    "purged queues": partial(lose_messages, delete=False),
    "deleted queues": partial(lose_messages, delete=True),
}


@pytest.fixture(scope="module")
def healed(stage: Stage) -> Errors:
    """The faults that heal when limits have passed."""
    return stage.play(HEALING, at_once=len(HEALING), heartbeat=1)


@pytest.mark.parametrize("fault", HEALING)
def test_heals(healed: Errors, fault: str) -> None:
    raise_error(healed, fault)
