"""How a process of ours listens, and how it stops: it takes nothing new, and finishes what is in flight."""

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import cast

import uvloop
from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import BadStatusLine

from runtime.connection import Connection
from runtime.connections import Connections, Limits
from runtime.health import WATCHED

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

BACKLOG = 4096
STOP_SECONDS = 10.0
"""For requests that are being answered when the process is told to stop."""
OWN_DESCRIPTORS = 200
"""Kept from the clients: for the database, the broker, the log, and whatever the process opens besides."""


class ListenError(Exception):
    """A port that we cannot have; the text names its variable."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen, and what the port's variable is called."""

    host: str
    port: int
    variable: str
    is_shared: bool = False
    """Whether other processes may listen there, too."""


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
    limits = Limits(connections=_most_connections(max_connections), keepalive_seconds=keepalive_seconds)

    async def run() -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())

        def stop() -> None:
            if not task.cancelling():  # To ask twice changes nothing.
                task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        with suppress(asyncio.CancelledError):
            async with listening(app, address, limits, watchers):
                await asyncio.Event().wait()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    except ListenError as error:
        raise SystemExit(str(error)) from None


def _most_connections(wanted: int | None) -> int:
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
    listeners: list[asyncio.Server] = []
    try:
        # Nothing has begun yet, should a port be taken.
        for runner, at in zip(runners, addresses.values(), strict=True):
            listeners.append(await _bind(runner, at, connections))
        for runner in runners:
            await runner.setup()
            server = cast(web.Server, runner.server)
            server.request_handler = _only_http_1(server.request_handler)
        connections.watch()
        for listener, at in zip(listeners, addresses.values(), strict=True):
            with _named(at):
                await listener.start_serving()
        yield [listener.sockets[0].getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
        connections.stop()
        for runner in runners:
            await runner.cleanup()
        connections.close()


async def _bind(runner: web.AppRunner, address: Address, connections: Connections) -> asyncio.Server:
    loop = asyncio.get_running_loop()

    def make_connection() -> Connection:
        return Connection(cast(web.Server, runner.server), connections, loop)

    with _named(address):
        return await loop.create_server(
            make_connection,
            address.host,
            address.port,
            backlog=BACKLOG,
            reuse_port=address.is_shared,
            start_serving=False,
        )


@contextmanager
def _named(address: Address) -> Iterator[None]:
    """Say which variable is at fault where we cannot listen."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ListenError(f"{address.variable}: cannot listen on {address.host}:{address.port}: {reason}") from None


def _only_http_1(handler: Handler) -> Handler:
    """Refuse HTTP/0.9, which aiohttp's parser takes, and whatever calls itself newer than what we speak."""

    def handle(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        if request.version is not HttpVersion11 and request.version != HttpVersion10:
            raise BadStatusLine
        return handler(request)

    return handle
