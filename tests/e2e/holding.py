"""Clients that never let go: `python -m tests.e2e.holding PORT COUNT [CA]`, so many of each kind, until it is killed.

A client whose connection ends comes again after a second.
"""

import asyncio
import ssl
import sys
from collections.abc import Awaitable, Callable

AGAIN_SECONDS = 1.0
HEAD = b"GET /metrics HTTP/1.1\r\nHost: a\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send nothing."""
    await reader.read()


async def halve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send half a head."""
    writer.write(HEAD)
    await reader.read()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a byte a second."""
    writer.write(HEAD)
    while not reader.at_eof():
        writer.write(b"X")
        await writer.drain()
        await asyncio.sleep(1)


async def ask_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ask all the time, and read no answer."""
    while True:
        writer.write((HEAD + b"\r\n") * 100)
        await writer.drain()


async def keep_on(
    port: int,
    tls: ssl.SSLContext | None,
    hold: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> None:
    """Hold one connection after the other."""
    while True:
        try:
            # With so small a limit, nearly nothing is read that is not asked for.
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1, ssl=tls)
            try:
                await hold(reader, writer)
            finally:
                writer.transport.abort()
        except OSError:
            pass
        await asyncio.sleep(AGAIN_SECONDS)


async def main() -> None:
    """Hold on."""
    port, count = int(sys.argv[1]), int(sys.argv[2])
    tls = ssl.create_default_context(cafile=sys.argv[3]) if sys.argv[3:] else None
    await asyncio.gather(*(keep_on(port, tls, hold) for hold in (idle, halve, drip, ask_only) for _ in range(count)))


if __name__ == "__main__":
    asyncio.run(main())
