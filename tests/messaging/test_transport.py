"""Writing past aiormq, on either event loop: what is given up does not go out."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from yarl import URL

from messaging.transport import Transport
from tests.conftest import DEADLINE_SECONDS

MUCH = 64 << 20
"""More bytes than the kernel's buffers hold."""

Scenario = Callable[[Transport, asyncio.StreamReader], Awaitable[None]]


async def _read_all(reader: asyncio.StreamReader, read: list[int]) -> None:
    while piece := await reader.read(1 << 20):
        read.append(len(piece))


async def _connected(scenario: Scenario) -> None:
    """Run a scenario with a transport, and with the end of a broker that reads nothing by itself."""
    # Python 3.13 closes a connection whose writer nobody keeps.
    arrived: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
    arrived = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set_result((reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=1 << 16)
    transport = Transport(33)
    await transport.create(URL.build(scheme="amqp", host="127.0.0.1", port=server.sockets[0].getsockname()[1]))
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            reader, writer = await arrived
            await scenario(transport, reader)
            writer.close()
    finally:
        transport.abort()
        server.close()


@pytest.fixture(params=[asyncio.run, uvloop.run])
def run(request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    """Run a scenario on an event loop: Python's own, or the one of production."""
    return lambda scenario: request.param(_connected(scenario))


def test_what_is_aborted_is_not_sent(run: Callable[[Scenario], None]) -> None:
    async def scenario(transport: Transport, broker: asyncio.StreamReader) -> None:
        assert transport.write(bytes(MUCH))
        transport.abort()
        read: list[int] = []
        with pytest.raises(ConnectionResetError):
            await _read_all(broker, read)
        assert sum(read) < MUCH
        assert not transport.write(b"frame")
        transport.abort()

    run(scenario)


def test_a_buffer_that_does_not_empty_is_full(run: Callable[[Scenario], None]) -> None:
    async def scenario(transport: Transport, broker: asyncio.StreamReader) -> None:
        assert not transport.is_full
        transport.write(bytes(MUCH))
        full = transport.is_full
        read = 0
        while read < MUCH:
            read += len(await broker.read(1 << 20))
        assert (full, transport.is_full) == (True, False)

    run(scenario)


def test_the_kernel_gives_up_as_early_as_we_do(run: Callable[[Scenario], None]) -> None:
    async def scenario(transport: Transport, broker: asyncio.StreamReader) -> None:
        assert transport._writer
        there = transport._writer.get_extra_info("socket")
        assert there.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 33_000

    run(scenario)


async def test_nothing_is_written_before_a_connection_is_there() -> None:
    transport = Transport(33)
    transport.abort()
    assert not transport.is_full
    assert not transport.write(b"frame")
