"""A service A for tests: a real HTTP server that records its calls and misbehaves on demand.

Like the real one it goes on working on a device after its caller has gone.
"""

import asyncio
import socket
import ssl
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

from aiohttp import web

from tests.proxy import reset as reset_connection
from tests.system.spawning import free_port


@dataclass(eq=False)
class Work:
    """One call, as A saw it, in `time.monotonic()` seconds; `ended` is None while A works on the device."""

    equipment_id: str
    task_id: str
    attempt: int
    body: Any
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None


Behaviour = Callable[["FakeA", web.Request], Awaitable[web.StreamResponse]]


def answer(
    status: int = 200, body: str | None = None, *, delay: float = 0, headers: Mapping[str, str] | None = None
) -> Behaviour:
    """Answer with A's own JSON, or with `body`, after `delay` seconds besides A's own."""

    async def behave(fake: "FakeA", request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(fake.delay + delay)
        text = f'{{"code":{status},"message":"as told"}}' if body is None else body
        return web.Response(status=status, text=text, content_type="application/json", headers=headers)

    return behave


def reset() -> Behaviour:
    """Reset the connection after the request has been read."""

    async def behave(fake: "FakeA", request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(fake.delay)
        transport = request.transport
        if transport is None:  # The caller has gone already.
            return web.Response()
        reset_connection(transport)
        return web.Response()

    return behave


def silence(seconds: float = 3600) -> Behaviour:
    """Work for so long, and answer only then."""
    return answer(delay=seconds)


class FakeA:
    """The server, its ledger of calls, and what each device's next calls get.

    `script[serial]` is used up call by call; then `default` answers. `delay`: how long A works on every call.
    `listening`: a socket to be used once, instead of a free port of this host. `tls`: what it speaks.
    """

    def __init__(
        self, delay: float = 0, listening: socket.socket | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.delay = delay
        self.tls = tls
        self.default = answer()
        self.script: defaultdict[str, deque[Behaviour]] = defaultdict(deque)
        self.ledger: list[Work] = []
        self.host = "127.0.0.1"
        self.port = free_port()
        self._listening = listening
        self._runner: web.AppRunner | None = None
        self._working: set[asyncio.Task[web.StreamResponse]] = set()
        self._waiting: set[asyncio.Future[web.StreamResponse]] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; after a stop, on the same port again."""
        app = web.Application()
        app.router.add_post("/api/v1/equipment/cpe/{id}", self._configure)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        if self._listening:
            await web.SockSite(self._runner, self._listening).start()
        else:
            site = web.TCPSite(
                self._runner, self.host, self.port, backlog=4096, reuse_address=True, ssl_context=self.tls
            )
            await site.start()

    async def stop(self) -> None:
        """Refuse connections and break those that are open; the work on the devices goes on."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        for site in list(runner.sites):
            await site.stop()
        # Not by a limit of aiohttp's: a call that ends just when that has passed is logged as a bug (3.14).
        for connection in runner.server.connections if runner.server else ():
            if connection.transport:
                connection.transport.abort()
        for waiting in self._waiting:
            waiting.cancel()
        await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    def calls(self, equipment_id: str) -> list[Work]:
        """Tell the calls for one device, in order."""
        return [work for work in self.ledger if work.equipment_id == equipment_id]

    def overlapping(self) -> list[tuple[Work, Work]]:
        """List calls for one device of which the second began before the first had ended."""
        devices = defaultdict(list)
        for work in self.ledger:
            devices[work.equipment_id].append(work)
        return [
            (first, second)
            for works in devices.values()
            for first, second in pairwise(sorted(works, key=lambda work: work.started))
            if first.ended is None or second.started < first.ended
        ]

    async def _configure(self, request: web.Request) -> web.StreamResponse:
        assert request.content_type == "application/json"
        work = Work(
            request.match_info["id"],
            request.headers["Idempotency-Key"],
            int(request.headers["X-Attempt"]),
            await request.json(),
        )
        self.ledger.append(work)
        script = self.script[work.equipment_id]
        behave = script.popleft() if script else self.default

        async def work_on_it() -> web.StreamResponse:
            try:
                return await behave(self, request)
            finally:
                work.ended = time.monotonic()

        return await self._wait_for(work_on_it())

    async def _wait_for(self, work: Coroutine[Any, Any, web.StreamResponse]) -> web.StreamResponse:
        """Wait for what A says; its work goes on though the caller leaves, or A breaks off all calls (`stop`)."""
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        waiting = asyncio.shield(task)
        self._waiting.add(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            if self._runner:
                raise
            return web.Response()  # Nobody is there any more.
        finally:
            self._waiting.discard(waiting)
