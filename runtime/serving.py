"""How a process of ours listens, and how it stops: it takes nothing new, and finishes what is in flight."""

import asyncio
import resource
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import cast

import uvloop
from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import BadStatusLine

from runtime.connection import Connection
from runtime.connections import Connections, Limits
from runtime.health import WATCHED
from runtime.listener import Address, Listener, ListenError

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

STOP_SECONDS = 10.0
"""For requests that are being answered when the process is told to stop."""
OWN_DESCRIPTORS = 200
"""Kept from the clients: for the database, the broker, the log, and whatever the process opens besides."""


def serve(
    app: web.Application,
    address: Address,
    *,
    watchers: Address | None = None,
    keepalive_seconds: float = 75,
    max_connections: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. With `watchers`, the app's health routes are served there; see `WATCHED`.

    A port that cannot be had ends the process with one line.
    """
    limits = Limits(connections=most_connections(max_connections), keepalive_seconds=keepalive_seconds)

    async def run() -> None:
        task, stopping = cast("asyncio.Task[None]", asyncio.current_task()), asyncio.Event()

        def stop() -> None:
            if not stopping.is_set():  # To ask twice changes nothing.
                stopping.set()
                task.cancel()  # It may be starting. What it waits for may swallow this: `stopping` is looked at then.

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        with suppress(asyncio.CancelledError):
            async with listening(app, address, limits, watchers):
                await stopping.wait()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    except ListenError as error:
        raise SystemExit(str(error)) from None


def most_connections(wanted: int | None) -> int:
    """Tell how many clients there may be: as many as are wanted, and the descriptors allow."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(limit - OWN_DESCRIPTORS, limit // 4)
    return min(wanted or most, most)


@asynccontextmanager
async def listening(
    app: web.Application, address: Address, limits: Limits, watchers: Address | None = None
) -> AsyncIterator[list[int]]:
    """Serve while the context lasts; yields the ports, which the system chooses where 0 was asked for."""
    connections = Connections(limits)
    addresses = {app: address}
    if watchers and app[WATCHED] is not app:
        addresses[app[WATCHED]] = watchers
    runners = [web.AppRunner(each, shutdown_timeout=STOP_SECONDS) for each in addresses]
    listeners: list[Listener] = []
    try:
        for runner, at in zip(runners, addresses.values(), strict=True):
            listeners.append(Listener(at, connections, partial(_make_connection, runner, connections)))
        for runner in runners:
            await runner.setup()
            server = cast(web.Server, runner.server)
            server.request_handler = _only_http_1(server.request_handler)
        connections.watch()
        for listener in listeners:
            listener.start()
        yield [listener.port for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
        connections.stop()
        for runner in runners:
            await runner.cleanup()
        connections.close()


def _make_connection(runner: web.AppRunner, connections: Connections) -> Connection:
    return Connection(cast(web.Server, runner.server), connections, asyncio.get_running_loop())


def _only_http_1(handler: Handler) -> Handler:
    """Refuse HTTP/0.9, which aiohttp's parser takes, and whatever calls itself newer than what we speak."""

    def handle(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        if request.version is not HttpVersion11 and request.version != HttpVersion10:
            raise BadStatusLine
        return handler(request)

    return handle
