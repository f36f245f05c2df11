"""Tasks as the new routes show them."""

import asyncpg
from asyncpg.pgproto.pgproto import UUID  # Its own kind goes into a statement without being converted.

from service_b.storage import Storage
from service_b.tasks import resources
from service_b.tasks.resources import Task

__all__ = ["Resources", "Task"]


class Resources:
    """Finds tasks, by the batch."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._found: Storage[UUID, Task | None] = Storage("task", lambda ids: resources.find(pool, ids))

    async def get(self, task: str) -> Task | None:
        """Tell all of the task with this UUID; None if there is none. Raises what `Storage.ask` raises."""
        task_id = UUID(task)
        return await self._found.ask(task_id, task_id)

    async def close(self) -> None:
        """Wait for the last batch."""
        await self._found.close()
