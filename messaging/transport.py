"""The bytes between us and the broker, past aiormq where they come by the hundred."""

import asyncio
import socket
import struct
from typing import Any

import aiormq
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from messaging.reader import Reader

_NO_LINGER = struct.pack("ii", 1, 0)  # socket(7): a close with this drops what is not sent, and resets.
MAX_BUFFERED = 1 << 20
"""Bytes that may wait in our own buffer before no more is taken; the kernel's holds some megabytes beside."""


class Transport(aiormq.TransportFactory):
    """A connection's two ends, made when aiormq connects.

    `silence_seconds`: how long the kernel may try to get bytes to a broker that acknowledges none.
    """

    def __init__(self, silence_seconds: float) -> None:
        self.reader = Reader()
        self._silence_seconds = silence_seconds
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
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux (tcp(7)), also for what is left when the process has died.
            timeout = round(self._silence_seconds * 1000)
            self._writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout)
        return self.reader, self._writer

    @property
    def is_full(self) -> bool:
        """Whether as much waits in our own buffer as may."""
        return self._writer is not None and self._writer.transport.get_write_buffer_size() > MAX_BUFFERED

    def abort(self) -> None:
        """End the connection so that nothing more goes out: neither what we hold, nor what the kernel would resend."""
        if self._writer is None:
            return
        if not self._writer.is_closing():  # uvloop would set the option of whoever has the descriptor's number by now.
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._writer.transport.abort()

    def write(self, frames: bytes) -> bool:
        """Write whole frames behind what is written already; False when the connection is closing."""
        if self._writer is None or self._writer.is_closing():
            return False
        self._writer.write(frames)
        return True
