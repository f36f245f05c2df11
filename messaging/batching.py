"""Natural group commit: one flush at a time takes all that has gathered meanwhile."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from messaging import metrics

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatcherFullError(Exception):
    """More callers wait than the batcher may hold: storage does not keep up."""


class Batcher(Generic[Item, Result]):
    """Gathers the items of concurrent callers into batches, and gives each caller its own result or error.

    There is no timer: an idle batcher flushes an item at once, a busy one takes what came during the last flush.
    `flush` gets 1 to `max_batch` items and returns one result each, in order. When it raises one of `poison` (the
    store refuses a row, whichever it is), the batch is halved until only the bad items fail; any other error goes to
    every caller of the batch. A caller that goes away does not take its item back.
    """

    def __init__(
        self,
        name: str,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        max_batch: int,
        max_waiting: float,
        poison: tuple[type[Exception], ...] = (),
    ) -> None:
        self._flush = flush
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._poison = poison
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._flusher: asyncio.Task[None] | None = None
        self._size = metrics.BATCH_SIZE.labels(name)

    async def submit(self, item: Item) -> Result:
        """Hand in one item and wait for its result. Raises `BatcherFullError` at once when too many wait."""
        if len(self._waiting) >= self._max_waiting:
            raise BatcherFullError
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush_all())
        return await future

    async def close(self) -> None:
        """Wait for the last flush."""
        while self._flusher:
            await asyncio.wait({self._flusher})

    async def _flush_all(self) -> None:
        try:
            while self._waiting:
                count = min(len(self._waiting), self._max_batch)
                await self._settle([self._waiting.popleft() for _ in range(count)])
        finally:
            self._flusher = None

    async def _settle(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        self._size.observe(len(batch))
        try:
            results = await self._flush([item for item, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
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

    def _fail(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]], error: Exception) -> None:
        for _, future in batch:
            if not future.done():
                future.set_exception(error)
