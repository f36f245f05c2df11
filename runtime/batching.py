"""Natural group commit: one flush at a time takes all that has gathered meanwhile.

    submit ──▶ waiting ──▶ in a flush ──▶ its result or its error
                  │             │
                  │             └─ caller gone or told "too late": the item may be stored or not, nobody knows
                  └─ caller gone or told "too late": dropped, and certainly not stored

An idle batcher flushes an item at once, a busy one takes what came during the last flush. So batches are as large as
the store is slow, and a lone item is as quick as without a batcher. Where nobody would notice `gather_seconds`, each
flush waits that long for more, and the store has fewer of them.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

from runtime import clock, metrics

Item = TypeVar("Item")
Result = TypeVar("Result")
Entry = tuple[Item, asyncio.Future[Result], float, int]
"""An item, its caller's future, until when (`clock.now`) the caller waits, and the item's bytes."""


class BatcherError(Exception):
    """The batcher, not the store, could not serve a caller."""


class BatcherFullError(BatcherError):
    """More waits than the batcher may hold: the store does not keep up. The item will not be flushed."""


class FlushCancelledError(BatcherError):
    """The flush was broken off in the middle: whether the item is stored is not known."""


class Batcher(Generic[Item, Result]):
    """Gathers the items of concurrent callers into batches, and gives each caller its own result or error.

    `flush` gets 1 to `max_batch` items and returns one result each, in order. When it raises one of `poison` (the
    store refuses a row, whichever it is), the batch is halved until only the bad items fail; any other error goes to
    every caller of the batch. At most `max_waiting` items of together `max_bytes` wait, each as large as `size` says.
    A flush begins after `gather_seconds`, unless it is full already.
    A caller that has waited for `timeout` seconds gets `TimeoutError`, within `check_seconds` more.
    """

    def __init__(
        self,
        name: str,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        max_batch: int,
        max_waiting: float,
        timeout: float,
        max_bytes: float = math.inf,
        size: Callable[[Item], int] | None = None,
        poison: tuple[type[Exception], ...] = (),
        gather_seconds: float = 0.0,
        check_seconds: float = 0.25,
    ) -> None:
        self._flush = flush
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._measure = size
        self._poison = poison
        self._gather_seconds = gather_seconds
        self._check_seconds = check_seconds
        # What no flush has taken yet, oldest first, and its bytes.
        self._waiting: deque[Entry[Item, Result]] = deque()
        self._waiting_bytes = 0
        # What the running flush has taken.
        self._in_flush: Sequence[Entry[Item, Result]] = ()
        # Flushes until nothing waits; None while the batcher is idle.
        self._flusher: asyncio.Task[None] | None = None
        # Tells the callers that have waited for too long; None while the batcher is idle, or without a time-out.
        self._timer: asyncio.TimerHandle | None = None
        self._batch_size = metrics.BATCH_SIZE.labels(name)

    async def submit(self, item: Item) -> Result:
        """Hand in one item and wait for its result. Raises `BatcherFullError` at once when too much waits."""
        size = self._measure(item) if self._measure else 0
        if len(self._waiting) >= self._max_waiting or self._waiting_bytes + size > self._max_bytes:
            raise BatcherFullError
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future, clock.now() + self._timeout, size))
        self._waiting_bytes += size
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush_waiting())
            if self._timer is None and self._timeout < math.inf:
                self._timer = loop.call_later(self._check_seconds, self._tell_late)
        return await future

    async def close(self) -> None:
        """Wait for the last flush."""
        while self._flusher:
            await asyncio.wait({self._flusher})

    async def _flush_waiting(self) -> None:
        try:
            while batch := await self._gather():
                self._in_flush = batch
                self._batch_size.observe(len(batch))
                await self._flush_batch(batch)
        except asyncio.CancelledError:  # The event loop is being closed.
            _fail(self._waiting, FlushCancelledError())
            raise
        finally:
            self._flusher, self._in_flush = None, ()

    async def _gather(self) -> Sequence[Entry[Item, Result]]:
        if self._gather_seconds and 0 < len(self._waiting) < self._max_batch:
            await asyncio.sleep(self._gather_seconds)
        return self._next_batch()

    def _next_batch(self) -> Sequence[Entry[Item, Result]]:
        """Take the oldest items whose callers still wait for them; empty when nothing waits."""
        now = clock.now()
        batch: list[Entry[Item, Result]] = []
        waiting = self._waiting
        while waiting and len(batch) < self._max_batch:
            entry = waiting.popleft()
            self._waiting_bytes -= entry[3]
            if entry[2] <= now:
                _fail([entry], TimeoutError())
            elif not entry[1].done():
                batch.append(entry)
        return batch

    def _tell_late(self) -> None:
        """Tell callers that have waited for too long. A timer for each of them would cost as much as all the rest."""
        now = clock.now()
        while self._waiting and self._waiting[0][2] <= now:
            entry = self._waiting.popleft()
            self._waiting_bytes -= entry[3]
            _fail([entry], TimeoutError())
        _fail((entry for entry in self._in_flush if entry[2] <= now), TimeoutError())
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._check_seconds, self._tell_late) if self._flusher else None

    async def _flush_batch(self, batch: Sequence[Entry[Item, Result]]) -> None:
        try:
            results = await self._flush([entry[0] for entry in batch])
            for (_, future, _, _), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
        except self._poison as error:
            if len(batch) == 1:
                _fail(batch, error)
                return
            half = len(batch) // 2
            for part in (batch[:half], batch[half:]):
                # Nothing of the batch is stored yet: who was told meanwhile is not stored any more.
                if waited_for := [entry for entry in part if not entry[1].done()]:
                    await self._flush_batch(waited_for)
        except asyncio.CancelledError:
            _fail(batch, FlushCancelledError())
            if (flusher := asyncio.current_task()) and flusher.cancelling():
                raise
            # Otherwise something inside of the flush was cancelled, as when a connection is taken away: go on.
        except Exception as error:  # noqa: BLE001 - not swallowed: every caller gets it.
            _fail(batch, error)


def _fail(entries: Iterable[Entry[Item, Result]], error: Exception) -> None:
    for _, future, _, _ in entries:
        if not future.done():
            future.set_exception(error)
