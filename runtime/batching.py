"""Natural group commit: one flush at a time takes all that has gathered meanwhile."""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from typing import Generic, TypeVar

from runtime import metrics

Item = TypeVar("Item")
Result = TypeVar("Result")
Entry = tuple[Item, asyncio.Future[Result], float]
"""An item, its caller's future, and until when (in the loop's time) the caller waits."""

CHECK_SECONDS = 0.25


class BatcherFullError(Exception):
    """More callers wait than the batcher may hold: storage does not keep up."""


class Batcher(Generic[Item, Result]):
    """Gathers the items of concurrent callers into batches, and gives each caller its own result or error.

    There is no timer: an idle batcher flushes an item at once, a busy one takes what came during the last flush.
    `flush` gets 1 to `max_batch` items and returns one result each, in order. When it raises one of `poison` (the
    store refuses a row, whichever it is), the batch is halved until only the bad items fail; any other error goes to
    every caller of the batch. A caller that goes away, or has waited for `timeout` seconds and gets `TimeoutError`,
    does not take its item back.
    """

    def __init__(
        self,
        name: str,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        max_batch: int,
        max_waiting: float,
        timeout: float,
        poison: tuple[type[Exception], ...] = (),
    ) -> None:
        self._flush = flush
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._poison = poison
        self._timeout = timeout
        self._waiting: deque[Entry[Item, Result]] = deque()
        self._in_flush: Sequence[Entry[Item, Result]] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._flusher: asyncio.Task[None] | None = None
        self._size = metrics.BATCH_SIZE.labels(name)

    async def submit(self, item: Item) -> Result:
        """Hand in one item and wait for its result. Raises `BatcherFullError` at once when too many wait."""
        if len(self._waiting) >= self._max_waiting:
            raise BatcherFullError
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future, loop.time() + self._timeout))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush_all())
            if self._timer is None and self._timeout < math.inf:
                self._timer = loop.call_later(CHECK_SECONDS, self._give_up)
        return await future

    async def close(self) -> None:
        """Wait for the last flush."""
        while self._flusher:
            await asyncio.wait({self._flusher})

    async def _flush_all(self) -> None:
        try:
            while self._waiting:
                count = min(len(self._waiting), self._max_batch)
                self._in_flush = [self._waiting.popleft() for _ in range(count)]
                self._size.observe(count)
                await self._settle(self._in_flush)
        finally:
            self._flusher, self._in_flush = None, ()

    def _give_up(self) -> None:
        """Tell callers that have waited for too long. A timer for each of them would cost as much as all the rest."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for _, future, until in chain(self._in_flush, self._waiting):
            if until > now:
                break
            if not future.done():
                future.set_exception(TimeoutError())
        self._timer = loop.call_later(CHECK_SECONDS, self._give_up) if self._flusher else None

    async def _settle(self, batch: Sequence[Entry[Item, Result]]) -> None:
        try:
            results = await self._flush([item for item, _, _ in batch])
            for (_, future, _), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
        except self._poison as error:
            if len(batch) == 1:
                self._fail(batch, error)
                return
            half = len(batch) // 2
            await self._settle(batch[:half])
            await self._settle(batch[half:])
        except Exception as error:  # noqa: BLE001 - not swallowed: every caller gets it.
            self._fail(batch, error)

    def _fail(self, batch: Sequence[Entry[Item, Result]], error: Exception) -> None:
        for _, future, _ in batch:
            if not future.done():
                future.set_exception(error)
