"""Waiting for the end of a task: who waits in this process, and how they hear of it.

The statement that ends tasks tells of them all at once (`tasks.endings`), and each web process listens (`wakeup`). A
wait holds a future, and no connection of the database. A notification can be lost, where the listening connection is
away for a while; so what is waited for is looked up every few seconds besides, many at a time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar
from uuid import UUID

import structlog

from runtime import clock
from service_b import metrics
from service_b.database import STORAGE_ERRORS
from service_b.tasks.lookups import Status

T = TypeVar("T")

log = structlog.stdlib.get_logger(__name__)

MAX_WAITING = 15_000
MAX_SHARE = 0.75
"""Of the process's connections: who waits keeps one from all others, for minutes."""
LOOK_SECONDS = 5.0
LOOK_BATCH = 500


class _Waiter:
    """One request that waits."""

    __slots__ = ("ended", "has_left")

    def __init__(self, has_left: Callable[[], bool]) -> None:
        # Its result says no more than that it is time to look.
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Whether its client has closed the connection.
        self.has_left = has_left

    def release(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class Waits:
    """Who waits for the end of which task."""

    def __init__(
        self,
        look_up: Callable[[Sequence[UUID]], Awaitable[Sequence[Status | None]]],
        *,
        look_seconds: float = LOOK_SECONDS,
        most_connections: int = 20_000,
    ) -> None:
        self._look_up = look_up
        self._look_seconds = look_seconds
        # So many may wait; more are answered at once.
        self._most = min(MAX_WAITING, int(MAX_SHARE * most_connections))
        # By the task's id as PostgreSQL writes it.
        self._waiting: dict[str, list[_Waiter]] = {}
        self._count = 0
        self._is_stopping = False

    @property
    def is_full(self) -> bool:
        """Whether nobody else may wait."""
        return self._count >= self._most

    async def wait(
        self,
        task: str,
        seconds: float,
        look: Callable[[], Awaitable[T]],
        has_ended: Callable[[T], bool],
        has_left: Callable[[], bool],
    ) -> tuple[T, float]:
        """Look at a task, and if it has not ended look again when it has, or after so many seconds.

        Returns what the last look saw, and how many seconds were spent on nothing but waiting. That may be cut short:
        by a stop of the process, or where the client has left.
        """
        name = task.lower()
        waiter = _Waiter(has_left)
        # Before the first look: an end that comes between is heard of.
        self._add(name, waiter)
        try:
            seen = await look()
            if has_ended(seen) or self._is_stopping:
                return seen, 0.0
            began = clock.now()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await waiter.ended
            waited = clock.now() - began
        finally:
            self._remove(name, waiter)
        return await look(), waited

    def hear(self, tasks: str) -> None:
        """Tell those who wait for one of these tasks (their ids, with commas) that it has ended."""
        if self._waiting:
            for task in tasks.split(","):
                self._release(task)

    def stop(self) -> None:
        """Let nobody wait any more."""
        self._is_stopping = True
        for task in list(self._waiting):
            self._release(task)

    async def look_again(self) -> None:
        """Look now and then at what is waited for, until cancelled."""
        while True:
            await asyncio.sleep(self._look_seconds)
            try:
                await self._look_at_all()
            except STORAGE_ERRORS as error:
                log.warning("waits.storage_unavailable", error=repr(error), retry_in=self._look_seconds)

    async def _look_at_all(self) -> None:
        tasks = list(self._waiting)
        for task in tasks:
            for waiter in self._waiting[task]:
                if waiter.has_left():
                    waiter.release()
        for start in range(0, len(tasks), LOOK_BATCH):
            batch = tasks[start : start + LOOK_BATCH]
            for task, status in zip(batch, await self._look_up([UUID(task) for task in batch]), strict=True):
                if status is None or status.code is not None:
                    self._release(task)

    def _add(self, task: str, waiter: _Waiter) -> None:
        self._waiting.setdefault(task, []).append(waiter)
        self._count += 1
        metrics.WAITING.set(self._count)

    def _remove(self, task: str, waiter: _Waiter) -> None:
        waiters = self._waiting[task]
        waiters.remove(waiter)
        if not waiters:
            del self._waiting[task]
        self._count -= 1
        metrics.WAITING.set(self._count)

    def _release(self, task: str) -> None:
        for waiter in self._waiting.get(task, ()):
            waiter.release()
