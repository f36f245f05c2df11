"""The configurator's process: its consumers, and health and metrics for its watchers."""

from collections.abc import AsyncIterator
from functools import partial

from aiohttp import web

from configurator.consumers import Consumers
from configurator.keys import PAUSE_SECONDS, Keys
from configurator.service_a import PROBE_SECONDS, ServiceA
from configurator.settings import Settings
from messaging.session import Session
from runtime.background import Endless, Loop, running
from runtime.health import add_health_routes
from runtime.tls import Reloading, client_context

SETTINGS = web.AppKey("SETTINGS", Settings)
SESSION = web.AppKey("SESSION", Session)
SERVICE_A = web.AppKey("SERVICE_A", ServiceA)
KEYS = web.AppKey("KEYS", Keys)
CONSUMERS = web.AppKey("CONSUMERS", Consumers)


def create_app(
    settings: Settings, probe_seconds: float = PROBE_SECONDS, pause_seconds: float = PAUSE_SECONDS
) -> web.Application:
    """Wire the configurator. It looks for service A so often, and for a key after such a pause."""
    app = web.Application()
    app[SETTINGS] = settings
    keys = app[KEYS] = Keys(settings.seal_key_files, pause_seconds=pause_seconds)
    app.cleanup_ctx.append(partial(_consumers, probe_seconds=probe_seconds))

    async def broker() -> str | None:
        return app[SESSION].unready

    async def service_a() -> str | None:
        return app[SERVICE_A].unready

    async def leases() -> str | None:
        return app[CONSUMERS].unready

    async def seals() -> str | None:
        return keys.unready

    add_health_routes(app, broker, service_a, leases, seals)
    return app


async def _consumers(app: web.Application, probe_seconds: float) -> AsyncIterator[None]:
    """Consume until the process stops; what has begun is finished, up to the grace period."""
    settings = app[SETTINGS]
    files = settings.service_a_files
    tls = Reloading(client_context, files) if files else None
    async with (
        Session(settings, "configurator") as session,
        ServiceA(settings.service_a_url, tls, probe_seconds=probe_seconds) as service_a,
    ):
        app[SESSION] = session
        app[SERVICE_A] = service_a
        app[CONSUMERS] = consumers = Consumers(session, service_a, app[KEYS], settings)
        loops: dict[str, Loop] = {"consumers": consumers}
        if tls:
            loops["tls"] = Endless(tls.watch)
        async with running(loops, stop_seconds=settings.shutdown_grace_seconds):
            yield
