"""The results process: leases to the configurators, outcomes to the database, health and metrics to its watchers."""

from collections.abc import AsyncIterator
from functools import partial

import asyncpg
import structlog
from aiohttp import web

from messaging.session import Session
from runtime.background import Endless, Loop, running
from runtime.health import add_health_routes
from service_b.database import create_pool
from service_b.results.leases import Leases
from service_b.results.recorder import PAUSE_SECONDS, Recorder
from service_b.results.settings import Settings
from service_b.tasks import readiness
from service_b.tasks.clock import Clock

log = structlog.stdlib.get_logger(__name__)

STOP_SECONDS = 30.0

SETTINGS = web.AppKey("SETTINGS", Settings)
SESSION = web.AppKey("SESSION", Session)
POOL = web.AppKey("POOL", asyncpg.Pool)
LEASES = web.AppKey("LEASES", Leases)


def create_app(
    settings: Settings, *, pause_seconds: float = PAUSE_SECONDS, stop_seconds: float = STOP_SECONDS
) -> web.Application:
    """Wire the results process. It asks again after `pause_seconds`, and takes `stop_seconds` at most to stop."""
    app = web.Application()
    app[SETTINGS] = settings
    app.cleanup_ctx.append(partial(_recorder, pause_seconds=pause_seconds, stop_seconds=stop_seconds))

    async def storage() -> str | None:
        return await readiness.unready(app[POOL])

    async def broker() -> str | None:
        return app[SESSION].unready

    async def answer(request: web.Request) -> web.StreamResponse:
        return await app[LEASES].answer(request)

    add_health_routes(app, storage, broker)
    app.router.add_post("/leases", answer)
    return app


async def _recorder(app: web.Application, *, pause_seconds: float, stop_seconds: float) -> AsyncIterator[None]:
    """Record until the process stops; what was taken by then is recorded and acknowledged."""
    settings = app[SETTINGS]
    async with create_pool(settings) as pool, Session(settings, "service_b.results") as session:
        app[SESSION] = session
        app[POOL] = pool
        internal = Clock()
        leases = app[LEASES] = Leases(pool, internal, settings.lease_token)
        if settings.lease_token is None:
            log.warning("leases.open", reason="LEASE_TOKEN is not set: whoever reaches HEALTH_PORT may begin calls")
        if missing := await readiness.unready(pool):
            log.warning("results.not_ready", missing=missing)  # Nobody may ask before the first outcome comes.
        recorder = Recorder(session, pool, settings, internal, pause_seconds=pause_seconds)
        loops: dict[str, Loop] = {"recorder": recorder, "clock": Endless(partial(internal.follow, pool))}
        async with running(loops, stop_seconds=stop_seconds):
            yield
        await leases.close()
