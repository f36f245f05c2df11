"""Where a process listens, and how it takes connections: no more than it has room for.

asyncio's and uvloop's own servers accept whatever comes, until descriptors are used up and everything fails. Here, who
finds no room waits in the kernel's queue, in order; meanwhile it can send its request.
"""

import asyncio
import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass

from runtime.connection import Connection
from runtime.connections import Connections
from runtime.handshakes import Handshake
from runtime.tls import Reloading

BACKLOG = 4096
ACCEPTS = 64
"""At a time, before others have their turn."""
AGAIN_SECONDS = 0.05
"""How soon to look again whether there is room."""
SEND_BUFFER_BYTES = 64 * 1024
"""What the kernel keeps of answers that a client does not read, twice over. Left alone, it keeps megabytes for each."""


class ListenError(Exception):
    """We cannot listen; the text names the variable that says where."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen, and what the port's variable is called."""

    host: str
    port: int
    variable: str
    is_shared: bool = False
    """Whether other processes may listen there, too."""
    tls: Reloading | None = None
    """With it, nothing but TLS is spoken there."""


class Listener:
    """Listens at one address. Binds at once, so that a port that is taken is noticed before anything has begun."""

    def __init__(self, address: Address, connections: Connections, make: Callable[[], Connection]) -> None:
        self._address = address
        self._connections = connections
        self._make = make
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        """Connections that are being made."""
        self._try(self._bind)

    @property
    def port(self) -> int:
        """The port, also where the system has chosen it."""
        return int(self._sockets[0].getsockname()[1])

    def start(self) -> None:
        """Take connections from now on."""
        self._try(self._listen)

    def close(self) -> None:
        """Take no more."""
        for each in self._sockets:
            asyncio.get_running_loop().remove_reader(each)
            each.close()
        self._sockets = []

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            self.close()
            reason = os.strerror(error.errno) if error.errno else str(error)
            at = f"{self._address.host}:{self._address.port}"
            raise ListenError(f"{self._address.variable}: cannot listen on {at}: {reason}") from None

    def _bind(self) -> None:
        host, port = self._address.host, self._address.port
        for family, kind, protocol, _, at in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            each = socket.socket(family, kind, protocol)
            self._sockets.append(each)
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # Its connections inherit it.
            if self._address.is_shared:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.bind(at)

    def _listen(self) -> None:
        for each in self._sockets:
            each.listen(BACKLOG)
            asyncio.get_running_loop().add_reader(each, self._accept, each)

    def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for number in range(ACCEPTS):
            if self._connections.is_full():
                # The first is there for certain; for others nobody may have to give way in vain.
                if number and not _is_readable(listening):
                    return
                if not self._connections.make_room():
                    loop.remove_reader(listening)
                    loop.call_later(AGAIN_SECONDS, self._go_on, listening)
                    return
            try:
                accepted, peer = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            if self._address.tls:
                Handshake(accepted, peer[0], self._address.tls.context, self._connections, self._make)
                continue
            self._connections.coming += 1
            task = loop.create_task(self._connect(accepted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _go_on(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._make, accepted)
        except OSError:
            accepted.close()  # Its client has gone.
        finally:
            self._connections.coming -= 1


def _is_readable(one: socket.socket) -> bool:
    poll = select.poll()
    poll.register(one, select.POLLIN)
    return bool(poll.poll(0))
