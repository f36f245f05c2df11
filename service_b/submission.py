"""Accepting a task: it is stored, and then its client has an id to ask for it with."""

import asyncio
import sys
from collections.abc import Sequence
from itertools import compress
from typing import Literal

import asyncpg
from asyncpg.pgproto.pgproto import UUID  # Its own kind goes into a statement without being converted.
from uuid_utils import uuid7

from messaging.sealing.sealer import Sealer
from service_b import metrics
from service_b.quotas import Quotas
from service_b.settings import Settings
from service_b.storage import Storage
from service_b.tasks import inserts
from service_b.tasks.clock import Clock
from service_b.tasks.inserts import NewTask, Wishes

Whose = Literal["device", "token"]


class FullError(Exception):
    """The task was not stored: its device, or the name of its token, has as many unfinished ones as it may have."""

    def __init__(self, whose: Whose) -> None:
        super().__init__(whose)
        self.whose = whose


class Submission:
    """Stores tasks by the batch, and wakes this process's relay for each batch.

    Parameters are sealed, where there is a key to seal them for, before they are handed to anything.
    """

    def __init__(self, pool: asyncpg.Pool, settings: Settings, wake: asyncio.Event, internal: Clock) -> None:
        self._pool = pool
        self._internal = internal
        self._settings = settings
        self._wake = wake
        self._sealer = Sealer(settings.seal_public_key_file) if settings.seal_public_key_file else None
        most = settings.max_tasks_per_token
        self._quotas = Quotas(pool, most) if most is not None else None
        self._inserts: Storage[NewTask, Whose | None] = Storage("insert", self._insert, _size)

    async def submit(
        self,
        equipment_id: str,
        timeout_seconds: int,
        parameters: str,
        submitted_by: str | None = None,
        wishes: Wishes | None = None,
    ) -> UUID:
        """Store a task and return its id once it is committed.

        `parameters` is JSON text, `submitted_by` the name of the token that it was submitted with.

        Raises `FullError`, or what `Storage.ask` raises; after that the task may be stored all the same.
        """
        task_id = UUID(uuid7().bytes)
        if self._sealer:
            parameters = self._sealer.seal(parameters, task_id, equipment_id)
        task = NewTask(task_id, equipment_id, timeout_seconds, parameters, submitted_by, wishes)
        if full := await self._inserts.ask(task, task_id):
            metrics.TOO_MANY.labels(full).inc()
            raise FullError(full)
        return task_id

    async def close(self) -> None:
        """Wait for the last batch."""
        await self._inserts.close()

    async def _insert(self, batch: Sequence[NewTask]) -> Sequence[Whose | None]:
        if self._quotas is None:
            return await self._store(batch)
        admitted = await self._quotas.admit(batch)
        told = iter(await self._store(list(compress(batch, admitted))) if any(admitted) else [])
        return [next(told) if may else "token" for may in admitted]

    async def _store(self, tasks: Sequence[NewTask]) -> Sequence[Whose | None]:
        refused = await inserts.insert(
            self._pool,
            tasks,
            grace_seconds=self._settings.service_a_grace_seconds,
            deadline_seconds=self._settings.task_deadline_seconds,
            keep_parameters=self._settings.keep_parameters,
            max_per_device=self._settings.max_tasks_per_device,
            now=self._internal.now(),
        )
        metrics.ACCEPTED.inc(len(tasks) - len(refused))
        self._wake.set()
        return ["device" if task.id in refused else None for task in tasks]


def _size(task: NewTask) -> int:
    return sys.getsizeof(task.parameters)
