"""A bad network for tests: a TCP proxy that goes silent, grows slow and breaks on demand."""

import asyncio
import math
import socket
import ssl
import struct
from typing import Self

from tests.system.spawning import free_port

CHUNK_BYTES = 64 * 1024
BUFFERED_CHUNKS = 1024
"""How much one direction holds back before its sender is made to wait."""

Chunk = tuple[float, bytes]
"""When it may arrive, in the loop's time, and what; no bytes are the end of the stream."""


def reset(transport: asyncio.WriteTransport) -> None:
    """Break a connection so that its other side sees a reset, no end."""
    linger = struct.pack("ii", 1, 0)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()


class Proxy:
    """Forwards connections from a loopback port of its own to `target_host:target_port`; with `tls`, ends TLS there.

    A black hole drops nothing by itself: what is sent into it arrives when it is lifted, or never, if `cut` comes
    first. Neither side notices a black hole but by the silence; both notice a cut. Who ends a connection still has
    delivered what was sent before; who resets it takes that back, as from a kernel that would have sent it again.
    """

    def __init__(self, target_host: str, target_port: int, tls: ssl.SSLContext | None = None) -> None:
        self.url_port = free_port()
        self.resets = 0
        """How many connections one of their sides has reset."""
        self._tls = tls
        self._target = target_host, target_port
        self._delay = 0.0
        self._rate = math.inf
        self._passing = asyncio.Event()
        self._passing.set()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen; after a stop, on the same port again."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.url_port, reuse_address=True, ssl=self._tls
        )

    async def stop(self) -> None:
        """Refuse connections, and break those that are open."""
        if self._server:
            self._server.close()
            self._server = None
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def cut(self) -> None:
        """Break every open connection at once; what has not been forwarded is lost."""
        for writer in self._writers:
            writer.transport.abort()
        for connection in self._connections:
            connection.cancel()

    def blackhole(self, on: bool) -> None:
        """Forward nothing in either direction, not even an end of stream, or go on; connections are accepted."""
        if on:
            self._passing.clear()
        else:
            self._passing.set()

    def delay(self, seconds: float) -> None:
        """Let everything sent from now on arrive so much later, in either direction."""
        self._delay = seconds

    def throttle(self, bytes_per_second: float = math.inf) -> None:
        """Let each direction of each connection carry no more than so much from now on."""
        self._rate = bytes_per_second

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # It was being accepted when we stopped.
            writer.transport.abort()
            return
        self._writers.add(writer)
        connection = asyncio.create_task(self._connect(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            await self._passing.wait()
            target_reader, target_writer = await asyncio.open_connection(*self._target)
            writers.append(target_writer)
            self._writers.add(target_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, target_writer))
                pumps.create_task(self._pump(target_reader, writer))
        except* OSError:
            self.resets += 1
            await self._passing.wait()  # The other side does not hear of it before.
            for broken in writers:
                if not broken.is_closing():
                    reset(broken.transport)
        finally:
            for ended in writers:
                ended.close()
                self._writers.discard(ended)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chunks: asyncio.Queue[Chunk] = asyncio.Queue(BUFFERED_CHUNKS)
        async with asyncio.TaskGroup() as ends:
            ends.create_task(self._take(reader, chunks))
            ends.create_task(self._forward(chunks, writer))

    async def _take(self, reader: asyncio.StreamReader, chunks: asyncio.Queue[Chunk]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # What comes in one piece arrives in several on a slow line.
            data = await reader.read(CHUNK_BYTES if self._rate == math.inf else max(1, int(self._rate / 10)))
            await chunks.put((loop.time() + self._delay, data))
            if not data:
                return

    async def _next(self, chunks: asyncio.Queue[Chunk]) -> bytes:
        """The next piece, when it may arrive."""
        due, data = await chunks.get()
        await asyncio.sleep(due - asyncio.get_running_loop().time())
        await asyncio.sleep(len(data) / self._rate)
        await self._passing.wait()
        return data

    async def _forward(self, chunks: asyncio.Queue[Chunk], writer: asyncio.StreamWriter) -> None:
        while True:
            data = await self._next(chunks)
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
