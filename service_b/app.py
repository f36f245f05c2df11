"""The web process: HTTP API, relay and reconciler."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import asyncpg
import structlog
from aiohttp import web
from prometheus_client import REGISTRY

from messaging.session import Session
from runtime.background import Endless, Loop, running
from runtime.health import add_health_routes
from runtime.serving import most_connections
from runtime.tls import Reloading
from service_b.acts import Acts
from service_b.api import bulk, docs, parts, reading, routes
from service_b.api.bulk import Bulk
from service_b.api.middleware import observing
from service_b.api.trail import Trail
from service_b.database import create_pool
from service_b.listings import Listings
from service_b.maintenance import keys, losses, partitions
from service_b.maintenance.backlog import BacklogMeter
from service_b.maintenance.reconciler import ROUND_SECONDS, Reconciler
from service_b.relay import POLL_SECONDS, Relay
from service_b.resources import Resources
from service_b.settings import Settings
from service_b.statuses import Statuses
from service_b.submission import Submission
from service_b.tasks import lookups, readiness
from service_b.tasks.clock import Clock
from service_b.tokens.file import LOOK_SECONDS, Tokens
from service_b.waits import LOOK_SECONDS as WAITS_LOOK_SECONDS
from service_b.waits import Waits
from service_b.wakeup import listen

log = structlog.stdlib.get_logger(__name__)

STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Periods:
    """How often the loops of the background look around, in seconds."""

    poll: float = POLL_SECONDS
    round: float = ROUND_SECONDS
    tokens: float = LOOK_SECONDS
    waits: float = WAITS_LOOK_SECONDS


SETTINGS = web.AppKey("SETTINGS", Settings)
PERIODS = web.AppKey("PERIODS", Periods)
POOL = web.AppKey("POOL", asyncpg.Pool)
WAKE = web.AppKey("WAKE", asyncio.Event)
INTERNAL = web.AppKey("INTERNAL", Clock)
TOKENS = web.AppKey("TOKENS", Tokens)


def create_app(settings: Settings, periods: Periods = Periods(), *, tls: Reloading | None = None) -> web.Application:
    """Wire the web process. `tls`: what its public port speaks, to be kept up to date."""
    trail = Trail() if settings.tokens_file else None
    app = web.Application(middlewares=[observing(trail)], client_max_size=reading.MAX_BODY_BYTES)
    app[SETTINGS] = settings
    app[PERIODS] = periods
    app[parts.APP_NAME] = settings.app_name
    app[parts.HORIZON] = timedelta(days=settings.retention_days / 2)
    app[WAKE] = asyncio.Event()
    app[INTERNAL] = Clock()
    app[bulk.BULK] = Bulk()
    app.on_shutdown.append(app[bulk.BULK].stop)
    if trail:
        app.on_cleanup.append(_writing(trail))
    app.on_shutdown.append(_answer_waiting)
    app.cleanup_ctx.extend([_storage, partial(_background, tls=tls)])
    if settings.tokens_file:
        app[TOKENS] = Tokens(settings.tokens_file, look_seconds=periods.tokens)
    else:
        log.warning("api.open", reason="TOKENS_FILE is not set: whoever reaches the port may submit and see tasks")
    routes.add_routes(app, app.get(TOKENS))
    docs.add_routes(app.router)

    async def storage() -> str | None:
        return await readiness.unready(app[POOL])

    # The broker is not asked: without it tasks are accepted all the same.
    add_health_routes(app, storage, port=settings.health_port)
    return app


def _writing(trail: Trail) -> Callable[[web.Application], Awaitable[None]]:
    """Write the last lines of a trail when the last request has been answered."""

    async def write(app: web.Application) -> None:
        trail.write()

    return write


async def _storage(app: web.Application) -> AsyncIterator[None]:
    """Open the table and what stands in front of it; the last batches are flushed before the pool closes."""
    async with create_pool(app[SETTINGS]) as pool:
        app[POOL] = pool
        submission = app[parts.SUBMISSION] = Submission(pool, app[SETTINGS], app[WAKE], app[INTERNAL])
        look_up = partial(lookups.look_up, pool)
        statuses = app[parts.STATUSES] = Statuses(look_up)
        most = most_connections(app[SETTINGS].max_connections)
        app[parts.WAITS] = Waits(look_up, look_seconds=app[PERIODS].waits, most_connections=most)
        acts = app[parts.ACTS] = Acts(pool, app[INTERNAL])
        resources = app[parts.RESOURCES] = Resources(pool)
        app[parts.LISTINGS] = Listings(pool)
        yield
        await acts.close()
        await submission.close()
        await statuses.close()
        await resources.close()


async def _answer_waiting(app: web.Application) -> None:
    """Answer those who wait for the end of a task: the process stops, and another one can tell them more."""
    app[parts.WAITS].stop()


async def _background(app: web.Application, tls: Reloading | None) -> AsyncIterator[None]:
    """Run the relay and what wakes it, the reconciler with its chores, and what follows the files."""
    settings, periods = app[SETTINGS], app[PERIODS]
    async with Session(settings, settings.app_name) as session:
        internal = app[INTERNAL]
        relay = Relay(
            session, app[POOL], settings, app[WAKE], internal, in_turn=TOKENS in app, poll_seconds=periods.poll
        )
        reconciler = Reconciler(app[POOL], internal, round_seconds=periods.round)
        backlog = BacklogMeter(app[POOL], lambda: reconciler.leading, seals=settings.seal_public_key_file is not None)
        chores: dict[str, Callable[[], Awaitable[float | None]]] = {
            "losses": partial(losses.report, session, app[POOL], settings, internal),
            "backlog": backlog.measure,
            "keys": partial(keys.forget, app[POOL], settings.retention_days),
            "partitions": partial(partitions.tend, app[POOL], settings.retention_days),
        }
        REGISTRY.register(backlog)
        loops: dict[str, Loop] = {
            "relay": relay,
            "wakeup": Endless(partial(listen, settings, app[WAKE], app[parts.WAITS].hear)),
            "waits": Endless(app[parts.WAITS].look_again),
            "reconciler": Endless(reconciler.run),
            **{name: Endless(partial(reconciler.whenever_leading, chore)) for name, chore in chores.items()},
        }
        if tokens := app.get(TOKENS):
            loops["tokens"] = Endless(tokens.follow)
        if tls:
            loops["tls"] = Endless(tls.watch)
        async with running(loops, stop_seconds=STOP_SECONDS):
            yield
        REGISTRY.unregister(backlog)
