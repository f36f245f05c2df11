"""Lines in, lines out, over real connections."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from runtime.connection import Connection
from runtime.connections import Claim
from runtime.streams import BATCH, End, Line, LineAnswer, LineStream
from tests.clients import Client, serving
from tests.conftest import eventually

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
SLOTS = 3


class App:
    """Answers each line by `work`, and remembers its streams and their ends."""

    def __init__(self, work: Callable[[Sequence[Line]], Awaitable[bytes]]) -> None:
        self.work = work
        self.slots, self.stopping = asyncio.Semaphore(SLOTS), asyncio.Event()
        self.streams: list[LineStream] = []
        self.ends: list[End | None] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        stream = LineStream(
            request,
            lambda _, lines: self._do(lines),
            slots=self.slots,
            stopping=self.stopping,
            max_line_bytes=2048,
            silence_seconds=60,
        )
        self.streams.append(stream)
        answer = LineAnswer()
        await answer.prepare(request)
        self.ends.append(None)
        try:
            self.ends[-1] = await stream.run(answer)
        except ConnectionError:
            self.ends[-1] = End.BROKEN
        return answer

    async def _do(self, lines: Sequence[Line]) -> bytes:
        return await self.work(lines)


@asynccontextmanager
async def at_work(
    work: Callable[[Sequence[Line]], Awaitable[bytes]],
) -> AsyncIterator[tuple[App, Client]]:
    app = App(work)
    application = web.Application()
    application.router.add_post("/", app.handle)
    async with serving(application) as client:
        yield app, client


async def connect(client: Client) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect with small buffers."""
    one = socket.socket()
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        one.setsockopt(socket.SOL_SOCKET, option, 65536)
    one.setblocking(False)
    await asyncio.get_running_loop().sock_connect(one, (client.host, client.port))
    return await asyncio.open_connection(sock=one, limit=65536)


async def read_until(reader: asyncio.StreamReader, end: bytes) -> bytes:
    """Read until something comes that ends so."""
    told = b""
    async with asyncio.timeout(60):
        while not told.endswith(end):
            piece = await reader.read(65536)
            assert piece, "closed"
            told += piece
    return told


async def test_who_does_not_read_the_answers_is_not_read_from() -> None:
    count = 80 * BATCH

    async def echo(lines: Sequence[Line]) -> bytes:
        return b"".join(line + b"\n" for line in lines if line)

    async with at_work(echo) as (app, client):
        reader, writer = await connect(client)
        lines = [b"%06d" % number + b" " * 1000 + b"\n" for number in range(count)]

        async def send() -> None:
            writer.write(HEAD % sum(map(len, lines)))
            for line in lines:
                writer.write(line)
                await writer.drain()

        sending = asyncio.create_task(send())
        await eventually(lambda: bool(app.streams) and app.streams[0]._window.locked())
        seen = [0, 0, 0]

        def stands_still() -> bool:
            seen.append(app.streams[0].taken)
            return len(set(seen[-3:])) == 1

        await eventually(stands_still)
        assert app.streams[0].taken < count // 2
        assert not sending.done()
        # What it gets then is all of it, in order.
        told, _ = await asyncio.gather(read_until(reader, b"0\r\n\r\n"), sending)
        assert [int(number) for number in re.findall(rb"(\d{6}) ", told)] == list(range(count))
        writer.close()
        await eventually(lambda: app.ends == [End.COMPLETE])


async def test_what_nobody_is_there_for_any_more_is_not_worked_on() -> None:
    may_answer = asyncio.Event()
    begun = []

    async def wait(lines: Sequence[Line]) -> bytes:
        begun.append(lines)
        await may_answer.wait()
        return b"ok\n"

    async with at_work(wait) as (app, client):
        _, writer = await connect(client)
        writer.write(HEAD % 1_000_000 + b"x\n" * 10 * SLOTS * BATCH)
        await eventually(lambda: len(begun) == SLOTS)
        writer.transport.abort()
        await eventually(lambda: app.streams[0]._request.transport is None)
        may_answer.set()
        await eventually(lambda: app.ends == [End.BROKEN])
        assert len(begun) < 3 * SLOTS
        assert app.slots._value == SLOTS


async def test_a_stream_that_is_owed_answers_does_not_give_way_and_one_that_says_nothing_does() -> None:
    may_answer = asyncio.Semaphore(0)

    async def wait(_: Sequence[Line]) -> bytes:
        await may_answer.acquire()
        return b"ok\n"

    async with at_work(wait) as (app, client):
        reader, writer = await connect(client)
        writer.write(HEAD % 10)

        def claim() -> Claim:
            connection = app.streams[0]._request.protocol
            assert isinstance(connection, Connection)
            return connection.claim(asyncio.get_running_loop().time() + 60)

        await eventually(lambda: bool(app.streams))
        for _ in range(2):
            assert claim() is Claim.NONE
            writer.write(b"x\n")
            await eventually(lambda: claim() is Claim.SERVED)
            may_answer.release()
            await read_until(reader, b"ok\n\r\n")
            await eventually(lambda: claim() is Claim.NONE)
        writer.close()


async def test_a_stop_answers_what_is_at_work() -> None:
    may_answer = asyncio.Event()

    async def wait(lines: Sequence[Line]) -> bytes:
        await may_answer.wait()
        return b"ok\n" * len(lines)

    async with at_work(wait) as (app, client):
        reader, writer = await connect(client)
        body = b"x\n" * 2 * SLOTS * BATCH
        writer.write(HEAD % len(body) + body)
        await eventually(lambda: bool(app.streams) and app.streams[0].taken == SLOTS * BATCH)
        app.stopping.set()
        may_answer.set()
        await eventually(lambda: app.ends == [End.STOPPED])
        told = await read_until(reader, b"0\r\n\r\n")
        assert told.count(b"ok\n") == app.streams[0].taken == SLOTS * BATCH
        writer.close()


@pytest.mark.parametrize("size", [1, 7, 4096, 100_000])
async def test_a_line_is_what_lies_between_two_ends_however_it_comes(size: int) -> None:
    async def lengths(lines: Sequence[Line]) -> bytes:
        return b"".join(b"-\n" if line is None else b"%d\n" % len(line) for line in lines)

    body = b"a\n\nbb\r\n" + b"c" * 2048 + b"\n" + b"d" * 2049 + b"\n" + b"e" * 10_000 + b"\nf"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    async with at_work(lengths) as (_, client), client.post("/", data=pieces()) as response:
        assert "Server" not in response.headers
        assert (await response.text()).splitlines() == ["1", "0", "3", "2048", "-", "-", "1"]
