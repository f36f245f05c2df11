"""Requests that go on: lines that come one by one, and answers that are sent while they come.

    client ──▶ kernel ──▶ read ──▶ at work (slots of the process) ──▶ in order (window) ──▶ written ──▶ client

Nothing in this row grows: whoever does not read the answers, or sends quicker than lines can be worked on, is not read
from any more, and TCP tells the rest. So a stream may be as long as it likes.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from enum import Enum
from typing import Any

from aiohttp import StreamReader, hdrs, web
from aiohttp.http_exceptions import PayloadEncodingError
from typing_extensions import override

from runtime.background import until
from runtime.connections import OWES

Line = bytes | None
"""None stands for one that is too long."""
Work = Callable[[int, Sequence[Line]], Coroutine[Any, Any, bytes]]
"""Gets the number of the first line (from 1 on) and the lines, returns what is answered to them."""

BATCH = 100
WINDOW = 10
"""So many batches may be under way in one stream, until they are written."""


class End(Enum):
    """How a stream of lines came to its end."""

    COMPLETE = "complete"
    SILENT = "silent"
    """Nothing came for too long."""
    BROKEN = "broken"
    """The client has gone, or breaks its own framing."""
    STOPPED = "stopped"
    """We are to stop. What came and is not answered was not worked on."""


class LineAnswer(web.StreamResponse):
    """An answer in lines. It does not name the server's software, as aiohttp does by itself."""

    @override
    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.pop(hdrs.SERVER, None)


class LineStream:
    """The lines of one request, worked on by the batch, several at a time, and answered in their order.

    `slots` are shared by all streams of the process. `stopping` ends the reading; what is at work is answered.
    """

    def __init__(
        self,
        request: web.Request,
        work: Work,
        *,
        slots: asyncio.Semaphore,
        stopping: asyncio.Event,
        max_line_bytes: int,
        silence_seconds: float,
    ) -> None:
        self._request = request
        self._work = work
        self._slots = slots
        self._stopping = stopping
        self._max_line_bytes = max_line_bytes
        self._silence_seconds = silence_seconds
        # What is at work or has to be written, in order; None behind the last.
        self._working: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        self._window = asyncio.Semaphore(WINDOW)
        # How many lines have been taken.
        self.taken = 0

    async def run(self, answer: web.StreamResponse) -> End:
        """Answer line by line to the end. Raises `ConnectionError` when the client has gone: nobody can be told."""
        reading = asyncio.create_task(self._read())
        try:
            while (working := await self._working.get()) is not None:
                if words := await working:
                    await answer.write(words)
                self._window.release()
                self._request[OWES] = not self._working.empty()
            return await reading
        finally:
            reading.cancel()
            # What has not begun is not done for nobody.
            left = []
            while not self._working.empty():
                if working := self._working.get_nowait():
                    working.cancel()
                    left.append(working)
            await asyncio.gather(reading, *left, return_exceptions=True)

    async def _read(self) -> End:
        try:
            return await until(self._stopping, self._take_all()) or End.STOPPED
        finally:
            self._working.put_nowait(None)

    async def _take_all(self) -> End:
        try:
            async with aclosing(
                read_lines(self._request.content, self._max_line_bytes, self._silence_seconds)
            ) as all_lines:
                async for lines in all_lines:
                    for start in range(0, len(lines), BATCH):
                        await self._take(lines[start : start + BATCH])
        except TimeoutError:
            return End.SILENT
        except (OSError, PayloadEncodingError, web.RequestPayloadError):
            return End.BROKEN
        return End.COMPLETE

    async def _take(self, lines: Sequence[Line]) -> None:
        await self._window.acquire()
        await self._slots.acquire()
        # From here on nothing is awaited: what is taken is answered, though we be told to stop.
        working = asyncio.create_task(self._work(self.taken + 1, lines))
        working.add_done_callback(lambda _: self._slots.release())
        self._working.put_nowait(working)
        self.taken += len(lines)
        self._request[OWES] = True


async def read_lines(content: StreamReader, max_bytes: int, silence_seconds: float) -> AsyncGenerator[list[Line], None]:
    """Read lines as they come, without what ends them.

    Raises `TimeoutError` when nothing comes for so long, and what aiohttp raises of a body that breaks off.
    """
    rest, is_too_long = b"", False
    while True:
        async with asyncio.timeout(silence_seconds):
            piece = await content.readany()
        if not piece:
            break
        *ended, rest = (rest + piece).split(b"\n")
        lines: list[Line] = [line if len(line) <= max_bytes else None for line in ended]
        if lines and is_too_long:
            lines[0], is_too_long = None, False
        if len(rest) > max_bytes:
            rest, is_too_long = b"", True
        if lines:
            yield lines
    if rest or is_too_long:
        yield [None if is_too_long else rest]
