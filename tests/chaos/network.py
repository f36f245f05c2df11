"""The bad network: one proxy per link that a run's nemeses want to spoil; the other links stay direct."""

import asyncio
import random
from collections.abc import Iterable

from typing_extensions import override

from tests.proxy import Chunk, Proxy

LINKS = (
    "web-database",
    "results-database",
    "web-broker",
    "results-broker",
    "configurator-broker",
    "configurator-a",
)
SYNC = b"S\x00\x00\x00\x04"
"""PostgreSQL's Sync message: what a driver sends behind each Execute, and what commits a single statement."""


class CommitCutter(Proxy):
    """Cuts a connection right after its commit was sent to the database: committed, and nobody knows."""

    def __init__(self, target_host: str, target_port: int) -> None:
        super().__init__(target_host, target_port)
        self.chance = 0.0

    @override
    async def _forward(self, chunks: "asyncio.Queue[Chunk]", writer: asyncio.StreamWriter) -> None:
        try:
            await self._forward_and_cut(chunks, writer)
        except RuntimeError as error:  # What uvloop says of a transport that was aborted meanwhile.
            raise ConnectionAbortedError from error

    async def _forward_and_cut(self, chunks: "asyncio.Queue[Chunk]", writer: asyncio.StreamWriter) -> None:
        if writer.get_extra_info("peername")[1] != self._target[1]:
            await super()._forward(chunks, writer)
            return
        while True:
            data = await self._next(chunks)
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
            if (b"COMMIT" in data or data.endswith(SYNC)) and random.random() < self.chance:
                raise ConnectionAbortedError


class Network:
    """The links between our processes and what they talk to."""

    def __init__(self, spoiled: Iterable[str]) -> None:
        self._spoiled = frozenset(spoiled)
        self._proxies: dict[str, CommitCutter] = {}

    async def open(self, amqp_port: int, database_port: int, a: tuple[str, int]) -> None:
        """Put a proxy on each link that is going to be spoiled."""
        targets = {"broker": ("127.0.0.1", amqp_port), "database": ("127.0.0.1", database_port), "a": a}
        for link in sorted(self._spoiled):
            proxy = CommitCutter(*targets[link.rpartition("-")[2]])
            await proxy.start()
            self._proxies[link] = proxy

    async def close(self) -> None:
        """Cut everything and stop."""
        for proxy in self._proxies.values():
            await proxy.stop()

    def __contains__(self, link: str) -> bool:
        return link in self._proxies

    def port(self, link: str, direct: int) -> int:
        """Where a process connects for this link."""
        return self._proxies[link].url_port if link in self._proxies else direct

    def proxy(self, link: str) -> CommitCutter:
        """The proxy on a link."""
        return self._proxies[link]

    def heal(self) -> None:
        """Let everything pass as if nothing had been."""
        for proxy in self._proxies.values():
            proxy.delay(0)
            proxy.throttle()
            proxy.chance = 0
            proxy.blackhole(False)
