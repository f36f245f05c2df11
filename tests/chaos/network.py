"""The bad network: one proxy per link that a run's nemeses want to spoil; the other links stay direct."""

import asyncio
import math
import random
from collections.abc import Iterable, Sequence

from typing_extensions import override

from tests.proxy import Chunk, Proxy

LINKS = (
    "web-database",
    "results-database",
    "web-broker",
    "results-broker",
    "configurator-broker",
    "configurator-a",
    "configurator-results",
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
        if writer.is_closing():  # It was cut before anything came, and has no peer any more.
            raise ConnectionAbortedError
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


class Link:
    """What stands between processes of ours and what they talk to, a proxy per server."""

    def __init__(self, proxies: Sequence[CommitCutter]) -> None:
        self.proxies = proxies

    def cut(self) -> None:
        """Break every connection."""
        for proxy in self.proxies:
            proxy.cut()

    def blackhole(self, on: bool) -> None:
        """Let nothing through, or go on."""
        for proxy in self.proxies:
            proxy.blackhole(on)

    def delay(self, seconds: float) -> None:
        """Let everything arrive later."""
        for proxy in self.proxies:
            proxy.delay(seconds)

    def throttle(self, bytes_per_second: float = math.inf) -> None:
        """Let only so much through."""
        for proxy in self.proxies:
            proxy.throttle(bytes_per_second)

    def cut_after_commit(self, chance: float) -> None:
        """Cut some connections right after a commit was sent."""
        for proxy in self.proxies:
            proxy.chance = chance


class Network:
    """The links between our processes and what they talk to."""

    def __init__(self, spoiled: Iterable[str]) -> None:
        self._spoiled = frozenset(spoiled)
        self._links: dict[str, Link] = {}

    def addresses(self, link: str, *servers: tuple[str, int]) -> list[str]:
        """Where a process connects for this link: to the servers, or to a proxy before each if it is to be spoiled."""
        if link in self._spoiled and link not in self._links:
            self._links[link] = Link([CommitCutter(host, port) for host, port in servers])
        if made := self._links.get(link):
            return [f"127.0.0.1:{proxy.url_port}" for proxy in made.proxies]
        return [f"{host}:{port}" for host, port in servers]

    async def open(self) -> None:
        """Let the proxies listen whose addresses were told."""
        for link in self._links.values():
            for proxy in link.proxies:
                await proxy.start()

    async def close(self) -> None:
        """Cut everything and stop."""
        for link in self._links.values():
            for proxy in link.proxies:
                await proxy.stop()

    def link(self, name: str) -> Link:
        """What is between."""
        return self._links[name]

    def heal(self) -> None:
        """Let everything pass as if nothing had been."""
        for link in self._links.values():
            link.delay(0)
            link.throttle()
            link.cut_after_commit(0)
            link.blackhole(False)
