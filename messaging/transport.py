"""The bytes between us and the broker, past aiormq where they come by the hundred."""

import asyncio
from typing import Any

import aiormq
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from messaging.reader import Reader


class Transport(aiormq.TransportFactory):
    """A connection's two ends, made when aiormq connects."""

    def __init__(self) -> None:
        self.reader = Reader()
        self._writer: asyncio.StreamWriter | None = None

    async def create(  # type: ignore[explicit-override]
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, by TLS where the URL says so."""
        loop = asyncio.get_running_loop()
        tls = await kwargs["ssl_context_provider"].get_context() if url.scheme == "amqps" else None
        protocol = asyncio.StreamReaderProtocol(self.reader)
        try:
            transport, _ = await loop.create_connection(lambda: protocol, url.host or "", url.port or 0, ssl=tls)
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        self._writer = asyncio.StreamWriter(transport, protocol, self.reader, loop)
        return self.reader, self._writer

    def write(self, frames: bytes) -> bool:
        """Write whole frames behind what is written already; False when the connection is closing."""
        if self._writer is None or self._writer.is_closing():
            return False
        self._writer.write(frames)
        return True
