"""The routes by which an orchestrator and Prometheus watch a process."""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

Check = Callable[[], Awaitable[str | None]]
"""Answers None when all is well, otherwise one phrase that says what is missing."""

CHECK_TIMEOUT_SECONDS = 3.0


def add_health_routes(app: web.Application, *checks: Check) -> None:
    """Serve `/health/live`, `/health/ready` and `/metrics`.

    Ready answers 200 `{"status": "ready"}`, or 503 `{"status": "not ready", "missing": [...]}`.
    """

    async def live(request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def ready(request: web.Request) -> web.Response:
        missing = [phrase for phrase in await asyncio.gather(*map(_run, checks)) if phrase]
        if missing:
            return web.json_response({"status": "not ready", "missing": missing}, status=503)
        return web.json_response({"status": "ready"})

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.add_get("/health/live", live)
    app.router.add_get("/health/ready", ready)
    app.router.add_get("/metrics", metrics)


async def _run(check: Check) -> str | None:
    checking = asyncio.ensure_future(check())
    await asyncio.wait({checking}, timeout=CHECK_TIMEOUT_SECONDS)
    if checking.done():
        return checking.result()
    checking.cancel()  # Not waited for: giving a connection back may take as long as the check.
    return "a check did not end in time"
