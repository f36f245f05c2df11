"""`python -m tests.chaos.service_a`: a service A in a process of its own, which records its calls in the history.

Like the real one it goes on working on a device after its caller has gone.
"""

import argparse
import asyncio
import itertools
import random
from pathlib import Path
from typing import Literal
from zlib import crc32

import uvloop
from aiohttp import web
from typing_extensions import override

from tests.chaos.history import History
from tests.fake_a import FakeA, reset

Mode = Literal["answer", "reset", "hang", "garbage", "late", "gateway", "compressed", "drop"]

GARBAGE = ("", "<html>", "null", "[]", '{"code":"200"}', '{"code":201}', "\x00\xff", '{"code":200', "200")

SLOW = "SLOW"
"""Devices whose serial begins so take about a second, long enough to do something to a running call."""


def work_seconds(serial: str) -> float:
    """How long A works on a device."""
    chance = crc32(serial.encode()) % 1000 / 1000
    return 0.8 + 0.4 * chance if serial.startswith(SLOW) else 0.02 + 0.25 * chance


def code(serial: str) -> int:
    """What A says in the end: mostly 200."""
    return {0: 404, 1: 500}.get(crc32(serial[::-1].encode()) % 40, 200)


def bad_gateway() -> web.Response:
    """What a proxy before A says when it has not reached A, or has not waited for it."""
    return web.Response(status=502, text="<html><h1>502 Bad Gateway</h1></html>", content_type="text/html")


class RecordedA(FakeA):
    """A fake A that writes the begin and the end of its work on each call to the history.

    `mode` is what a share of the calls gets; the rest is answered. `limit` is our callers' time limit in seconds.
    """

    def __init__(self, history: History, host: str, port: int, limit: float) -> None:
        super().__init__()
        self.host = host
        self.port = port
        self.mode: Mode = "answer"
        self.share = 0.0
        self._history = history
        self._limit = limit
        self._numbers = itertools.count()

    @property
    def listens(self) -> bool:
        """Whether it takes connections."""
        return self._runner is not None

    @override
    async def _configure(self, request: web.Request) -> web.StreamResponse:
        mode: Mode = self.mode if random.random() < self.share else "answer"
        if mode == "gateway" and random.random() < 0.5:
            return bad_gateway()
        await request.read()  # Without its body it is no request.
        number = next(self._numbers)
        serial = request.match_info["id"]
        self._history.write(
            "a.begin",
            call=number,
            device=serial,
            task=request.headers["Idempotency-Key"],
            attempt=int(request.headers["X-Attempt"]),
            sent=float(request.headers["X-Sent"]),
            until=float(request.headers["X-Until"]) if "X-Until" in request.headers else None,
        )
        return await self._wait_for(self._work(request, serial, number, mode))

    async def _work(self, request: web.Request, serial: str, number: int, mode: Mode) -> web.StreamResponse:
        match mode:
            case "hang":
                await asyncio.sleep(3 * self._limit)
            case "drop":
                # The caller has gone; the work goes on.
                await reset()(self, request)
                await asyncio.sleep(random.uniform(0.5, self._limit - 0.5))
            case "late":
                await asyncio.sleep(self._limit + random.uniform(0.1, 1))
            case _:
                await asyncio.sleep(work_seconds(serial))
        says = code(serial) if mode in ("answer", "late", "compressed") else None
        self._history.write("a.end", call=number, code=says)
        if says:
            response = web.json_response({"code": says, "message": "recorded"}, status=says)
            if mode == "compressed":
                response.enable_compression(web.ContentCoding.gzip)
            return response
        if mode == "drop":
            return web.Response()
        if mode == "gateway":
            return bad_gateway()
        if mode == "garbage":
            return web.Response(status=random.choice((200, 200, 500, 404)), text=random.choice(GARBAGE))
        return await reset()(self, request)


async def serve(fake: RecordedA, host: str, port: int) -> None:
    """Play A until killed; `POST /` with a mode and a share changes what it does."""

    async def change(request: web.Request) -> web.Response:
        wanted = await request.json()
        fake.share = wanted["share"]
        if wanted["mode"] == "refuse":
            await fake.stop()
            return web.Response()
        fake.mode = wanted["mode"]
        if not fake.listens:
            await fake.start()
        return web.Response()

    await fake.start()
    app = web.Application()
    app.router.add_post("/", change)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port, reuse_address=True).start()
    await asyncio.Event().wait()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--control-port", type=int, required=True)
    parser.add_argument("--limit", type=float, required=True)
    given = parser.parse_args()
    with History(given.history) as history:
        uvloop.run(serve(RecordedA(history, given.host, given.port, given.limit), given.host, given.control_port))


if __name__ == "__main__":
    main()
