"""The routes by which an orchestrator and Prometheus watch a process."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from runtime.answers import Answer

Check = Callable[[], Awaitable[str | None]]
"""Answers None when all is well, otherwise one phrase that says what is missing."""

T = TypeVar("T")

CHECK_TIMEOUT_SECONDS = 3.0
SHARED_SECONDS = 1.0
TURN_SECONDS = 0.002
"""At most 500 answers a second to all watchers together: some hundredths of what the event loop can do."""

WATCHED = web.AppKey("WATCHED", web.Application)
"""Of an app: the one with its health routes. Itself, or another that is served on a port of its own."""


class Shared(Generic[T]):
    """What is dear to find out and asked for by many: found out at most once in so many seconds, for all of them."""

    def __init__(self, find: Callable[[], Awaitable[T]], seconds: float = SHARED_SECONDS) -> None:
        self._find = find
        self._seconds = seconds
        self._begun = 0.0
        self._finding: asyncio.Future[T] | None = None

    async def get(self) -> T:
        """Tell what was found last, or wait for it together with all others who ask."""
        now = asyncio.get_running_loop().time()
        if self._finding is None or (self._finding.done() and now >= self._begun + self._seconds):
            self._begun = now
            self._finding = asyncio.ensure_future(self._find())
        return await asyncio.shield(self._finding)


class Turns:
    """Lets callers through one after the other, so many seconds apart: watchers without a pause cost little then."""

    def __init__(self, seconds: float = TURN_SECONDS) -> None:
        self._seconds = seconds
        self._next = 0.0

    async def wait(self) -> None:
        """Wait for one's turn."""
        now = asyncio.get_running_loop().time()
        turn = max(self._next, now)
        self._next = turn + self._seconds
        if turn > now:
            await asyncio.sleep(turn - now)


def add_health_routes(app: web.Application, *checks: Check, port: int | None = None) -> None:
    """Serve `/health/live`, `/health/ready` and `/metrics`, on a port of their own where the process has one for them.

    Ready answers 200 `{"status": "ready"}`, or 503 `{"status": "not ready", "missing": [...]}`.
    """

    async def run_checks() -> list[str]:
        return [phrase for phrase in await asyncio.gather(*map(_run, checks)) if phrase]

    async def render() -> bytes:
        return generate_latest()

    missing, rendered, turns = Shared(run_checks), Shared(render), Turns()

    async def live(request: web.Request) -> Answer:
        return Answer(200, b'{"status": "alive"}')

    async def ready(request: web.Request) -> Answer:
        await turns.wait()
        if phrases := await missing.get():
            return Answer(503, json.dumps({"status": "not ready", "missing": phrases}).encode())
        return Answer(200, b'{"status": "ready"}')

    async def metrics(request: web.Request) -> Answer:
        await turns.wait()
        return Answer(200, await rendered.get(), kind=CONTENT_TYPE_LATEST)

    watched = app[WATCHED] = app if port is None else web.Application()
    watched.router.add_get("/health/live", live)
    watched.router.add_get("/health/ready", ready)
    watched.router.add_get("/metrics", metrics)


async def _run(check: Check) -> str | None:
    checking = asyncio.ensure_future(check())
    await asyncio.wait({checking}, timeout=CHECK_TIMEOUT_SECONDS)
    if checking.done():
        return checking.result()
    checking.cancel()  # Not waited for: giving a connection back may take as long as the check.
    return "a check did not end in time"
