"""The statuses of tasks as clients ask for them."""

from collections import OrderedDict
from uuid import UUID

from runtime.batching import Batcher
from service_b.tasks.table import Status

MAX_KEPT = 50_000
"""Some 400 bytes each."""


class Statuses:
    """Looks statuses up by the batch, and keeps those of finished tasks: they never change."""

    def __init__(self, lookups: Batcher[UUID, Status | None]) -> None:
        self._lookups = lookups
        self._finished: OrderedDict[UUID, Status] = OrderedDict()

    async def get(self, task_id: UUID) -> Status | None:
        """Tell a task's status, None if there is no such task. Raises what the batcher raises."""
        if kept := self._finished.get(task_id):
            return kept
        status = await self._lookups.submit(task_id)
        if status and status.code:
            self._finished[task_id] = status
            if len(self._finished) > MAX_KEPT:
                self._finished.popitem(last=False)
        return status
