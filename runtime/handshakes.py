"""Clients that have yet to finish their TLS handshake: one that never does must not keep its place."""

import asyncio
import socket
import ssl
from collections.abc import Callable

from runtime.connection import Connection
from runtime.connections import Claim, Connections

FRESH_SECONDS = 1.0
"""How long a client may take before it has to give way to others: it answers us once or twice, from far away."""


class Handshake:
    """A handshake, which holds its client's place until the client's connection is made.

    A client that fails is told nothing and logged without a word of its own: the reason is out of OpenSSL's list.
    """

    def __init__(
        self,
        accepted: socket.socket,
        peer: str,
        context: ssl.SSLContext,
        connections: Connections,
        make: Callable[[], Connection],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.waits_since = self._loop.time()
        self._peer = peer
        self._connections = connections
        self._task = self._loop.create_task(self._run(accepted, context, make))
        connections.add(self)

    def claim(self, now: float) -> Claim:
        """Judge how good its claim to its place is."""
        return Claim.FRESH if now < self.waits_since + FRESH_SECONDS else Claim.NONE

    def check(self, now: float) -> None:
        """End it where its client takes too long."""
        if now > self.waits_since + self._connections.limits.head_seconds:
            self._connections.drop(self, "handshake not finished")

    def abort(self) -> None:
        """End it at once."""
        self._task.cancel()

    async def _run(self, accepted: socket.socket, context: ssl.SSLContext, make: Callable[[], Connection]) -> None:
        try:
            await self._loop.connect_accepted_socket(make, accepted, ssl=context)
        except ssl.SSLError as error:
            self._connections.malformed.add(self._peer, None, f"TLS: {error.reason}")
            accepted.close()
        except OSError:
            accepted.close()  # Its client has gone.
        finally:
            self._connections.remove(self)
