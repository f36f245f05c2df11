"""The statuses of tasks as clients ask for them."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from asyncpg.pgproto.pgproto import UUID  # Its own kind is read quicker, and goes into a statement as it is.

from service_b.storage import Storage
from service_b.tasks.lookups import Status

__all__ = ["Status", "Statuses"]

MAX_KEPT = 50_000
"""Some 400 bytes each."""


class Statuses:
    """Looks statuses up by the batch, and keeps `max_kept` of those of finished tasks: they never change."""

    def __init__(
        self, look_up: Callable[[Sequence[UUID]], Awaitable[Sequence[Status | None]]], *, max_kept: int = MAX_KEPT
    ) -> None:
        self._lookups = Storage("status", look_up)
        self._max_kept = max_kept
        self._finished: OrderedDict[UUID, Status] = OrderedDict()

    async def get(self, task: str) -> Status | None:
        """Tell the status of the task with this UUID; None if there is none. Raises what `Storage.ask` raises."""
        task_id = UUID(task)
        if kept := self._finished.get(task_id):
            return kept
        status = await self._lookups.ask(task_id, task_id)
        if status and status.code:
            self._finished[task_id] = status
            if len(self._finished) > self._max_kept:
                self._finished.popitem(last=False)
        return status

    async def close(self) -> None:
        """Wait for the last batch."""
        await self._lookups.close()
