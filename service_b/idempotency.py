"""A client that does not know whether it was heard asks again under the same key, and gets the same task."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar
from uuid import UUID

import asyncpg

from service_b.tasks import keys
from service_b.tasks.inserts import NewTask
from service_b.tasks.keys import KeyedTask

Refusal = TypeVar("Refusal")


@dataclass(frozen=True, slots=True)
class Once:
    """A client's key, and its request: whatever makes it another request is in there, in one fixed form."""

    key: str
    request: str = field(repr=False)


class ReusedError(Exception):
    """The client has sent another request under this key before."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What a key stands for already, and whether it was the same request."""

    task_id: UUID
    is_same: bool


Batch: TypeAlias = Sequence[tuple[NewTask, Once]]
Admit: TypeAlias = Callable[[Sequence[NewTask]], Awaitable[Sequence[Refusal | None]]]
Store: TypeAlias = Callable[[Sequence[KeyedTask]], Awaitable[set[UUID]]]


class Keyed(Generic[Refusal]):
    """Stores those of a batch that are not there yet, and tells what the others' keys stand for.

    `admit` says which are refused before anything is stored, `store` returns those that it has stored; `full` is
    told of those that found no room. A refusal leaves no key behind: the same request may be made again.

    The database is not told what a request was: its digest could be guessed (a password is not long) by whoever has
    the database, so it is made with a secret.
    """

    def __init__(
        self, pool: asyncpg.Pool, secret: str | None, *, admit: Admit[Refusal], store: Store, full: Refusal
    ) -> None:
        self._pool = pool
        # None until it has been read from the database.
        self._secret = secret.encode() if secret else None
        self._admit, self._store, self._full = admit, store, full

    async def insert(self, batch: Batch) -> list[Replay | Refusal | None]:
        """Tell of each task: None where it is stored, else why it is not."""
        tasks = await self._digested(batch)
        told: list[Replay | Refusal | None] = [*await self._find(tasks)]
        absent = [index for index, replay in enumerate(told) if replay is None]
        refusals = await self._admit([tasks[index].task for index in absent]) if absent else []
        for index, refusal in zip(absent, refusals, strict=True):
            told[index] = refusal
        wanted = [index for index in absent if told[index] is None]
        stored = await self._store([tasks[index] for index in wanted]) if wanted else set()
        # What was not stored has no room, or its key is known since: that comes first, whoever else was refused.
        missed = [index for index in absent if tasks[index].task.id not in stored]
        for index, replay in zip(missed, await self._find([tasks[index] for index in missed]), strict=True):
            told[index] = replay or told[index] or self._full
        return told

    async def _digested(self, batch: Batch) -> list[KeyedTask]:
        if self._secret is None:
            self._secret = await keys.read_hmac_key(self._pool)
        return [KeyedTask(task, once.key, _digest(self._secret, once.request)) for task, once in batch]

    async def _find(self, tasks: Sequence[KeyedTask]) -> list[Replay | None]:
        found = await keys.find(self._pool, tasks) if tasks else []
        return [
            Replay(known.task_id, hmac.compare_digest(known.digest, each.digest)) if known else None
            for each, known in zip(tasks, found, strict=True)
        ]


def _digest(secret: bytes, request: str) -> bytes:
    return hmac.digest(secret, request.encode(), hashlib.sha256)
