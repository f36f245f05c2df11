"""Clients of an app that is served as in production, and clients that write their own bytes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from runtime.connections import Limits
from runtime.listener import Address
from runtime.serving import listening
from runtime.tls import Reloading

GENEROUS = Limits(connections=1000)


class Client:
    """Asks one app by paths."""

    def __init__(self, app: web.Application, port: int, session: aiohttp.ClientSession) -> None:
        self.app, self.host, self.port = app, "127.0.0.1", port
        self.get, self.post, self.head, self.request = session.get, session.post, session.head, session.request

    async def ask_raw(self, raw: bytes) -> tuple[bytes, bytes]:
        """Send bytes over a connection of its own; return the answer's head and body."""
        return await ask_raw(self.port, raw)


async def ask_raw(port: int, raw: bytes) -> tuple[bytes, bytes]:
    """Send bytes, read until the server closes; return the answer's head, and what follows it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(raw)
    async with asyncio.timeout(60):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head, body


@asynccontextmanager
async def serving(
    app: web.Application, limits: Limits = GENEROUS, tls: Reloading | None = None
) -> AsyncIterator[Client]:
    """Serve the app while the context lasts."""
    async with (
        listening(app, Address("127.0.0.1", 0, "APP_PORT", tls=tls), limits) as (port,),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        yield Client(app, port, session)


def requests_at_work() -> int:
    """How many requests an app in this process is answering."""
    return sum("_handle_request" in repr(task.get_coro()) for task in asyncio.all_tasks())
