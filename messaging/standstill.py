"""Noticing that this process stood still (SIGSTOP, a suspended machine)."""

import asyncio
from collections.abc import Callable

from runtime import clock


class Standstill:
    """Gives a channel up after a heartbeat's pause.

    The broker may have given its deliveries to another process by then: they must not be begun any more.
    """

    def __init__(self, heartbeat_seconds: float, lost: asyncio.Future[str], lose: Callable[[str], None]) -> None:
        self._heartbeat = heartbeat_seconds
        self._lost = lost
        self._lose = lose
        self._alive_at = clock.now()
        self._watching = asyncio.create_task(self._watch())

    def check(self) -> bool:
        """Tell whether the channel is lost, by a pause that ends just now or by anything else."""
        now = clock.now()
        if now - self._alive_at > self._heartbeat:
            self._lose("the process stood still")
        self._alive_at = now
        return self._lost.done()

    def stop(self) -> None:
        """Watch no more."""
        self._watching.cancel()

    async def _watch(self) -> None:
        while not self.check():
            await asyncio.sleep(self._heartbeat / 4)
