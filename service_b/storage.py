"""Storage as a request sees it: asked by the batch, within the time that a client waits."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar
from uuid import UUID

import asyncpg
import structlog

from runtime.batching import Batcher, BatcherError
from service_b.database import REFUSED_ROW, STORAGE_ERRORS

log = structlog.stdlib.get_logger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_BATCH = 100
"""More rows at once are no cheaper, and make the process wait for one commit and then write answers in lumps."""
MAX_WAITING = 20_000
MAX_WAITING_BYTES = 64 * 1024 * 1024
TIMEOUT_SECONDS = 4.0
"""The contract promises a 503 within 5 s."""


class StorageUnavailableError(Exception):
    """The database is away or too slow.

    What still waited is not done any more; whether what had been sent to the database was done is not known.
    """


class StorageRefusedError(Exception):
    """A bug: what the API lets through, the table must take."""


class Storage(Generic[Item, Result]):
    """One kind of question to the database, asked for many requests at a time.

    `flush` gets 1 to 100 items and returns a result for each, in order; `size` tells the bytes of a large item.
    """

    def __init__(
        self,
        name: str,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        size: Callable[[Item], int] | None = None,
    ) -> None:
        self._batcher = Batcher(
            name,
            flush,
            max_batch=MAX_BATCH,
            max_waiting=MAX_WAITING,
            timeout=TIMEOUT_SECONDS,
            max_bytes=MAX_WAITING_BYTES,
            size=size,
            poison=REFUSED_ROW,
        )

    async def ask(self, item: Item, task_id: UUID) -> Result:
        """Ask for one request. Raises, and logs, `StorageUnavailableError` (within 5 s) or `StorageRefusedError`."""
        try:
            return await self._batcher.submit(item)
        except REFUSED_ROW as error:  # Its text quotes the row.
            log.error("storage.refused", task_id=str(task_id), error=type(error).__name__)
            raise StorageRefusedError from None
        except (*STORAGE_ERRORS, BatcherError) as error:
            reason = error.sqlstate if isinstance(error, asyncpg.PostgresError) else ""
            log.warning("storage.unavailable", task_id=str(task_id), error=type(error).__name__, sqlstate=reason)
            raise StorageUnavailableError from None

    async def close(self) -> None:
        """Wait for the last batch."""
        await self._batcher.close()
