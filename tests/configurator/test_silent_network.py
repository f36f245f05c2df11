"""A network that goes silent between the configurator and service A, and comes back: no given-up call reaches A."""

import socket
from collections.abc import Iterator
from functools import partial

import pytest
import uvloop

from configurator.service_a import ServiceA
from messaging.messages import OutcomeKind
from tests.configurator.calls import make_job
from tests.conftest import eventually
from tests.fake_a import FakeA
from tests.hosts import CannotMakeHostsError, Host, connections, two_hosts

PORT = 7777


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """The configurator's host and A's."""
    try:
        with two_hosts() as made:
            yield made
    except CannotMakeHostsError as error:
        pytest.skip(f"a silent network cannot be made here: {error}")


async def calls_around_a_silence(own: Host, limit: float, reach_seconds: float) -> str:
    """Call A, call it again while the network is silent, and once more afterwards; tell why the second call ended."""
    url = f"http://{own.peer}:{PORT}"
    async with ServiceA(url, reach_seconds=reach_seconds) as service_a:
        assert (await service_a.configure(make_job("BEFORE"))).kind is OutcomeKind.SUCCESS
        own.silence(True)
        outcome = await service_a.configure(make_job("MEANWHILE", limit=limit))
        own.silence(False)
        assert outcome.kind is OutcomeKind.UNKNOWN
        assert (await service_a.configure(make_job("AFTERWARDS"))).kind is OutcomeKind.SUCCESS
    await eventually(lambda: not connections(PORT))
    return outcome.reason


@pytest.mark.parametrize(
    ("limit", "reach_seconds", "reason"),
    [(0.5, 10, "no answer within the time limit"), (30, 0.5, "no answer: ClientOSError")],
    ids=["given up", "not acknowledged in time"],
)
async def test_what_a_silent_network_held_never_reaches_a(
    hosts: tuple[Host, Host], limit: float, reach_seconds: float, reason: str
) -> None:
    own, theirs = hosts
    listening = await theirs.run(lambda: socket.create_server((theirs.address, PORT)))
    async with FakeA(listening=listening) as fake_a:
        scenario = partial(calls_around_a_silence, own, limit, reach_seconds)
        assert await own.run(lambda: uvloop.run(scenario())) == reason
        assert [work.equipment_id for work in fake_a.ledger] == ["BEFORE", "AFTERWARDS"]
