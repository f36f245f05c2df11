"""A results process for tests: a real HTTP server that grants leases, and misbehaves on demand.

It keeps the law of the leases: an attempt belongs to the first lease that it was granted to, and to no other.
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from tests.proxy import reset as reset_connection
from tests.system.spawning import free_port

Attempt = tuple[str, int]
"""A task's id and the number of the attempt at it."""
Reaction = Callable[["FakeResults", web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One lease that was asked for."""

    task_id: str
    attempt: int
    lease: str


def decide(granted: bool | None = True) -> Reaction:
    """Grant by the law, or refuse all attempts, or leave all undecided."""

    async def react(fake: "FakeResults", request: web.Request) -> web.StreamResponse:
        asked = await fake.note(request)
        return web.json_response({"granted": [fake.grant(each) if granted else granted for each in asked]})

    return react


def grant_and_reset() -> Reaction:
    """Grant, and lose the answer on its way."""

    async def react(fake: "FakeResults", request: web.Request) -> web.StreamResponse:
        for asked in await fake.note(request):
            fake.grant(asked)
        return _reset(request)

    return react


def reset() -> Reaction:
    """Reset the connection after the request has been read."""

    async def react(fake: "FakeResults", request: web.Request) -> web.StreamResponse:
        await fake.note(request)
        return _reset(request)

    return react


def say(status: int, body: str = "") -> Reaction:
    """Answer with these words."""

    async def react(fake: "FakeResults", request: web.Request) -> web.StreamResponse:
        await fake.note(request)
        return web.Response(status=status, text=body, content_type="application/json")

    return react


def held(until: asyncio.Event, then: Reaction = decide()) -> Reaction:  # noqa: B008 - it keeps nothing.
    """React only when the test lets go."""

    async def react(fake: "FakeResults", request: web.Request) -> web.StreamResponse:
        await until.wait()
        return await then(fake, request)

    return react


@dataclass
class FakeResults:
    """The server, and what it was asked. `script` is used up request by request; then `default` reacts."""

    default: Reaction = field(default_factory=decide)
    script: deque[Reaction] = field(default_factory=deque)
    asked: list[Asked] = field(default_factory=list)
    granted: dict[Attempt, str] = field(default_factory=dict)
    requests: int = 0
    port: int = field(default_factory=free_port)
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def grant(self, asked: Asked) -> bool:
        """Tell whether an attempt may begin under a lease: under the first one that asks, and no other."""
        return self.granted.setdefault((asked.task_id, asked.attempt), asked.lease) == asked.lease

    async def note(self, request: web.Request) -> list[Asked]:
        """Read a request and remember what it asks for."""
        assert request.content_type == "application/json"
        body: Any = json.loads(await request.read())
        asked = [Asked(each["taskId"], each["attempt"], each["lease"]) for each in body["attempts"]]
        self.asked += asked
        return asked

    async def start(self) -> None:
        """Listen; after a stop, on the same port again."""
        app = web.Application()
        app.router.add_post("/leases", self._react)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()

    async def stop(self) -> None:
        """Refuse connections and break those that are open."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def _react(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        react = self.script.popleft() if self.script else self.default
        return await react(self, request)


def _reset(request: web.Request) -> web.StreamResponse:
    if request.transport:
        reset_connection(request.transport)
    return web.Response()
