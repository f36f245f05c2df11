"""Accepting a task: it is stored, and then its client has an id to ask for it with."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import compress
from typing import Literal
from uuid import UUID

import asyncpg
from asyncpg.pgproto import pgproto
from uuid_utils import uuid7

from messaging.sealing.sealer import Sealer
from service_b import metrics
from service_b.idempotency import Keyed, Once, Replay, ReusedError
from service_b.quotas import Quotas
from service_b.settings import Settings
from service_b.storage import Storage
from service_b.tasks import inserts, keys
from service_b.tasks.clock import Clock
from service_b.tasks.inserts import NewTask, Wishes
from service_b.tasks.keys import KeyedTask

__all__ = ["FullError", "LateError", "Submission", "Wishes"]

Whose = Literal["device", "token"]
Late = Literal["late"]


class FullError(Exception):
    """The task was not stored: its device, or the name of its token, has as many unfinished ones as it may have."""

    def __init__(self, whose: Whose) -> None:
        super().__init__(whose)
        self.whose = whose


class LateError(Exception):
    """The task was not stored: by now it would be given up already."""


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
        # No single task waits behind what comes by the thousand.
        self._bulk_inserts: Storage[NewTask, Whose | None] = Storage("insert_bulk", self._insert, _size)
        secret = settings.idempotency_secret.get_secret_value() if settings.idempotency_secret else None
        keyed = Keyed[Whose | Late](pool, secret, admit=self._admit, store=self._store_once, full="device")
        # Of its own: what has no key never waits for what has one.
        self._once: Storage[tuple[NewTask, Once], Replay | Whose | Late | None] = Storage(
            "insert_once", keyed.insert, _size_once
        )
        self._bulk_once: Storage[tuple[NewTask, Once], Replay | Whose | Late | None] = Storage(
            "insert_bulk_once", keyed.insert, _size_once
        )

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

        Raises `LateError`, `FullError`, or what `Storage.ask` raises; after that the task may be stored all the same.
        """
        if _is_late(wishes):
            raise LateError
        task = self._make(equipment_id, timeout_seconds, parameters, submitted_by, wishes)
        storage = self._bulk_inserts if wishes and wishes.bulk else self._inserts
        _raise_if(await storage.ask(task, task.id))
        return task.id

    async def submit_once(
        self,
        once: Once,
        equipment_id: str,
        timeout_seconds: int,
        parameters: str,
        *,
        submitted_by: str | None = None,
        wishes: Wishes | None = None,
    ) -> tuple[UUID, bool]:
        """Do as `submit` does, unless the same token has sent this request under this key before.

        Returns the id of the task, and whether it was there already. Raises `ReusedError`, too.
        """
        task = self._make(equipment_id, timeout_seconds, parameters, submitted_by, wishes)
        storage = self._bulk_once if wishes and wishes.bulk else self._once
        told = await storage.ask((task, once), task.id)
        if isinstance(told, Replay):
            if not told.is_same:
                raise ReusedError
            return told.task_id, True
        if told == "late":
            raise LateError
        _raise_if(told)
        return task.id, False

    async def close(self) -> None:
        """Wait for the last batches."""
        await self._inserts.close()
        await self._bulk_inserts.close()
        await self._once.close()
        await self._bulk_once.close()

    def _make(
        self,
        equipment_id: str,
        timeout_seconds: int,
        parameters: str,
        submitted_by: str | None,
        wishes: Wishes | None,
    ) -> NewTask:
        task_id = pgproto.UUID(uuid7().bytes)  # It goes into a statement without being converted.
        if self._sealer and not (wishes and wishes.sealed_for):
            parameters = self._sealer.seal(parameters, task_id, equipment_id)
        return NewTask(task_id, equipment_id, timeout_seconds, parameters, submitted_by, wishes)

    async def _insert(self, batch: Sequence[NewTask]) -> Sequence[Whose | None]:
        if self._quotas is None:
            return await self._store(batch)
        admitted = await self._quotas.admit(batch)
        told = iter(await self._store(list(compress(batch, admitted))) if any(admitted) else [])
        return [next(told) if may else "token" for may in admitted]

    async def _store(self, tasks: Sequence[NewTask]) -> Sequence[Whose | None]:
        refused = await inserts.insert(self._pool, tasks, **self._terms())
        self._note(len(tasks) - len(refused))
        return ["device" if task.id in refused else None for task in tasks]

    async def _admit(self, tasks: Sequence[NewTask]) -> Sequence[Whose | Late | None]:
        """Judge tasks with a key, once it is known that they are not there yet."""
        admitted = await self._quotas.admit(tasks) if self._quotas else [True] * len(tasks)
        return [
            "late" if _is_late(task.wishes) else None if may else "token"
            for task, may in zip(tasks, admitted, strict=True)
        ]

    async def _store_once(self, tasks: Sequence[KeyedTask]) -> set[UUID]:
        stored = await keys.insert_once(self._pool, tasks, **self._terms())
        self._note(len(stored))
        return stored

    def _terms(self) -> inserts.Terms:
        return {
            "grace_seconds": self._settings.service_a_grace_seconds,
            "deadline_seconds": self._settings.task_deadline_seconds,
            "keep_parameters": self._settings.keep_parameters,
            "max_per_device": self._settings.max_tasks_per_device,
            "now": self._internal.now(),
        }

    def _note(self, stored: int) -> None:
        metrics.ACCEPTED.inc(stored)
        self._wake.set()


def _is_late(wishes: Wishes | None) -> bool:
    return wishes is not None and wishes.not_after is not None and wishes.not_after <= datetime.now(UTC)


def _raise_if(full: Whose | None) -> None:
    if full:
        metrics.TOO_MANY.labels(full).inc()
        raise FullError(full)


def _size_once(keyed: tuple[NewTask, Once]) -> int:
    task, once = keyed
    return _size(task) + sys.getsizeof(once.request)


def _size(task: NewTask) -> int:
    return sys.getsizeof(task.parameters)
