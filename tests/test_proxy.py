"""The bad network is itself put to the test: a proxy that forwards in a black hole would prove nothing."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
import uvloop

from tests.conftest import eventually
from tests.proxy import Proxy, reset


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1024):
            writer.write(data.upper())
        writer.write(b".")
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy before a server that says everything back in capitals, and a full stop at the end."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    async with server, Proxy("127.0.0.1", server.sockets[0].getsockname()[1]) as made:
        yield made


async def _connect(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.url_port)


async def test_both_directions_and_the_end_of_each_are_forwarded(proxy: Proxy) -> None:
    reader, writer = await _connect(proxy)
    writer.write(b"word")
    assert await reader.readexactly(4) == b"WORD"
    writer.write_eof()
    assert await reader.read() == b"."
    writer.close()
    await eventually(lambda: proxy.connections == 0)


async def test_a_black_hole_is_silent_and_gives_everything_back_when_it_is_lifted(proxy: Proxy) -> None:
    reader, writer = await _connect(proxy)
    writer.write(b"a")
    assert await reader.readexactly(1) == b"A"
    proxy.blackhole(True)
    writer.write(b"b")
    late_reader, late_writer = await _connect(proxy)
    late_writer.write(b"c")
    answer = asyncio.create_task(reader.readexactly(1))
    arrived, _ = await asyncio.wait({answer}, timeout=0.2)
    assert not arrived
    proxy.blackhole(False)
    assert await answer == b"B"
    assert await late_reader.readexactly(1) == b"C"
    writer.close()
    late_writer.close()


async def test_a_cut_breaks_connections_and_loses_what_the_black_hole_held(proxy: Proxy) -> None:
    reader, writer = await _connect(proxy)
    proxy.blackhole(True)
    writer.write(b"lost")
    proxy.cut()
    proxy.blackhole(False)
    with suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    again, writer = await _connect(proxy)
    writer.write(b"kept")
    assert await again.readexactly(4) == b"KEPT"
    writer.close()


async def test_a_reset_goes_through(proxy: Proxy) -> None:
    reader, writer = await _connect(proxy)
    writer.write(b"a")
    assert await reader.readexactly(1) == b"A"
    reset(writer.transport)
    await eventually(lambda: proxy.connections == 0)


@pytest.mark.parametrize("held", ["in a black hole", "by a delay", "before it is connected"])
@pytest.mark.parametrize("taken_back", [True, False])
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_is_held_arrives_after_an_end_but_not_after_a_reset(
    held: str, taken_back: bool, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(hold(held, taken_back))


async def hold(held: str, taken_back: bool) -> None:
    ended: asyncio.Future[bytes | str] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            ended.set_result(await reader.read())
        except ConnectionResetError:
            ended.set_result("reset")
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with server, Proxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        if held == "before it is connected":
            proxy.blackhole(True)
        _, writer = await _connect(proxy)
        await eventually(lambda: proxy.connections == 1)
        proxy.blackhole(held != "by a delay")
        proxy.delay(0.3 if held == "by a delay" else 0)
        writer.write(b"sent")
        if taken_back:
            reset(writer.transport)
            if held == "before it is connected":
                await eventually(lambda: all(side.is_closing() for side in proxy._writers))
            else:
                await eventually(lambda: proxy.resets == 1)
        else:
            writer.close()
        proxy.blackhole(False)
        assert await ended == ("reset" if taken_back else b"sent")


async def test_a_black_hole_tells_nobody_of_a_reset_before_it_is_lifted(proxy: Proxy) -> None:
    reader, writer = await _connect(proxy)
    writer.write(b"a")
    assert await reader.readexactly(1) == b"A"
    proxy.blackhole(True)
    reset(writer.transport)
    await eventually(lambda: proxy.resets == 1)
    assert proxy.connections == 1
    proxy.blackhole(False)
    await eventually(lambda: proxy.connections == 0)


async def test_a_delay_is_added_to_each_direction(proxy: Proxy) -> None:
    reader, writer = await _connect(proxy)
    proxy.delay(0.1)
    began = time.monotonic()
    for _ in range(1000):
        writer.write(b"a")
        await asyncio.sleep(0)
    assert await reader.readexactly(1000) == b"A" * 1000
    assert 0.2 <= time.monotonic() - began < 90, "latency, not a lower speed"
    writer.close()


async def test_a_stopped_proxy_refuses_and_is_started_again_on_its_port(proxy: Proxy) -> None:
    port = proxy.url_port
    await proxy.stop()
    with pytest.raises(ConnectionRefusedError):
        await _connect(proxy)
    await proxy.start()
    assert proxy.url_port == port
    _, writer = await _connect(proxy)
    writer.close()


async def test_a_slow_line_carries_so_much_a_second_until_it_is_mended(proxy: Proxy) -> None:
    reader, writer = await _connect(proxy)
    proxy.throttle(1000)
    began = time.monotonic()
    writer.write(b"a" * 300)
    assert await reader.readexactly(300) == b"A" * 300
    assert time.monotonic() - began > 0.25
    writer.write(b"b" * 20_000)
    assert await reader.readexactly(100) == b"B" * 100
    proxy.throttle()
    assert await reader.readexactly(19_900) == b"B" * 19_900
    writer.close()
